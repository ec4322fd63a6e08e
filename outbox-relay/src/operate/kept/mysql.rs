use diesel::QueryResult;
use diesel_outbox_core::__private::unix_ms;
use mysql::prelude::Queryable;
use mysql::{Conn, Params, params};
use uuid::Uuid;

use super::{BYTES, Kept, KeptRecord, KeptRow, RecordRow, Row, Selection, Window, kept, kept_record};
use crate::operate::mysql::failed;
use crate::source::mysql::row_of;

/// The connection is one of the crate `mysql`, which the relay re-exports.
impl Kept for Conn {
    fn count(&mut self, window: &Window) -> QueryResult<u64> {
        let between = (unix_ms(window.since), unix_ms(window.until));
        let count = self.exec_first::<i64, _, _>(COUNT, between).map_err(failed)?;
        Ok(count.unwrap_or_default().unsigned_abs())
    }

    fn rows(&mut self, window: &Window, after: i64, limit: i64) -> QueryResult<Vec<KeptRow>> {
        let (since, until) = (unix_ms(window.since), unix_ms(window.until));
        let rows = self.exec_iter(ROWS, (after, since, until, limit)).map_err(failed)?;
        rows.map(|row| row_of::<Row>(row?).map(kept)).collect::<mysql::Result<_>>().map_err(failed)
    }

    fn find(&mut self, ids: &[Uuid]) -> QueryResult<Vec<KeptRow>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        // Ids are hexadecimal digits and hyphens.
        let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
        let rows = self.query_iter(FIND.replace("{ids}", &ids.join(","))).map_err(failed)?;
        rows.map(|row| row_of::<Row>(row?).map(kept)).collect::<mysql::Result<_>>().map_err(failed)
    }

    fn count_sent(&mut self, selection: &Selection) -> QueryResult<u64> {
        let statement = format!("SELECT COUNT(*) {SENT_ROWS}");
        let count = self.exec_first::<i64, _, _>(statement, chosen(selection, 0, 0)).map_err(failed)?;
        Ok(count.unwrap_or_default().unsigned_abs())
    }

    fn sent(&mut self, selection: &Selection, after: i64, limit: i64) -> QueryResult<Vec<KeptRecord>> {
        let statement = format!(
            "WITH first AS (SELECT seq, COALESCE(LENGTH(payload), 0) AS size {SENT_ROWS} AND seq > :after ORDER BY seq LIMIT :limit), \
             measured AS (SELECT seq AS number, SUM(size) OVER (ORDER BY seq) - size AS preceding FROM first) \
             SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, \
             TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000 \
             FROM outbox JOIN measured ON seq = number WHERE preceding < {BYTES} ORDER BY seq"
        );
        let rows = self.exec_iter(statement, chosen(selection, after, limit)).map_err(failed)?;
        rows.map(|row| row_of::<RecordRow>(row?).map(kept_record))
            .collect::<mysql::Result<_>>()
            .map_err(failed)
    }
}

fn chosen(selection: &Selection, after: i64, limit: i64) -> Params {
    let Selection { window, id, event_type, aggregate_type, aggregate_id } = selection;
    params! {
        "since" => unix_ms(window.since), "until" => unix_ms(window.until), "id" => id.map(|id| id.to_string()),
        "type" => event_type,
        "aggregate_type" => aggregate_type, "aggregate_id" => aggregate_id, "after" => after, "limit" => limit,
    }
}

const COUNT: &str = "SELECT COUNT(*) FROM \
    (SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000 AS created FROM outbox) AS o WHERE created >= ? AND created < ?";

const ROWS: &str = "SELECT seq, id, aggregatetype, aggregateid, created, is_sent FROM (SELECT seq, id, aggregatetype, aggregateid, \
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000 AS created, sent_at IS NOT NULL AS is_sent \
    FROM outbox WHERE seq > ?) AS o WHERE created >= ? AND created < ? ORDER BY seq LIMIT ?";

const FIND: &str = "SELECT seq, id, aggregatetype, aggregateid, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000, \
    sent_at IS NOT NULL FROM outbox WHERE id IN ({ids}) \
    UNION ALL SELECT seq, id, aggregatetype, aggregateid, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000, false \
    FROM outbox_dead_letter WHERE id IN ({ids})";

/// The aggregates are compared as bytes: as texts, two are equal that differ in trailing spaces.
const SENT_ROWS: &str = "FROM (SELECT *, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000 AS created FROM outbox \
    WHERE sent_at IS NOT NULL) AS o WHERE created >= :since AND created < :until AND id = COALESCE(:id, id) \
    AND (:type IS NULL OR CAST(type AS BINARY) = CAST(:type AS BINARY)) \
    AND (:aggregate_type IS NULL OR CAST(aggregatetype AS BINARY) = CAST(:aggregate_type AS BINARY)) \
    AND (:aggregate_id IS NULL OR CAST(aggregateid AS BINARY) = CAST(:aggregate_id AS BINARY))";
