//! The SQL of each database. The statements are sea-query's and not text, because a `RestrictedTransaction` refuses text: it must know
//! which tables a statement touches.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use diesel_outbox_core::__private::{Due, StoredRow};
use diesel_outbox_core::{Record, wire};
use sea_orm::sea_query::{
    Alias, DeleteStatement, Expr, ExprTrait, InsertStatement, IntoTableRef, Order, Query, SelectStatement,
    TableRef, Value,
};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult};
use uuid::Uuid;

use crate::EmitError;

/// A database that can hold an outbox, and the schema of the tables in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backend<'a> {
    dialect: Dialect,
    schema: Option<&'a str>,
}

#[derive(Debug, Clone, Copy)]
enum Dialect {
    #[cfg(feature = "postgres")]
    Postgres,
    #[cfg(feature = "mysql")]
    Mysql,
    #[cfg(feature = "sqlite")]
    Sqlite,
}

/// The mark of an event in the inbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) event_id: Uuid,
}

/// Which marks to delete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OldMarks<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) retention_seconds: f64,
    /// Rows older than this are skipped.
    pub(crate) oldest_seconds: f64,
    pub(crate) limit: u64,
}

impl<'a> Backend<'a> {
    pub(crate) fn of<C: ConnectionTrait>(c: &C, schema: Option<&'a str>) -> Result<Self, EmitError> {
        let dialect: Dialect = match c.get_database_backend() {
            #[cfg(feature = "postgres")]
            DbBackend::Postgres => Dialect::Postgres,
            #[cfg(feature = "mysql")]
            DbBackend::MySql => Dialect::Mysql,
            #[cfg(feature = "sqlite")]
            DbBackend::Sqlite if schema.is_some() => return Err(EmitError::NoSchemas),
            #[cfg(feature = "sqlite")]
            DbBackend::Sqlite => Dialect::Sqlite,
            other => return Err(EmitError::NoOutbox { database: other.as_str() }),
        };
        Ok(Self { dialect, schema })
    }

    pub(crate) async fn insert_one<C: ConnectionTrait>(self, c: &C, record: &Record) -> Result<(), DbErr> {
        let insert: InsertStatement = match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => postgres::insert_one(record, self.schema),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => mysql::insert(std::slice::from_ref(record), self.schema),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => sqlite::insert(std::slice::from_ref(record)),
        };
        c.execute(&insert).await.map(drop)
    }

    pub(crate) async fn insert_many<C>(self, c: &C, records: &[Record]) -> Result<(), DbErr>
    where
        C: ConnectionTrait,
    {
        match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => c.execute(&postgres::insert_many(records, self.schema)?).await.map(drop),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => c.execute(&mysql::insert(records, self.schema)).await.map(drop),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => c.execute(&sqlite::insert(records)).await.map(drop),
        }
    }

    /// Inserts the mark, and returns whether it was not there.
    pub(crate) async fn insert_mark<C: ConnectionTrait>(self, c: &C, mark: Mark<'_>) -> Result<bool, DbErr> {
        match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => inserted(c.execute(&postgres::insert_mark(mark, self.schema)).await),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => mysql::inserted(c.execute(&mysql::insert_mark(mark, self.schema)).await),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => inserted(c.execute(&sqlite::insert_mark(mark)).await),
        }
    }

    /// Returns whether the transaction that inserted the mark is open and can be committed. If an error has aborted it, this fails, or
    /// returns that it is not.
    pub(crate) async fn is_marked<C: ConnectionTrait>(self, c: &C, mark: Mark<'_>) -> Result<bool, DbErr> {
        match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => Ok(c.query_one(&postgres::still_open()).await?.is_some()),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => inserted(c.execute(&mysql::touch_mark(mark, self.schema)).await),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => inserted(c.execute(&sqlite::touch_mark(mark)).await),
        }
    }

    /// Deletes marks, the oldest first, and returns their number.
    pub(crate) async fn delete_marks<C>(self, c: &C, marks: OldMarks<'_>) -> Result<u64, DbErr>
    where
        C: ConnectionTrait,
    {
        let delete: DeleteStatement = match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => postgres::delete_marks(marks, self.schema),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => mysql::delete_marks(marks, self.schema),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => sqlite::delete_marks(marks),
        };
        Ok(c.execute(&delete).await?.rows_affected())
    }

    /// Stores the record until it is due.
    pub(crate) async fn schedule<C>(self, c: &C, record: &Record, due: Due) -> Result<(), DbErr>
    where
        C: ConnectionTrait,
    {
        let insert: InsertStatement = match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => postgres::schedule(record, due, self.schema),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => mysql::schedule(record, due, self.schema),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => sqlite::schedule(record, due),
        };
        c.execute(&insert).await.map(drop)
    }

    /// Deletes the record if it is not due yet, and returns whether it was there.
    pub(crate) async fn cancel<C: ConnectionTrait>(self, c: &C, id: Uuid) -> Result<bool, DbErr> {
        let id: Expr = match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => Expr::val(id),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => Expr::val(id.to_string()),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => Expr::val(id.to_string()),
        };
        let mut delete = Query::delete();
        delete.from_table(table(self.schema, "outbox_scheduled")).and_where(Expr::col("id").eq(id));
        Ok(c.execute(&delete).await?.rows_affected() > 0)
    }

    /// Returns rows in the order in which they are to be sent, with the time at which each is due.
    pub(crate) async fn load<C: ConnectionTrait>(
        self,
        c: &C,
        stored: Stored,
    ) -> Result<Vec<LoadedRow>, DbErr> {
        let mut select = Query::select();
        let (name, due_at) = match stored {
            Stored::Outbox => ("outbox", "created_at"),
            Stored::Scheduled => ("outbox_scheduled", "due_at"),
        };
        let text = |column: &'static str| {
            #[cfg(feature = "postgres")]
            if matches!(self.dialect, Dialect::Postgres) {
                return Expr::col(column).cast_as("text");
            }
            Expr::col(column)
        };
        for column in ["id", "aggregatetype", "aggregateid", "type", "headers"] {
            select.expr_as(text(column), column);
        }
        select.column("payload");
        for (column, name) in [("created_at", "created_ms"), (due_at, "due_ms")] {
            select.expr_as(Expr::cust(self.dialect.unix_ms(column)), name);
        }
        select.from(table(self.schema, name));
        if stored == Stored::Scheduled {
            select.order_by("due_at", Order::Asc);
        }
        select.order_by("seq", Order::Asc);
        let rows = c.query_all(&select).await?;
        rows.iter().map(LoadedRow::of).collect()
    }

    pub(crate) async fn has_inbox<C: ConnectionTrait>(self, c: &C) -> Result<bool, DbErr> {
        let find: SelectStatement = match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => postgres::find_inbox(self.schema),
            #[cfg(feature = "mysql")]
            Dialect::Mysql => mysql::find_inbox(self.schema),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => sqlite::find_inbox(),
        };
        Ok(c.query_one(&find).await?.is_some())
    }
}

/// Where rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "only a test reads what was emitted"))]
    Outbox,
    Scheduled,
}

/// A row that was read.
pub(crate) struct LoadedRow {
    pub(crate) row: StoredRow,
    /// When it is due, in milliseconds since 1970.
    pub(crate) due_at: i64,
}

impl LoadedRow {
    fn of(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            row: StoredRow {
                id: row.try_get("", "id")?,
                aggregate_type: row.try_get("", "aggregatetype")?,
                aggregate_id: row.try_get("", "aggregateid")?,
                event_type: row.try_get("", "type")?,
                payload: row.try_get("", "payload")?,
                headers: row.try_get("", "headers")?,
                created_at: row.try_get("", "created_ms")?,
            },
            due_at: row.try_get("", "due_ms")?,
        })
    }
}

impl Dialect {
    /// An expression for a time in milliseconds since 1970.
    fn unix_ms(self, column: &str) -> String {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => format!("floor(extract(epoch FROM {column}) * 1000)::bigint"),
            #[cfg(feature = "mysql")]
            Self::Mysql => format!(
                "CAST(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {column}) DIV 1000 AS SIGNED)"
            ),
            #[cfg(feature = "sqlite")]
            Self::Sqlite => format!("CAST(round((julianday({column}) - 2440587.5) * 86400000.0) AS INTEGER)"),
        }
    }
}

/// The columns of the outbox that every database is given.
const COLUMNS: [&str; 7] = ["id", "aggregatetype", "aggregateid", "type", "payload", "headers", "shard"];

fn inserted(outcome: Result<sea_orm::ExecResult, DbErr>) -> Result<bool, DbErr> {
    Ok(outcome?.rows_affected() > 0)
}

fn table(schema: Option<&str>, name: &'static str) -> TableRef {
    match schema {
        Some(schema) => (Alias::new(schema), name).into_table_ref(),
        None => name.into_table_ref(),
    }
}

/// An insert of one row for each record, with the values of these columns.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
fn insert_rows(
    into: TableRef,
    columns: impl IntoIterator<Item = &'static str>,
    rows: impl Iterator<Item = Vec<Expr>>,
) -> InsertStatement {
    let mut insert = Query::insert();
    insert.into_table(into).columns(columns);
    for row in rows {
        // Each row has as many values as there are columns.
        insert.values_panic(row);
    }
    insert
}

/// A record's columns as values, with the id and the headers as texts.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
fn row(record: &Record) -> Vec<Expr> {
    vec![
        Expr::val(record.id().to_string()),
        Expr::val(record.aggregate_type()),
        Expr::val(record.aggregate_id()),
        Expr::val(record.event_type()),
        Expr::val(payload(record)),
        Expr::val(headers(record)),
        Expr::val(record.shard()),
    ]
}

fn payload(record: &Record) -> Value {
    Value::from(record.payload().map(<[u8]>::to_vec))
}

fn headers(record: &Record) -> Option<String> {
    wire::encode_headers(record.headers())
}
