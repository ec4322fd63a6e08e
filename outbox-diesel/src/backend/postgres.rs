use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::AstPass;
use diesel::sql_types::{Array, BigInt, Binary, Double, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_outbox_core::__private::{Due, quoted_identifier, quoted_literal};
use diesel_outbox_core::advisory_locks;
use uuid::Uuid;

use super::sealed::Statements;
use super::{
    CancelScheduled, FindInbox, InsertMany, InsertMark, InsertOne, InsertScheduled, OutboxRow, PruneMarks,
    SelectRows, StillMarked, Table,
};

impl Statements for Pg {
    #[cfg(feature = "migrations")]
    const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
        diesel_migrations::embed_migrations!("migrations/postgres");
    #[cfg(feature = "migrations")]
    const MIGRATING: super::Migrating =
        super::Migrating::InSchema(diesel_outbox_core::__private::postgres_migration_lock);

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
        out.push_sql("INSERT INTO ");
        push_schema(insert.schema, &mut out)?;
        out.push_sql("outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) VALUES (");
        push_row(&insert.row, &mut out)?;
        out.push_sql(") RETURNING ");
        push_wake(insert.schema, &mut out);
        Ok(())
    }

    /// The outer `SELECT` may run before the `INSERT`. Nevertheless the table is locked before `WAKE` tries the lock of a sleeping
    /// relay, which the relay relies on: PostgreSQL locks the tables that a statement inserts into before it runs any part of it.
    fn insert_many<'b>(insert: &'b InsertMany<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        let columns = &insert.columns;
        out.push_sql("WITH emitted AS (INSERT INTO ");
        push_schema(insert.schema, &mut out)?;
        out.push_sql(
            "outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
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
        out.push_sql(
            "::smallint[]) WITH ORDINALITY \
             AS event (id, aggregatetype, aggregateid, type, payload, headers, shard, position) ORDER BY position) SELECT ",
        );
        push_wake(insert.schema, &mut out);
        Ok(())
    }

    fn insert_mark<'b>(mark: &'b InsertMark<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("INSERT INTO ");
        push_schema(mark.schema, &mut out)?;
        out.push_sql("inbox (consumer, event_id) VALUES (");
        out.push_bind_param::<Text, str>(mark.consumer)?;
        out.push_sql(", ");
        out.push_bind_param::<SqlUuid, Uuid>(&mark.event_id)?;
        out.push_sql(") ON CONFLICT DO NOTHING");
        Ok(())
    }

    /// Fails in a transaction that an error has aborted. PostgreSQL answers a COMMIT of such a transaction with success although it
    /// rolls back.
    fn still_marked<'b>(_: &'b StillMarked<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("SELECT 1");
        Ok(())
    }

    fn find_inbox<'b>(find: &'b FindInbox<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        let table = find
            .schema
            .map_or_else(|| "inbox".to_owned(), |schema| format!("{}.inbox", quoted_identifier(schema)));
        let block = format!(
            "BEGIN IF to_regclass({}) IS NULL THEN RAISE undefined_table USING MESSAGE = 'no such table: inbox'; END IF; END",
            quoted_literal(&table)
        );
        out.push_sql("DO ");
        out.push_sql(&quoted_literal(&block));
        Ok(())
    }

    fn insert_scheduled<'b>(
        insert: &'b InsertScheduled<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        out.push_sql("INSERT INTO ");
        push_schema(insert.schema, &mut out)?;
        out.push_sql(
            "outbox_scheduled (id, aggregatetype, aggregateid, type, payload, headers, shard, due_at) VALUES (",
        );
        push_row(&insert.row, &mut out)?;
        match &insert.due {
            Due::At(ms) => {
                out.push_sql(", timestamptz 'epoch' + ");
                out.push_bind_param::<BigInt, i64>(ms)?;
                out.push_sql(" * interval '1 millisecond')");
            }
            Due::After(micros) => {
                out.push_sql(", clock_timestamp() + ");
                out.push_bind_param::<BigInt, i64>(micros)?;
                out.push_sql(" * interval '1 microsecond')");
            }
        }
        Ok(())
    }

    fn cancel_scheduled<'b>(
        cancel: &'b CancelScheduled<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        out.push_sql("DELETE FROM ");
        push_schema(cancel.schema, &mut out)?;
        out.push_sql("outbox_scheduled WHERE id = ");
        out.push_bind_param::<SqlUuid, Uuid>(&cancel.id)
    }

    fn select_rows<'b>(select: &'b SelectRows<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        let (due_at, table) = match select.table {
            Table::Outbox => ("created_at", "outbox ORDER BY seq"),
            Table::Scheduled => ("due_at", "outbox_scheduled ORDER BY due_at, seq"),
        };
        out.push_sql(
            "SELECT id::text, aggregatetype::text, aggregateid::text, type::text, payload, headers::text, ",
        );
        out.push_sql("floor(extract(epoch FROM created_at) * 1000)::bigint, floor(extract(epoch FROM ");
        out.push_sql(due_at);
        out.push_sql(") * 1000)::bigint FROM ");
        push_schema(select.schema, &mut out)?;
        out.push_sql(table);
        Ok(())
    }

    fn prune_marks<'b>(prune: &'b PruneMarks<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("DELETE FROM ");
        push_schema(prune.schema, &mut out)?;
        out.push_sql("inbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM ");
        push_schema(prune.schema, &mut out)?;
        out.push_sql("inbox WHERE consumer = ");
        out.push_bind_param::<Text, str>(prune.consumer)?;
        out.push_sql(" AND received_at < now() - pg_catalog.make_interval(secs => ");
        out.push_bind_param::<Double, f64>(&prune.retention_seconds)?;
        out.push_sql(") AND received_at >= now() - pg_catalog.make_interval(secs => ");
        out.push_bind_param::<Double, f64>(&prune.oldest_seconds)?;
        // The order is that of the index, so PostgreSQL reads nothing else.
        out.push_sql(") ORDER BY received_at LIMIT ");
        out.push_bind_param::<BigInt, i64>(&prune.limit)?;
        out.push_sql("))");
        Ok(())
    }
}

/// The values of the columns that an emitter sets.
fn push_row<'b>(row: &'b OutboxRow<'_>, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
    let OutboxRow { record, id, payload, headers, shard, .. } = row;
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
    out.push_bind_param::<SmallInt, i16>(shard)
}

fn push_schema(schema: Option<&str>, out: &mut AstPass<'_, '_, Pg>) -> QueryResult<()> {
    if let Some(schema) = schema {
        out.push_identifier(schema)?;
        out.push_sql(".");
    }
    Ok(())
}

fn push_wake(schema: Option<&str>, out: &mut AstPass<'_, '_, Pg>) {
    match schema {
        None => out.push_sql(advisory_locks::WAKE),
        Some(schema) => out.push_sql(&advisory_locks::wake_in(&quoted_identifier(schema))),
    }
}

/// The rows as one array for each column, so that the statement has the same text for any number of rows.
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
    pub(super) fn new(rows: &[OutboxRow<'a>]) -> Self {
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
