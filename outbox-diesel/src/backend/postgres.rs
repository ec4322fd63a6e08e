use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::AstPass;
use diesel::sql_types::{Array, BigInt, Binary, Double, Nullable, SmallInt, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::sealed::Statements;
use super::{InsertMany, InsertMark, InsertOne, PruneMarks, Row};

/// First halves of the advisory locks' keys; the second half is the outbox table's oid, so that each schema has its own.
#[cfg(feature = "postgres-source")]
pub(crate) mod locks {
    /// Held exclusively by the relay that listens, while it sleeps and is to be notified.
    pub(crate) const ASLEEP: i32 = super::ASLEEP;
    /// Held exclusively by the one relay that listens for notifications.
    pub(crate) const LEADER: i32 = super::ASLEEP + 1;
    /// Held shared by every worker that is at work, so that they can count each other.
    pub(crate) const WORKING: i32 = super::ASLEEP + 2;
    /// Held exclusively by the next in line to read the write-ahead log.
    #[cfg(feature = "postgres-wal")]
    pub(crate) const NEXT_READER: i32 = super::ASLEEP + 4;
}

/// "outb" as a number. It stands in the text of `wake!` as well, as `concat!` takes literals only.
const ASLEEP: i32 = 1_869_968_482;

/// Notifies the relay if it sleeps: only then is its lock held. Where it is awake, or there is none, nothing is notified, as
/// transactions that notify wait for each other when they commit. The lock that tells is let go at once: the relay could
/// not lie down while an emitter has it. Who sets `outbox.notify` to `off` never notifies, as PostgreSQL prepares no transaction that
/// has.
macro_rules! wake {
    () => {
        "CASE WHEN current_setting('outbox.notify', true) IN ('off', 'false', 'no', '0') THEN NULL \
         WHEN NOT pg_try_advisory_lock_shared(1869968482, 'outbox'::regclass::oid::int4) \
         THEN pg_notify('outbox_' || 'outbox'::regclass::oid, '') \
         WHEN NOT pg_advisory_unlock_shared(1869968482, 'outbox'::regclass::oid::int4) THEN NULL END"
    };
}

/// Whether the transaction `x` has ended, as seen by the statement's own snapshot. So it is for one that this server has not begun: the
/// table comes from another server then.
#[cfg(feature = "postgres-source")]
macro_rules! has_ended {
    () => {
        "(pg_visible_in_snapshot(x::text::xid8, pg_current_snapshot()) \
         OR x::text::xid8 >= pg_snapshot_xmax(pg_current_snapshot()))"
    };
}
#[cfg(feature = "postgres-source")]
pub(crate) use has_ended;

/// Locks all shards, until the transaction ends: no worker has claimed anything then.
#[cfg(feature = "postgres-source")]
pub(crate) const LOCK_SHARDS: &str = "SELECT FROM outbox_shard ORDER BY shard FOR UPDATE";

/// The number after which all rows lie of those of the transactions `open` that have ended. Null if none has.
#[cfg(feature = "postgres-source")]
macro_rules! first_of_ended {
    ($open:literal, $after:literal) => {
        concat!(
            "(SELECT min(after) FROM unnest(",
            $open,
            ", ",
            $after,
            ") AS o (x, after) WHERE ",
            crate::backend::postgres::has_ended!(),
            ")"
        )
    };
}
#[cfg(feature = "postgres-source")]
pub(crate) use first_of_ended;

/// The shards, and after which `seq` each may have unsent rows. That is `passed` as long as none of the transactions that were
/// open then has ended: what the snapshot cannot see of theirs is not looked for. Once one has ended its rows may be anywhere above the
/// number that was the last when it began. `OFFSET 0` keeps that from being computed for each row that is compared with it.
#[cfg(feature = "postgres-source")]
macro_rules! shards {
    () => {
        concat!(
            "(SELECT shard, low, high, passed, greatest(low, least(passed, ",
            crate::backend::postgres::first_of_ended!("open", "open_after"),
            ")) AS start FROM outbox_shard OFFSET 0)"
        )
    };
}
#[cfg(feature = "postgres-source")]
pub(crate) use shards;

/// The oldest unsent row of each shard `s` that is polled. The comparison and the order are of both columns, so that only the index on
/// (shard, seq) can serve them: along `seq` alone a shard without such a row is looked for in what all the others have sent.
#[cfg(feature = "postgres-source")]
macro_rules! oldest_unsent {
    () => {
        "JOIN LATERAL (SELECT o.seq FROM outbox AS o WHERE (o.shard, o.seq) > (s.shard, s.start) \
         AND (o.shard, o.seq) <= (s.shard, s.high) AND o.sent_at IS NULL ORDER BY o.shard, o.seq LIMIT 1) AS oldest ON true"
    };
}
#[cfg(feature = "postgres-source")]
pub(crate) use oldest_unsent;

/// The notification for statements that bring rows back to the outbox.
#[cfg(feature = "postgres-source")]
pub(crate) const WAKE: &str = concat!("SELECT ", wake!());

impl Statements for Pg {
    #[cfg(feature = "migrations")]
    const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
        diesel_migrations::embed_migrations!("migrations/postgres");
    #[cfg(feature = "migrations")]
    const MIGRATION_LOCK: &'static str = "SELECT pg_advisory_xact_lock(1869968482, 0)";

    #[cfg(feature = "migrations")]
    fn insert_version<'b>(
        insert: &'b super::InsertVersion<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        out.push_sql("INSERT INTO outbox_migration (version) VALUES (");
        out.push_bind_param::<Text, str>(insert.version)?;
        out.push_sql(") ON CONFLICT DO NOTHING");
        Ok(())
    }

    fn insert_one<'b>(insert: &'b InsertOne<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        let Row { record, id, payload, headers, shard, .. } = &insert.row;
        out.push_sql(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) VALUES (",
        );
        out.push_bind_param::<SqlUuid, Uuid>(id)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(record.aggregate_type())?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(record.aggregate_id())?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(record.event_type())?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Binary>, Option<&[u8]>>(payload)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, Option<String>>(headers)?;
        out.push_sql("::json, ");
        out.push_bind_param::<SmallInt, i16>(shard)?;
        out.push_sql(concat!(") RETURNING ", wake!()));
        Ok(())
    }

    fn insert_many<'b>(insert: &'b InsertMany<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        let columns = &insert.columns;
        out.push_sql(
            "WITH emitted AS (INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
             SELECT id, aggregatetype, aggregateid, type, payload, headers::json, shard FROM unnest(",
        );
        out.push_bind_param::<Array<SqlUuid>, Vec<Uuid>>(&columns.ids)?;
        out.push_sql("::uuid[], ");
        out.push_bind_param::<Array<Text>, Vec<&str>>(&columns.aggregate_types)?;
        out.push_sql("::text[], ");
        out.push_bind_param::<Array<Text>, Vec<&str>>(&columns.aggregate_ids)?;
        out.push_sql("::text[], ");
        out.push_bind_param::<Array<Text>, Vec<&str>>(&columns.event_types)?;
        out.push_sql("::text[], ");
        out.push_bind_param::<Array<Nullable<Binary>>, Vec<Option<&[u8]>>>(&columns.payloads)?;
        out.push_sql("::bytea[], ");
        out.push_bind_param::<Array<Nullable<Text>>, Vec<Option<String>>>(&columns.headers)?;
        out.push_sql("::text[], ");
        out.push_bind_param::<Array<SmallInt>, Vec<i16>>(&columns.shards)?;
        out.push_sql(concat!(
            "::smallint[]) WITH ORDINALITY \
             AS event (id, aggregatetype, aggregateid, type, payload, headers, shard, position) ORDER BY position) \
             SELECT ",
            wake!()
        ));
        Ok(())
    }

    fn insert_mark<'b>(mark: &'b InsertMark<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("INSERT INTO inbox (consumer, event_id) VALUES (");
        out.push_bind_param::<Text, str>(mark.consumer)?;
        out.push_sql(", ");
        out.push_bind_param::<SqlUuid, Uuid>(&mark.event_id)?;
        out.push_sql(") ON CONFLICT DO NOTHING");
        Ok(())
    }

    fn prune_marks<'b>(prune: &'b PruneMarks<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("DELETE FROM inbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM inbox WHERE consumer = ");
        out.push_bind_param::<Text, str>(prune.consumer)?;
        out.push_sql(" AND received_at < now() - make_interval(secs => ");
        out.push_bind_param::<Double, f64>(&prune.retention_seconds)?;
        out.push_sql(") AND received_at >= now() - make_interval(secs => ");
        out.push_bind_param::<Double, f64>(&prune.oldest_seconds)?;
        // The order is that of the index, so that nothing else is looked at.
        out.push_sql(") ORDER BY received_at LIMIT ");
        out.push_bind_param::<BigInt, i64>(&prune.limit)?;
        out.push_sql("))");
        Ok(())
    }
}

/// The rows as one array for each column, so that the statement is the same for any number of rows.
pub(super) struct Columns<'a> {
    ids: Vec<Uuid>,
    aggregate_types: Vec<&'a str>,
    aggregate_ids: Vec<&'a str>,
    event_types: Vec<&'a str>,
    payloads: Vec<Option<&'a [u8]>>,
    headers: Vec<Option<String>>,
    shards: Vec<i16>,
}

impl<'a> Columns<'a> {
    pub(super) fn new(rows: &[Row<'a>]) -> Self {
        Self {
            ids: rows.iter().map(|row| row.record.id()).collect(),
            aggregate_types: rows.iter().map(|row| row.record.aggregate_type()).collect(),
            aggregate_ids: rows.iter().map(|row| row.record.aggregate_id()).collect(),
            event_types: rows.iter().map(|row| row.record.event_type()).collect(),
            payloads: rows.iter().map(|row| row.record.payload()).collect(),
            headers: rows.iter().map(|row| row.headers.clone()).collect(),
            shards: rows.iter().map(|row| row.shard).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_emitter_tries_the_lock_that_the_relay_holds() {
        assert!(wake!().contains(&format!("pg_try_advisory_lock_shared({},", super::ASLEEP)));
        assert!(wake!().contains(&format!("pg_advisory_unlock_shared({},", super::ASLEEP)));
    }
}
