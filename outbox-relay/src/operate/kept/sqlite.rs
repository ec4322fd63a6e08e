use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_outbox_core::__private::unix_ms;
use uuid::Uuid;

use super::{BYTES, Kept, KeptRecord, KeptRow, RecordRow, Row, Selection, Window, kept, kept_record};
use crate::source::julian_day::created_at_ms;
use crate::statement::statement;

impl Kept for SqliteConnection {
    fn count(&mut self, window: &Window) -> QueryResult<u64> {
        let count = Count::new(unix_ms(window.since), unix_ms(window.until));
        Ok(count.get_result::<i64>(self)?.unsigned_abs())
    }

    fn rows(&mut self, window: &Window, after: i64, limit: i64) -> QueryResult<Vec<KeptRow>> {
        let rows = Rows::new(after, unix_ms(window.since), unix_ms(window.until), limit);
        Ok(rows.load::<Row>(self)?.into_iter().map(kept).collect())
    }

    fn find(&mut self, ids: &[Uuid]) -> QueryResult<Vec<KeptRow>> {
        // Ids are hexadecimal digits and hyphens.
        let ids: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
        Ok(Find::new(format!("[{}]", ids.join(","))).load::<Row>(self)?.into_iter().map(kept).collect())
    }

    fn count_sent(&mut self, selection: &Selection) -> QueryResult<u64> {
        let Selection { window, id, event_type, aggregate_type, aggregate_id } = selection.clone();
        let (since, until, id) = (unix_ms(window.since), unix_ms(window.until), id.map(|id| id.to_string()));
        let count = CountSent::new(since, until, id, event_type, aggregate_type, aggregate_id);
        Ok(count.get_result::<i64>(self)?.unsigned_abs())
    }

    fn sent(&mut self, selection: &Selection, after: i64, limit: i64) -> QueryResult<Vec<KeptRecord>> {
        let Selection { window, id, event_type, aggregate_type, aggregate_id } = selection.clone();
        let (since, until, id) = (unix_ms(window.since), unix_ms(window.until), id.map(|id| id.to_string()));
        let sent = Sent::new(since, until, id, event_type, aggregate_type, aggregate_id, after, limit, BYTES);
        Ok(sent.load::<RecordRow>(self)?.into_iter().map(kept_record).collect())
    }
}

macro_rules! columns {
    () => {
        concat!("seq, id, aggregatetype, aggregateid, ", created_at_ms!())
    };
}

statement!(
    Sqlite,
    Count { since: i64 => BigInt, until: i64 => BigInt } -> BigInt,
    concat!("SELECT count(*) FROM (SELECT ", created_at_ms!(), " AS created FROM outbox) WHERE created >= ? AND created < ?")
);

statement!(
    Sqlite,
    Rows { after: i64 => BigInt, since: i64 => BigInt, until: i64 => BigInt, limit: i64 => BigInt }
        -> (BigInt, Text, Text, Text, BigInt, Bool),
    concat!(
        "SELECT seq, id, aggregatetype, aggregateid, created, is_sent FROM (SELECT ",
        columns!(),
        " AS created, sent_at IS NOT NULL AS is_sent FROM outbox WHERE seq > ?) WHERE created >= ? AND created < ? ORDER BY seq LIMIT ?"
    )
);

statement!(
    Sqlite,
    Find { ids: String => Text } -> (BigInt, Text, Text, Text, BigInt, Bool),
    concat!(
        "WITH wanted AS (SELECT value AS id FROM json_each(?)) SELECT ",
        columns!(),
        ", sent_at IS NOT NULL FROM outbox WHERE id IN (SELECT id FROM wanted) UNION ALL SELECT ",
        columns!(),
        ", false FROM outbox_dead_letter WHERE id IN (SELECT id FROM wanted)"
    )
);

macro_rules! sent_rows {
    () => {
        concat!(
            " FROM (SELECT *, ",
            created_at_ms!(),
            " AS created FROM outbox WHERE sent_at IS NOT NULL) WHERE created >= ? AND created < ? AND id = coalesce(?, id) \
             AND type = coalesce(?, type) \
             AND aggregatetype = coalesce(?, aggregatetype) AND aggregateid = coalesce(?, aggregateid)"
        )
    };
}

statement!(
    Sqlite,
    CountSent {
        since: i64 => BigInt,
        until: i64 => BigInt,
        id: Option<String> => Nullable<Text>,
        event_type: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>
    } -> BigInt,
    concat!("SELECT count(*)", sent_rows!())
);

statement!(
    Sqlite,
    /// Payloads are measured where they lie, and only those are read that fit.
    Sent {
        since: i64 => BigInt,
        until: i64 => BigInt,
        id: Option<String> => Nullable<Text>,
        event_type: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>,
        after: i64 => BigInt,
        limit: i64 => BigInt,
        bytes: i64 => BigInt
    } -> (BigInt, Text, Text, Text, Text, Nullable<Binary>, Nullable<Text>, BigInt),
    concat!(
        "WITH first AS (SELECT seq, coalesce(length(payload), 0) AS size",
        sent_rows!(),
        " AND seq > ? ORDER BY seq LIMIT ?), \
         measured AS (SELECT seq, sum(size) OVER (ORDER BY seq) - size AS before FROM first) \
         SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, ",
        created_at_ms!(),
        " FROM outbox JOIN measured USING (seq) WHERE before < ? ORDER BY seq"
    )
);
