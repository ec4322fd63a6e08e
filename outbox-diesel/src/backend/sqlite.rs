use diesel::QueryResult;
use diesel::query_builder::AstPass;
use diesel::sql_types::{BigInt, Binary, Double, Nullable, SmallInt, Text};
use diesel::sqlite::Sqlite;
use diesel_outbox_core::__private::Due;

use super::sealed::Statements;
use super::{
    CancelScheduled, FindInbox, InsertMany, InsertMark, InsertOne, InsertScheduled, OutboxRow, PruneMarks,
    SelectRows, StillMarked, Table,
};
use crate::EmitError;

const INSERT: &str =
    "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) VALUES ";

impl Statements for Sqlite {
    #[cfg(feature = "migrations")]
    const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
        diesel_migrations::embed_migrations!("migrations/sqlite");
    #[cfg(feature = "migrations")]
    const MIGRATING: super::Migrating = super::Migrating::AsWriter {
        begin: "BEGIN IMMEDIATE",
        find_record: diesel_outbox_core::__private::SQLITE_FIND_MIGRATION_RECORD,
    };

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
        refuse_schema(insert.schema)?;
        out.push_sql(INSERT);
        push_row(&insert.row, &mut out)?;
        out.push_sql(")");
        Ok(())
    }

    fn insert_many<'b>(insert: &'b InsertMany<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        refuse_schema(insert.schema)?;
        // The text depends on the number of rows, so cached statements would pile up.
        out.unsafe_to_cache_prepared();
        out.push_sql(INSERT);
        for (position, row) in insert.rows.iter().enumerate() {
            if position > 0 {
                out.push_sql(", ");
            }
            push_row(row, &mut out)?;
            out.push_sql(")");
        }
        Ok(())
    }

    fn insert_mark<'b>(mark: &'b InsertMark<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        refuse_schema(mark.schema)?;
        out.push_sql("INSERT INTO inbox (consumer, event_id) VALUES (");
        out.push_bind_param::<Text, str>(mark.consumer)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, String>(&mark.event_id_text)?;
        out.push_sql(") ON CONFLICT DO NOTHING");
        Ok(())
    }

    /// If an error has aborted the transaction, the COMMIT fails.
    fn still_marked<'b>(still: &'b StillMarked<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("UPDATE inbox SET event_id = event_id WHERE consumer = ");
        out.push_bind_param::<Text, str>(still.mark.consumer)?;
        out.push_sql(" AND event_id = ");
        out.push_bind_param::<Text, String>(&still.mark.event_id_text)
    }

    fn find_inbox<'b>(find: &'b FindInbox<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        refuse_schema(find.schema)?;
        out.push_sql("SELECT 1 FROM inbox LIMIT 0");
        Ok(())
    }

    fn insert_scheduled<'b>(
        insert: &'b InsertScheduled<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        refuse_schema(insert.schema)?;
        out.push_sql(
            "INSERT INTO outbox_scheduled (id, aggregatetype, aggregateid, type, payload, headers, shard, due_at) VALUES ",
        );
        push_row(&insert.row, &mut out)?;
        match &insert.due {
            Due::At(ms) => {
                out.push_sql(", strftime('%Y-%m-%dT%H:%M:%fZ', ");
                out.push_bind_param::<BigInt, i64>(ms)?;
                out.push_sql(" / 1000.0, 'unixepoch'))");
            }
            Due::After(micros) => {
                out.push_sql(", strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (");
                out.push_bind_param::<BigInt, i64>(micros)?;
                out.push_sql(" / 1000000.0) || ' seconds'))");
            }
        }
        Ok(())
    }

    fn cancel_scheduled<'b>(
        cancel: &'b CancelScheduled<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        refuse_schema(cancel.schema)?;
        out.push_sql("DELETE FROM outbox_scheduled WHERE id = ");
        out.push_bind_param::<Text, String>(&cancel.id_text)
    }

    fn select_rows<'b>(select: &'b SelectRows<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        refuse_schema(select.schema)?;
        let (due_at, table) = match select.table {
            Table::Outbox => ("created_at", "outbox ORDER BY seq"),
            Table::Scheduled => ("due_at", "outbox_scheduled ORDER BY due_at, seq"),
        };
        out.push_sql("SELECT id, aggregatetype, aggregateid, type, payload, headers");
        for time in ["created_at", due_at] {
            out.push_sql(", CAST(round((julianday(");
            out.push_sql(time);
            out.push_sql(") - 2440587.5) * 86400000.0) AS INTEGER)");
        }
        out.push_sql(" FROM ");
        out.push_sql(table);
        Ok(())
    }

    fn prune_marks<'b>(prune: &'b PruneMarks<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        refuse_schema(prune.schema)?;
        out.push_sql("DELETE FROM inbox WHERE (consumer, event_id) IN (SELECT consumer, event_id FROM inbox WHERE consumer = ");
        out.push_bind_param::<Text, str>(prune.consumer)?;
        out.push_sql(" AND received_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ");
        out.push_bind_param::<Double, f64>(&prune.retention_seconds)?;
        out.push_sql(" || ' seconds') AND received_at >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ");
        out.push_bind_param::<Double, f64>(&prune.oldest_seconds)?;
        // The order is that of the index, so SQLite reads nothing else.
        out.push_sql(" || ' seconds') ORDER BY received_at LIMIT ");
        out.push_bind_param::<BigInt, i64>(&prune.limit)?;
        out.push_sql(")");
        Ok(())
    }
}

fn refuse_schema(schema: Option<&str>) -> QueryResult<()> {
    schema.map_or(Ok(()), |_| Err(EmitError::NoSchemas.into()))
}

/// The values of the columns that an emitter sets.
fn push_row<'b>(row: &'b OutboxRow<'_>, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
    out.push_sql("(");
    out.push_bind_param::<Text, String>(&row.id_text)?;
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(row.record.aggregate_type())?;
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(row.record.aggregate_id())?;
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(row.record.event_type())?;
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Binary>, Option<&[u8]>>(&row.payload)?;
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Text>, Option<String>>(&row.headers)?;
    out.push_sql(", ");
    out.push_bind_param::<SmallInt, i16>(&row.shard)
}
