use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Double, Nullable, SmallInt, Text};

use super::{Claim, Content, ContentRow, Observe, RelaySession, Relays, Slot, content};
use crate::operate::postgres::dead_letters;
use crate::operate::{DeadLetter, DeadLetterRow, dead_letter};
use crate::source::sees_all_rows;
use crate::source::sequence::last_number;
use crate::statement::statement;

impl Observe for PgConnection {
    fn relays(&mut self) -> QueryResult<Relays> {
        let sessions = Sessions::new().load::<(i64, Option<String>, Option<f64>, bool, bool)>(self)?;
        let claims = Claims::new().load::<(i16, i64)>(self)?;
        let session = |(id, client, age, leads, works)| RelaySession {
            id,
            client,
            age: Option::and_then(age, |age| Duration::try_from_secs_f64(age).ok()),
            leads,
            works,
        };
        Ok(Relays {
            sessions: Some(sessions.into_iter().map(session).collect()),
            claims: Some(claims.into_iter().map(|(shard, session)| Claim { shard, session }).collect()),
            hidden: None,
        })
    }

    fn last_number(&mut self) -> QueryResult<i64> {
        LastNumber::new().get_result(self)
    }

    fn slot(&mut self) -> QueryResult<Option<Slot>> {
        let slot = SlotOfOutbox::new().get_result::<(String, bool, Option<i64>)>(self).optional()?;
        Ok(slot.map(|(name, is_active, safe)| Slot {
            name,
            is_active,
            safe_bytes: safe.map(|bytes| bytes.max(0).unsigned_abs()),
        }))
    }

    fn dead_letter(&mut self, seq: i64, id: &str) -> QueryResult<Option<DeadLetter>> {
        sees_all_rows(self)?;
        let row = DeadLetterOf::new(seq, id.to_owned()).get_result::<DeadLetterRow>(self).optional()?;
        Ok(row.map(dead_letter))
    }

    fn limit_waits(&mut self) -> QueryResult<()> {
        self.batch_execute("SET statement_timeout = '10s'; SET lock_timeout = '2s'")
    }

    fn content(&mut self, seq: i64, id: &str) -> QueryResult<Option<Content>> {
        sees_all_rows(self)?;
        let most = i32::try_from(Content::MOST).unwrap_or(i32::MAX);
        let row = ContentOf::new(most, most, seq, id.to_owned()).get_result::<ContentRow>(self).optional()?;
        Ok(row.map(content))
    }
}

/// The locks of this outbox by which relays agree.
macro_rules! locks {
    () => {
        "(SELECT l.pid, bool_or(l.classid = '1869968483'::oid OR l.locktype = 'relation') AS leads, \
         bool_or(l.classid = '1869968484'::oid OR l.locktype = 'relation') AS works FROM pg_locks AS l \
         WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND ((l.locktype = 'advisory' AND l.objsubid = 2::smallint AND l.objid = 'outbox'::regclass::oid \
         AND l.classid BETWEEN '1869968482'::oid AND '1869968486'::oid) \
         OR (l.locktype = 'relation' AND l.relation = 'outbox_reader'::regclass::oid AND l.mode = 'ExclusiveLock')) \
         GROUP BY l.pid)"
    };
}

statement!(
    Pg,
    /// The server hides from a role what others connect as, unless the role is a member of pg_read_all_stats. The locks it shows to everybody.
    Sessions {} -> (BigInt, Nullable<Text>, Nullable<Double>, Bool, Bool),
    concat!(
        "SELECT a.pid::bigint, host(a.client_addr), \
         extract(epoch FROM clock_timestamp() - a.backend_start)::float8, coalesce(l.leads, false), coalesce(l.works, false) \
         FROM pg_stat_activity AS a LEFT JOIN ",
        locks!(),
        " AS l ON l.pid = a.pid WHERE a.datname = current_database() \
         AND (a.application_name = 'outbox relay' OR l.pid IS NOT NULL) AND a.backend_type = 'client backend' ORDER BY a.backend_start, a.pid"
    )
);

statement!(
    Pg,
    /// Whoever has locked a row has left the number of its transaction there, which is locked until the transaction ends. The one relay that
    /// reads the WAL has all shards.
    Claims {} -> (SmallInt, BigInt),
    "SELECT s.shard, l.pid::bigint FROM outbox_shard AS s JOIN pg_locks AS l \
     ON (l.locktype = 'transactionid' AND l.transactionid = s.xmax) \
     OR (l.locktype = 'relation' AND l.relation = 'outbox_reader'::regclass::oid AND l.mode = 'ExclusiveLock' \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.polled_through < 9223372036854775807) \
     WHERE l.granted ORDER BY s.shard"
);

statement!(Pg, LastNumber {} -> BigInt, concat!("SELECT ", last_number!(), " FROM outbox_seq_seq"));

statement!(
    Pg,
    SlotOfOutbox {} -> (Text, Bool, Nullable<BigInt>),
    "SELECT o.slot, coalesce(s.active, false), s.safe_wal_size FROM outbox_slot AS o LEFT JOIN pg_replication_slots AS s \
     ON s.slot_name::text = o.slot AND s.database = current_database() ORDER BY o.slot LIMIT 1"
);

statement!(
    Pg,
    DeadLetterOf { seq: i64 => BigInt, id: String => Text } -> (BigInt, Text, Text, Text, Text, BigInt, Text, BigInt),
    concat!(dead_letters!(), " WHERE seq = ? AND id::text = ?")
);

statement!(
    Pg,
    ContentOf { bytes: i32 => diesel::sql_types::Integer, characters: i32 => diesel::sql_types::Integer, seq: i64 => BigInt, id: String => Text }
        -> (Nullable<Binary>, Nullable<BigInt>, Nullable<Text>),
    "SELECT substring(payload FROM 1 FOR ?), octet_length(payload)::bigint, left(headers::text, ?) \
     FROM outbox_dead_letter WHERE seq = ? AND id::text = ?"
);

#[cfg(test)]
mod tests {
    use diesel_outbox_core::advisory_locks::{ASLEEP, LEADER, NEXT_READER, WORKING};

    #[test]
    fn the_locks_of_relays_are_those_that_relays_take() {
        for (lock, text) in [
            (LEADER, "classid = '1869968483'"),
            (WORKING, "classid = '1869968484'"),
            (ASLEEP, "BETWEEN '1869968482'"),
            (NEXT_READER, "AND '1869968486'"),
        ] {
            assert!(text.contains(&lock.to_string()) && locks!().contains(text), "{text}");
        }
    }
}
