use diesel_outbox_core::__private::{Due, quoted_identifier};
use diesel_outbox_core::{Record, advisory_locks};
use sea_orm::sea_query::{
    CommonTableExpression, DeleteStatement, Expr, ExprTrait, InsertStatement, OnConflict, Order, Query,
    SelectStatement, Value, WithClause, WithQuery,
};
use sea_orm::{DbErr, RuntimeErr};

use super::{COLUMNS, Mark, OldMarks, headers, payload, table};

fn row(record: &Record) -> Vec<Expr> {
    vec![
        Expr::val(record.id()),
        Expr::val(record.aggregate_type()),
        Expr::val(record.aggregate_id()),
        Expr::val(record.event_type()),
        Expr::val(payload(record)),
        Expr::cust_with_values("$1::json", [headers(record)]),
        Expr::val(record.shard()),
    ]
}

pub(super) fn schedule(record: &Record, due: Due, schema: Option<&str>) -> InsertStatement {
    let mut row = row(record);
    row.push(match due {
        Due::At(ms) => {
            Expr::cust_with_values("timestamptz 'epoch' + $1::bigint * interval '1 millisecond'", [ms])
        }
        Due::After(micros) => {
            Expr::cust_with_values("clock_timestamp() + $1::bigint * interval '1 microsecond'", [micros])
        }
    });
    let mut insert = Query::insert();
    insert.into_table(table(schema, "outbox_scheduled")).columns(COLUMNS.into_iter().chain(["due_at"]));
    insert.values_panic(row);
    insert
}

pub(super) fn insert_one(record: &Record, schema: Option<&str>) -> InsertStatement {
    let row = row(record);
    let mut insert = Query::insert();
    insert.into_table(table(schema, "outbox")).columns(COLUMNS);
    insert.values_panic(row).returning(Query::returning().exprs([wake(schema)]));
    insert
}

/// One array for each column, so that the statement has the same text for any number of rows.
///
/// The outer `SELECT` may run before the `INSERT`. Nevertheless the table is locked before `WAKE` tries the lock of a sleeping
/// relay, which the relay relies on: PostgreSQL locks the tables that a statement inserts into before it runs any part of it.
pub(super) fn insert_many(records: &[Record], schema: Option<&str>) -> Result<WithQuery, DbErr> {
    let texts = |text: fn(&Record) -> &str| -> Value {
        Value::from(records.iter().map(|record| text(record).to_owned()).collect::<Vec<_>>())
    };
    let ids: Vec<_> = records.iter().map(Record::id).collect();
    // sea-query's arrays hold no nulls.
    let payloads: Vec<Vec<u8>> = records.iter().map(|r| r.payload().unwrap_or_default().to_vec()).collect();
    let has_payload: Vec<bool> = records.iter().map(|record| record.payload().is_some()).collect();
    let all_headers: Vec<String> = records.iter().map(|r| headers(r).unwrap_or_default()).collect();
    let shards: Vec<i16> = records.iter().map(Record::shard).collect();

    let mut columns = Query::select();
    columns
        .expr_as(Expr::cust_with_values("pg_catalog.unnest($1::uuid[])", [ids]), "id")
        .expr_as(
            Expr::cust_with_values("pg_catalog.unnest($1::text[])", [texts(Record::aggregate_type)]),
            "aggregatetype",
        )
        .expr_as(
            Expr::cust_with_values("pg_catalog.unnest($1::text[])", [texts(Record::aggregate_id)]),
            "aggregateid",
        )
        .expr_as(Expr::cust_with_values("pg_catalog.unnest($1::text[])", [texts(Record::event_type)]), "type")
        .expr_as(Expr::cust_with_values("pg_catalog.unnest($1::bytea[])", [payloads]), "payload")
        .expr_as(Expr::cust_with_values("pg_catalog.unnest($1::bool[])", [has_payload]), "has_payload")
        .expr_as(Expr::cust_with_values("pg_catalog.unnest($1::text[])", [all_headers]), "headers")
        .expr_as(Expr::cust_with_values("pg_catalog.unnest($1::smallint[])", [shards]), "shard")
        .expr_as(
            Expr::cust_with_values("generate_series(1, $1::bigint)", [records.len() as i64]),
            "position",
        );
    let mut rows = Query::select();
    rows.columns(["id", "aggregatetype", "aggregateid", "type"])
        .expr(Expr::cust("CASE WHEN has_payload THEN payload END"))
        .expr(Expr::cust("NULLIF(headers, '')::json"))
        .column("shard")
        .from_subquery(columns, "event")
        .order_by("position", Order::Asc);
    let mut insert = Query::insert();
    insert.into_table(table(schema, "outbox")).columns(COLUMNS);
    insert.select_from(rows).map_err(|error| DbErr::Query(RuntimeErr::Internal(error.to_string())))?;
    let mut emitted = CommonTableExpression::new();
    emitted.table_name("emitted").query(insert);
    let mut with = WithClause::new();
    with.cte(emitted);
    let mut select = Query::select();
    select.expr(wake(schema));
    Ok(with.query(select))
}

pub(super) fn insert_mark(mark: Mark<'_>, schema: Option<&str>) -> InsertStatement {
    let mut insert = Query::insert();
    insert.into_table(table(schema, "inbox")).columns(["consumer", "event_id"]);
    insert.values_panic([Expr::val(mark.consumer), Expr::val(mark.event_id)]);
    insert.on_conflict(OnConflict::new().do_nothing().to_owned());
    insert
}

/// Fails in a transaction that an error has aborted. PostgreSQL answers a COMMIT of such a transaction with success although it rolls
/// back.
pub(super) fn still_open() -> SelectStatement {
    let mut select = Query::select();
    select.expr(Expr::cust("1"));
    select
}

pub(super) fn delete_marks(marks: OldMarks<'_>, schema: Option<&str>) -> DeleteStatement {
    let mut old = Query::select();
    old.column("ctid")
        .from(table(schema, "inbox"))
        .and_where(Expr::col("consumer").eq(marks.consumer))
        .and_where(received(
            "received_at < now() - pg_catalog.make_interval(secs => $1)",
            marks.retention_seconds,
        ))
        .and_where(received(
            "received_at >= now() - pg_catalog.make_interval(secs => $1)",
            marks.oldest_seconds,
        ))
        // The order is that of the index, so PostgreSQL reads nothing else.
        .order_by("received_at", Order::Asc)
        .limit(marks.limit);
    let mut delete = Query::delete();
    delete.from_table(table(schema, "inbox"));
    delete
        .and_where(Expr::cust_with_expr("ctid = ANY (ARRAY $1)", Expr::SubQuery(None, Box::new(old.into()))));
    delete
}

pub(super) fn find_inbox(schema: Option<&str>) -> SelectStatement {
    let table =
        schema.map_or_else(|| "inbox".to_owned(), |schema| format!("{}.inbox", quoted_identifier(schema)));
    let mut select = Query::select();
    select.expr(Expr::cust("1")).and_where(Expr::cust_with_values("to_regclass($1) IS NOT NULL", [table]));
    select
}

fn received(condition: &'static str, seconds: f64) -> Expr {
    Expr::cust_with_values(condition, [seconds])
}

fn wake(schema: Option<&str>) -> Expr {
    match schema {
        None => Expr::cust(advisory_locks::WAKE),
        Some(schema) => Expr::cust(advisory_locks::wake_in(&quoted_identifier(schema))),
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::sea_query::PostgresQueryBuilder;

    use super::*;

    #[test]
    fn the_statement_for_many_events_has_one_text() {
        let records =
            |count: usize| -> Vec<Record> { (0..count).map(|_| Record::new("a", "1", "E")).collect() };
        let text = |count| insert_many(&records(count), None).unwrap().build(PostgresQueryBuilder).0;
        assert_eq!(text(2), text(1_000));
    }
}
