use diesel_outbox_core::__private::Due;
use diesel_outbox_core::Record;
use sea_orm::sea_query::{
    DeleteStatement, Expr, ExprTrait, InsertStatement, Order, Query, SelectStatement, UpdateStatement,
};
use sea_orm::{DbErr, ExecResult, SqlErr};

use super::{COLUMNS, Mark, OldMarks, insert_rows, row, table};

const NOW: &str = "UTC_TIMESTAMP(3)";

/// A schema is a database here. The table has no default for the time, because MySQL before 8.0.13 has none that is in UTC.
pub(super) fn insert(records: &[Record], schema: Option<&str>) -> InsertStatement {
    let rows = records.iter().map(|record| {
        let mut row = row(record);
        row.push(Expr::cust(NOW));
        row
    });
    insert_rows(table(schema, "outbox"), COLUMNS.into_iter().chain(["created_at"]), rows)
}

pub(super) fn schedule(record: &Record, due: Due, schema: Option<&str>) -> InsertStatement {
    let mut row = row(record);
    row.push(Expr::cust(NOW));
    row.push(match due {
        Due::At(ms) => {
            Expr::cust_with_values("TIMESTAMP'1970-01-01 00:00:00' + INTERVAL ? * 1000 MICROSECOND", [ms])
        }
        Due::After(micros) => Expr::cust_with_values("UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND", [micros]),
    });
    let columns = COLUMNS.into_iter().chain(["created_at", "due_at"]);
    insert_rows(table(schema, "outbox_scheduled"), columns, std::iter::once(row))
}

pub(super) fn insert_mark(mark: Mark<'_>, schema: Option<&str>) -> InsertStatement {
    let row = vec![consumer(mark.consumer), Expr::val(mark.event_id.to_string()), Expr::cust(NOW)];
    insert_rows(table(schema, "inbox"), ["consumer", "event_id", "received_at"], std::iter::once(row))
}

/// A duplicate is an error, which ends only its statement. sea-query has no `INSERT IGNORE`, and `ON DUPLICATE KEY UPDATE` reports the
/// same number of rows for a duplicate as for a new mark.
pub(super) fn inserted(outcome: Result<ExecResult, DbErr>) -> Result<bool, DbErr> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) => match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => Ok(false),
            _ => Err(error),
        },
    }
}

/// A deadlock rolls the whole transaction back, and with it the mark. Whatever follows in it runs outside a transaction then, and its
/// COMMIT succeeds.
pub(super) fn touch_mark(mark: Mark<'_>, schema: Option<&str>) -> UpdateStatement {
    let mut update = Query::update();
    update
        .table(table(schema, "inbox"))
        .value("event_id", Expr::col("event_id"))
        .and_where(Expr::col("consumer").eq(mark.consumer.as_bytes()))
        .and_where(Expr::col("event_id").eq(mark.event_id.to_string()));
    update
}

pub(super) fn delete_marks(marks: OldMarks<'_>, schema: Option<&str>) -> DeleteStatement {
    let received = |condition: &'static str, seconds: f64| Expr::cust_with_values(condition, [seconds]);
    let mut delete = Query::delete();
    delete
        .from_table(table(schema, "inbox"))
        .and_where(Expr::col("consumer").eq(marks.consumer.as_bytes()))
        .and_where(received("received_at < UTC_TIMESTAMP(3) - INTERVAL ? SECOND", marks.retention_seconds))
        .and_where(received("received_at >= UTC_TIMESTAMP(3) - INTERVAL ? SECOND", marks.oldest_seconds))
        // The order is that of the index, so the database reads nothing else.
        .order_by("received_at", Order::Asc)
        .limit(marks.limit);
    delete
}

pub(super) fn find_inbox(schema: Option<&str>) -> SelectStatement {
    let database = match schema {
        Some(schema) => Expr::val(schema),
        None => Expr::cust("DATABASE()"),
    };
    let mut select = Query::select();
    select
        .expr(Expr::cust("1"))
        .from(("information_schema", "tables"))
        .and_where(Expr::col("table_schema").eq(database))
        .and_where(Expr::col("table_name").eq("inbox"));
    select
}

/// The column holds bytes, because MySQL takes texts for equal that differ in trailing spaces.
fn consumer(name: &str) -> Expr {
    Expr::val(name.as_bytes())
}
