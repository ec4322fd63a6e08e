use std::time::SystemTime;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_outbox_core::__private::{from_unix_ms, unix_ms};
use uuid::Uuid;

use super::{Kept, KeptRecord, KeptRow, RecordRow, Row, Selection, Window, kept, kept_record};
use crate::source::julian_day::created_at_ms;
use crate::statement::statement;

impl Kept for SqliteConnection {
    fn count(&mut self, window: &Window) -> QueryResult<(u64, Option<SystemTime>)> {
        let count = Count::new(unix_ms(window.since), unix_ms(window.until));
        let (count, oldest) = count.get_result::<(i64, Option<i64>)>(self)?;
        Ok((count.unsigned_abs(), oldest.map(from_unix_ms)))
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
        let Selection { window, event_type, aggregate_type, aggregate_id } = selection.clone();
        let (since, until) = (unix_ms(window.since), unix_ms(window.until));
        let count = CountSent::new(since, until, event_type, aggregate_type, aggregate_id);
        Ok(count.get_result::<i64>(self)?.unsigned_abs())
    }

    fn sent(&mut self, selection: &Selection, after: i64, limit: i64) -> QueryResult<Vec<KeptRecord>> {
        let Selection { window, event_type, aggregate_type, aggregate_id } = selection.clone();
        let (since, until) = (unix_ms(window.since), unix_ms(window.until));
        let sent = Sent::new(since, until, event_type, aggregate_type, aggregate_id, after, limit);
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
    Count { since: i64 => BigInt, until: i64 => BigInt } -> (BigInt, Nullable<BigInt>),
    concat!(
        "SELECT count(*) FILTER (WHERE created >= ? AND created < ?), min(created) FROM (SELECT ",
        created_at_ms!(),
        " AS created FROM outbox)"
    )
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
            " AS created FROM outbox WHERE sent_at IS NOT NULL) WHERE created >= ? AND created < ? AND type = coalesce(?, type) \
             AND aggregatetype = coalesce(?, aggregatetype) AND aggregateid = coalesce(?, aggregateid)"
        )
    };
}

statement!(
    Sqlite,
    CountSent {
        since: i64 => BigInt,
        until: i64 => BigInt,
        event_type: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>
    } -> BigInt,
    concat!("SELECT count(*)", sent_rows!())
);

statement!(
    Sqlite,
    Sent {
        since: i64 => BigInt,
        until: i64 => BigInt,
        event_type: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>,
        after: i64 => BigInt,
        limit: i64 => BigInt
    } -> (BigInt, Text, Text, Text, Text, Nullable<Binary>, Nullable<Text>, BigInt),
    concat!(
        "SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, created",
        sent_rows!(),
        " AND seq > ? ORDER BY seq LIMIT ?"
    )
);
