use diesel_outbox_core::__private::Due;
use diesel_outbox_core::Record;
use sea_orm::sea_query::{
    DeleteStatement, Expr, ExprTrait, InsertStatement, OnConflict, Order, Query, SelectStatement,
    UpdateStatement,
};

use super::{COLUMNS, Mark, OldMarks, insert_rows, row, table};

pub(super) fn insert(records: &[Record]) -> InsertStatement {
    insert_rows(table(None, "outbox"), COLUMNS, records.iter().map(row))
}

pub(super) fn schedule(record: &Record, due: Due) -> InsertStatement {
    let mut row = row(record);
    row.push(match due {
        Due::At(ms) => {
            Expr::cust_with_values("strftime('%Y-%m-%dT%H:%M:%fZ', ? / 1000.0, 'unixepoch')", [ms])
        }
        Due::After(micros) => Expr::cust_with_values(
            "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (? / 1000000.0) || ' seconds')",
            [micros],
        ),
    });
    let columns = COLUMNS.into_iter().chain(["due_at"]);
    insert_rows(table(None, "outbox_scheduled"), columns, std::iter::once(row))
}

pub(super) fn insert_mark(mark: Mark<'_>) -> InsertStatement {
    let row = vec![Expr::val(mark.consumer), Expr::val(mark.event_id.to_string())];
    let mut insert = insert_rows(table(None, "inbox"), ["consumer", "event_id"], std::iter::once(row));
    insert.on_conflict(OnConflict::new().do_nothing().to_owned());
    insert
}

/// If an error has aborted the transaction, the mark is gone.
pub(super) fn touch_mark(mark: Mark<'_>) -> UpdateStatement {
    let mut update = Query::update();
    update
        .table(table(None, "inbox"))
        .value("event_id", Expr::col("event_id"))
        .and_where(Expr::col("consumer").eq(mark.consumer))
        .and_where(Expr::col("event_id").eq(mark.event_id.to_string()));
    update
}

pub(super) fn delete_marks(marks: OldMarks<'_>) -> DeleteStatement {
    let received = |condition: &'static str, seconds: f64| Expr::cust_with_values(condition, [seconds]);
    let key = ["consumer", "event_id"];
    let mut old = Query::select();
    old.columns(key)
        .from(table(None, "inbox"))
        .and_where(Expr::col("consumer").eq(marks.consumer))
        .and_where(received(
            "received_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' seconds')",
            marks.retention_seconds,
        ))
        .and_where(received(
            "received_at >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' seconds')",
            marks.oldest_seconds,
        ))
        // The order is that of the index, so SQLite reads nothing else.
        .order_by("received_at", Order::Asc)
        .limit(marks.limit);
    let mut delete = Query::delete();
    delete.from_table(table(None, "inbox"));
    delete.and_where(Expr::tuple(key.map(Expr::col)).in_subquery(old));
    delete
}

pub(super) fn find_inbox() -> SelectStatement {
    let mut select = Query::select();
    select
        .expr(Expr::cust("1"))
        .from("sqlite_master")
        .and_where(Expr::col("type").eq("table"))
        .and_where(Expr::col("name").eq("inbox"));
    select
}
