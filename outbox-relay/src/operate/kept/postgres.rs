use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, Text, Uuid as SqlUuid};
use diesel_outbox_core::__private::unix_ms;
use uuid::Uuid;

use super::{BYTES, Kept, KeptRecord, KeptRow, RecordRow, Row, Selection, Window, kept, kept_record};
use crate::source::check::was_sent_from_wal;
use crate::source::sees_all_rows;
use crate::statement::statement;

impl Kept for PgConnection {
    fn count(&mut self, window: &Window) -> QueryResult<u64> {
        sees_all_rows(self)?;
        let count = Count::new(unix_ms(window.since), unix_ms(window.until));
        Ok(count.get_result::<i64>(self)?.unsigned_abs())
    }

    fn rows(&mut self, window: &Window, after: i64, limit: i64) -> QueryResult<Vec<KeptRow>> {
        let rows = Rows::new(after, unix_ms(window.since), unix_ms(window.until), limit);
        Ok(rows.load::<Row>(self)?.into_iter().map(kept).collect())
    }

    fn find(&mut self, ids: &[Uuid]) -> QueryResult<Vec<KeptRow>> {
        Ok(Find::new(ids.to_vec()).load::<Row>(self)?.into_iter().map(kept).collect())
    }

    fn count_sent(&mut self, selection: &Selection) -> QueryResult<u64> {
        sees_all_rows(self)?;
        let Selection { window, id, event_type, aggregate_type, aggregate_id } = selection.clone();
        let (since, until) = (unix_ms(window.since), unix_ms(window.until));
        let count = CountSent::new(since, until, id, event_type, aggregate_type, aggregate_id);
        Ok(count.get_result::<i64>(self)?.unsigned_abs())
    }

    fn sent(&mut self, selection: &Selection, after: i64, limit: i64) -> QueryResult<Vec<KeptRecord>> {
        let Selection { window, id, event_type, aggregate_type, aggregate_id } = selection.clone();
        let (since, until) = (unix_ms(window.since), unix_ms(window.until));
        let sent = Sent::new(since, until, id, event_type, aggregate_type, aggregate_id, after, limit, BYTES);
        Ok(sent.load::<RecordRow>(self)?.into_iter().map(kept_record).collect())
    }
}

macro_rules! moment {
    () => {
        "(timestamp '1970-01-01' + ?::float8 * interval '1 millisecond')"
    };
}

macro_rules! columns {
    () => {
        "o.seq, o.id::text, o.aggregatetype, o.aggregateid, (extract(epoch FROM o.created_at) * 1000::numeric)::bigint"
    };
}

/// Whether a row is known to have been sent. If rows are read from the write-ahead log, their numbers say so, and nothing marks them.
macro_rules! is_sent {
    () => {
        concat!(
            "(o.sent_at IS NOT NULL OR CASE WHEN s.polled_through < 9223372036854775807 THEN o.seq <= s.sent_through ELSE ",
            was_sent_from_wal!(),
            " END)"
        )
    };
}

macro_rules! kept_rows {
    () => {
        concat!(
            "SELECT ",
            columns!(),
            ", ",
            is_sent!(),
            " FROM outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE "
        )
    };
}

statement!(
    Pg,
    Count { since: i64 => BigInt, until: i64 => BigInt } -> BigInt,
    concat!("SELECT count(*) FROM outbox WHERE created_at >= ", moment!(), " AND created_at < ", moment!())
);

statement!(
    Pg,
    Rows { after: i64 => BigInt, since: i64 => BigInt, until: i64 => BigInt, limit: i64 => BigInt }
        -> (BigInt, Text, Text, Text, BigInt, Bool),
    concat!(
        kept_rows!(),
        "o.seq > ? AND o.created_at >= ",
        moment!(),
        " AND o.created_at < ",
        moment!(),
        " ORDER BY o.seq LIMIT ?"
    )
);

statement!(
    Pg,
    Find { ids: Vec<Uuid> => Array<SqlUuid> } -> (BigInt, Text, Text, Text, BigInt, Bool),
    concat!(
        "WITH wanted AS (SELECT unnest(?::uuid[]) AS id) ",
        kept_rows!(),
        "o.id IN (SELECT id FROM wanted) UNION ALL SELECT ",
        columns!(),
        ", false FROM outbox_dead_letter AS o WHERE o.id IN (SELECT id FROM wanted)"
    )
);

macro_rules! sent_rows {
    () => {
        concat!(
            " FROM outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard CROSS JOIN (SELECT ",
            moment!(),
            " AS since, ",
            moment!(),
            " AS until, ?::uuid AS id, ?::text AS type, ?::text AS aggregatetype, ?::text AS aggregateid) AS chosen \
             WHERE ",
            is_sent!(),
            " AND o.created_at >= chosen.since AND o.created_at < chosen.until \
             AND (chosen.id IS NULL OR o.id = chosen.id) AND (chosen.type IS NULL OR o.type::text = chosen.type) \
             AND (chosen.aggregatetype IS NULL OR o.aggregatetype::text = chosen.aggregatetype) \
             AND (chosen.aggregateid IS NULL OR o.aggregateid::text = chosen.aggregateid)"
        )
    };
}

statement!(
    Pg,
    CountSent {
        since: i64 => BigInt,
        until: i64 => BigInt,
        id: Option<Uuid> => Nullable<SqlUuid>,
        event_type: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>
    } -> BigInt,
    concat!("SELECT count(*)", sent_rows!())
);

statement!(
    Pg,
    /// Payloads are measured where they lie, and only those are read that fit.
    Sent {
        since: i64 => BigInt,
        until: i64 => BigInt,
        id: Option<Uuid> => Nullable<SqlUuid>,
        event_type: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>,
        after: i64 => BigInt,
        limit: i64 => BigInt,
        bytes: i64 => BigInt
    } -> (BigInt, Text, Text, Text, Text, Nullable<Binary>, Nullable<Text>, BigInt),
    concat!(
        "WITH first AS MATERIALIZED (SELECT o.seq, o.shard, coalesce(octet_length(o.payload), 0)::bigint AS size",
        sent_rows!(),
        " AND o.seq > ? ORDER BY o.seq LIMIT ?), \
         measured AS (SELECT seq, shard, sum(size) OVER (ORDER BY seq) - size AS before FROM first) \
         SELECT o.seq, o.id::text, o.aggregatetype, o.aggregateid, o.type, o.payload, o.headers::text, \
         (extract(epoch FROM o.created_at) * 1000::numeric)::bigint \
         FROM measured AS m JOIN outbox AS o ON o.seq = m.seq AND o.shard = m.shard WHERE m.before < ? ORDER BY o.seq"
    )
);
