use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, SmallInt, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::{Claim, Event, Explain, Explanation, Look, Pruning, Row, Slot, Stored, explain};
use crate::source::check::was_sent_from_wal;
use crate::source::{BLOCKED, named_open_writers, sees_all_rows};
use crate::statement::statement;

impl Explain for PgConnection {
    fn explain(&mut self, id: Uuid, pruning: Pruning) -> QueryResult<Explanation> {
        sees_all_rows(self)?;
        explain(self, id, pruning)
    }
}

impl Look for PgConnection {
    fn scheduled(&mut self, id: Uuid) -> QueryResult<Option<Row>> {
        FindScheduled::new(id).get_result(self).optional()
    }

    fn stored(&mut self, id: Uuid) -> QueryResult<Option<Stored>> {
        let found = FindStored::new(id).get_result::<StoredRow>(self).optional()?;
        Ok(found.map(
            |(seq, aggregate_type, aggregate_id, event_type, shard, created, sent, is_sent, is_polled)| {
                Stored {
                    row: (seq, aggregate_type, aggregate_id, event_type, shard, created, sent),
                    is_sent,
                    is_read_from_wal: !is_polled,
                }
            },
        ))
    }

    fn dead(&mut self, id: Uuid) -> QueryResult<Option<(Row, String)>> {
        let found = FindDead::new(id).get_result::<DeadRow>(self).optional()?;
        Ok(found.map(|(seq, aggregate_type, aggregate_id, event_type, shard, created, failed, reason)| {
            ((seq, aggregate_type, aggregate_id, event_type, shard, created, failed), reason)
        }))
    }

    fn open_transactions(&mut self) -> QueryResult<Option<Vec<String>>> {
        named_open_writers(self).map(Some)
    }

    fn first_dead_letter(&mut self, event: &Event) -> QueryResult<Option<(String, String)>> {
        FirstDead::new(event.aggregate_type.clone(), event.aggregate_id.clone(), BLOCKED.to_owned())
            .get_result(self)
            .optional()
    }

    fn before(&mut self, shard: i16, seq: i64) -> QueryResult<i64> {
        Before::new(seq, shard).get_result(self)
    }

    fn claim(&mut self, shard: i16) -> QueryResult<Claim> {
        let found = ClaimedBy::new(shard).get_result::<Option<i32>>(self).optional()?;
        Ok(match found {
            Some(pid) => Claim::Claimed(pid.map(|pid| format!("process {pid} of the server"))),
            None => Claim::Free,
        })
    }

    fn has_relay(&mut self) -> QueryResult<Option<bool>> {
        HasRelay::new().get_result(self).map(Some)
    }

    fn slot(&mut self) -> QueryResult<Option<Slot>> {
        let found = ReadSlot::new().get_result::<(String, Option<i32>, i64, String)>(self).optional()?;
        Ok(found.map(|(name, reader, bytes, status)| Slot {
            name,
            reader,
            bytes: bytes.unsigned_abs(),
            status,
        }))
    }
}

type StoredRow = (Option<i64>, String, String, String, i16, i64, Option<i64>, bool, bool);
type DeadRow = (Option<i64>, String, String, String, i16, i64, Option<i64>, String);

macro_rules! columns {
    ($seq:literal, $since:literal) => {
        concat!(
            "SELECT ",
            $seq,
            ", o.aggregatetype::text, o.aggregateid::text, o.type::text, o.shard, \
             (extract(epoch FROM o.created_at) * 1000::numeric)::bigint, (extract(epoch FROM ",
            $since,
            ") * 1000::numeric)::bigint"
        )
    };
}

statement!(
    Pg,
    FindScheduled { id: Uuid => SqlUuid }
        -> (Nullable<BigInt>, Text, Text, Text, SmallInt, BigInt, Nullable<BigInt>),
    concat!(columns!("NULL::bigint", "o.due_at"), " FROM outbox_scheduled AS o WHERE o.id = ? LIMIT 1")
);

statement!(
    Pg,
    /// A row that is read from the write-ahead log was sent if it was polled before, or if the shard's number says so.
    FindStored { id: Uuid => SqlUuid }
        -> (Nullable<BigInt>, Text, Text, Text, SmallInt, BigInt, Nullable<BigInt>, Bool, Bool),
    concat!(
        columns!("o.seq", "o.sent_at"),
        ", o.sent_at IS NOT NULL OR CASE WHEN s.polled_through < 9223372036854775807 THEN o.seq <= s.sent_through ELSE ",
        was_sent_from_wal!(),
        " END, o.seq <= s.polled_through FROM outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE o.id = ? \
         ORDER BY o.sent_at NULLS FIRST LIMIT 1"
    )
);

statement!(
    Pg,
    FindDead { id: Uuid => SqlUuid }
        -> (Nullable<BigInt>, Text, Text, Text, SmallInt, BigInt, Nullable<BigInt>, Text),
    concat!(columns!("o.seq", "o.failed_at"), ", o.reason FROM outbox_dead_letter AS o WHERE o.id = ? LIMIT 1")
);

statement!(
    Pg,
    FirstDead { aggregate_type: String => Text, aggregate_id: String => Text, blocked: String => Text } -> (Text, Text),
    "SELECT id::text, reason FROM outbox_dead_letter WHERE aggregatetype::text = ? AND aggregateid::text = ? AND reason <> ? \
     ORDER BY seq LIMIT 1"
);

statement!(
    Pg,
    /// Those that are polled.
    Before { seq: i64 => BigInt, shard: i16 => SmallInt } -> BigInt,
    "SELECT count(*) FROM outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE o.seq < ? AND o.seq > s.sent_through \
     AND o.seq <= s.polled_through AND o.sent_at IS NULL AND o.shard = ?"
);

statement!(
    Pg,
    /// The session that has locked the shard's row, without a lock of our own: a relay would pass over the shard meanwhile.
    ClaimedBy { shard: i16 => SmallInt } -> Nullable<Integer>,
    "SELECT l.pid FROM outbox_shard AS s JOIN pg_locks AS l ON l.locktype = 'transactionid' AND l.transactionid = s.xmax AND l.granted \
     WHERE s.shard = ? LIMIT 1"
);

statement!(
    Pg,
    HasRelay {} -> Bool,
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay')"
);

statement!(
    Pg,
    ReadSlot {} -> (Text, Nullable<Integer>, BigInt, Text),
    "SELECT o.slot, s.active_pid, \
     greatest(pg_current_wal_insert_lsn() - greatest(o.start_lsn, s.confirmed_flush_lsn), 0)::bigint, coalesce(s.wal_status, 'lost') \
     FROM outbox_slot AS o LEFT JOIN pg_replication_slots AS s ON s.slot_name = o.slot AND s.database = current_database() LIMIT 1"
);
