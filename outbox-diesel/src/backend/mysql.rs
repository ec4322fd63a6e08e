use diesel::QueryResult;
use diesel::mysql::Mysql;
use diesel::query_builder::AstPass;
use diesel::sql_types::{BigInt, Binary, Double, Nullable, SmallInt, Text};
use diesel_outbox_core::__private::Due;

use super::sealed::Statements;
use super::{
    CancelScheduled, FindInbox, InsertMany, InsertMark, InsertOne, InsertScheduled, OutboxRow, PruneMarks,
    SelectRows, StillMarked, Table,
};

impl Statements for Mysql {
    #[cfg(feature = "migrations")]
    const MIGRATIONS: diesel_migrations::EmbeddedMigrations =
        diesel_migrations::embed_migrations!("migrations/mysql");

    #[cfg(feature = "migrations")]
    const MIGRATING: super::Migrating = super::Migrating::UnderLock {
        lock: diesel_outbox_core::__private::MYSQL_MIGRATION_LOCK,
        unlock: diesel_outbox_core::__private::MYSQL_MIGRATION_UNLOCK,
        find_record: diesel_outbox_core::__private::MYSQL_FIND_MIGRATION_RECORD,
    };

    #[cfg(feature = "migrations")]
    fn insert_version<'b>(
        insert: &'b super::InsertVersion<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        out.push_sql("INSERT INTO outbox_migration (version) VALUES (");
        out.push_bind_param::<Text, str>(insert.version)?;
        out.push_sql(")");
        Ok(())
    }

    fn insert_one<'b>(insert: &'b InsertOne<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        push_insert(insert.schema, out.reborrow())?;
        push_row(&insert.row, &mut out)?;
        out.push_sql(")");
        Ok(())
    }

    fn insert_many<'b>(insert: &'b InsertMany<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        // The text depends on the number of rows, so cached statements would pile up.
        out.unsafe_to_cache_prepared();
        push_insert(insert.schema, out.reborrow())?;
        for (position, row) in insert.rows.iter().enumerate() {
            if position > 0 {
                out.push_sql(", ");
            }
            push_row(row, &mut out)?;
            out.push_sql(")");
        }
        Ok(())
    }

    /// Only a duplicate is ignored: nothing else can be wrong with these values, whose length is checked before.
    fn insert_mark<'b>(mark: &'b InsertMark<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("INSERT IGNORE INTO ");
        push_table(mark.schema, "inbox", &mut out)?;
        out.push_sql(" (consumer, event_id, received_at) VALUES (");
        out.push_bind_param::<Binary, [u8]>(mark.consumer.as_bytes())?;
        out.push_sql(", ");
        out.push_bind_param::<Text, String>(&mark.event_id_text)?;
        out.push_sql(", UTC_TIMESTAMP(3))");
        Ok(())
    }

    /// A deadlock rolls the whole transaction back, and with it the mark. Whatever follows in it runs outside a transaction then, and
    /// its COMMIT succeeds.
    fn still_marked<'b>(still: &'b StillMarked<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        let StillMarked { mark, .. } = still;
        out.push_sql("UPDATE ");
        push_table(mark.schema, "inbox", &mut out)?;
        out.push_sql(" SET event_id = event_id WHERE consumer = ");
        out.push_bind_param::<Binary, [u8]>(mark.consumer.as_bytes())?;
        out.push_sql(" AND event_id = ");
        out.push_bind_param::<Text, String>(&mark.event_id_text)
    }

    fn find_inbox<'b>(find: &'b FindInbox<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("SELECT 1 FROM ");
        push_table(find.schema, "inbox", &mut out)?;
        out.push_sql(" LIMIT 0");
        Ok(())
    }

    fn insert_scheduled<'b>(
        insert: &'b InsertScheduled<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        out.push_sql("INSERT INTO ");
        push_table(insert.schema, "outbox_scheduled", &mut out)?;
        out.push_sql(
            " (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, due_at) VALUES ",
        );
        push_row(&insert.row, &mut out)?;
        match &insert.due {
            Due::At(ms) => {
                out.push_sql(", TIMESTAMP'1970-01-01 00:00:00' + INTERVAL ");
                out.push_bind_param::<BigInt, i64>(ms)?;
                out.push_sql(" * 1000 MICROSECOND)");
            }
            Due::After(micros) => {
                out.push_sql(", UTC_TIMESTAMP(6) + INTERVAL ");
                out.push_bind_param::<BigInt, i64>(micros)?;
                out.push_sql(" MICROSECOND)");
            }
        }
        Ok(())
    }

    fn cancel_scheduled<'b>(
        cancel: &'b CancelScheduled<'_>,
        mut out: AstPass<'_, 'b, Self>,
    ) -> QueryResult<()> {
        out.push_sql("DELETE FROM ");
        push_table(cancel.schema, "outbox_scheduled", &mut out)?;
        out.push_sql(" WHERE id = ");
        out.push_bind_param::<Text, String>(&cancel.id_text)
    }

    fn select_rows<'b>(select: &'b SelectRows<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        let (due_at, table, order) = match select.table {
            Table::Outbox => ("created_at", "outbox", " ORDER BY seq"),
            Table::Scheduled => ("due_at", "outbox_scheduled", " ORDER BY due_at, seq"),
        };
        out.push_sql("SELECT id, aggregatetype, aggregateid, type, payload, headers");
        for time in ["created_at", due_at] {
            out.push_sql(", CAST(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', ");
            out.push_sql(time);
            out.push_sql(") DIV 1000 AS SIGNED)");
        }
        out.push_sql(" FROM ");
        push_table(select.schema, table, &mut out)?;
        out.push_sql(order);
        Ok(())
    }

    fn prune_marks<'b>(prune: &'b PruneMarks<'_>, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("DELETE FROM ");
        push_table(prune.schema, "inbox", &mut out)?;
        out.push_sql(" WHERE consumer = ");
        out.push_bind_param::<Binary, [u8]>(prune.consumer.as_bytes())?;
        out.push_sql(" AND received_at < UTC_TIMESTAMP(3) - INTERVAL ");
        out.push_bind_param::<Double, f64>(&prune.retention_seconds)?;
        out.push_sql(" SECOND AND received_at >= UTC_TIMESTAMP(3) - INTERVAL ");
        out.push_bind_param::<Double, f64>(&prune.oldest_seconds)?;
        // The order is that of the index, so the database reads nothing else.
        out.push_sql(" SECOND ORDER BY received_at LIMIT ");
        out.push_bind_param::<BigInt, i64>(&prune.limit)
    }
}

/// A schema is a database here.
fn push_table(schema: Option<&str>, table: &str, out: &mut AstPass<'_, '_, Mysql>) -> QueryResult<()> {
    if let Some(schema) = schema {
        out.push_identifier(schema)?;
        out.push_sql(".");
    }
    out.push_sql(table);
    Ok(())
}

fn push_insert(schema: Option<&str>, mut out: AstPass<'_, '_, Mysql>) -> QueryResult<()> {
    out.push_sql("INSERT INTO ");
    push_table(schema, "outbox", &mut out)?;
    out.push_sql(" (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) VALUES ");
    Ok(())
}

/// The values of the columns that an emitter sets, and of `created_at`.
fn push_row<'b>(row: &'b OutboxRow<'_>, out: &mut AstPass<'_, 'b, Mysql>) -> QueryResult<()> {
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
    out.push_bind_param::<SmallInt, i16>(&row.shard)?;
    out.push_sql(", UTC_TIMESTAMP(3)");
    Ok(())
}
