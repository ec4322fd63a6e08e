//! Reading rows back: all that is in the outbox, and what is scheduled.

#[cfg(feature = "async")]
use std::future::Future;

use diesel::QueryResult;
use diesel::backend::Backend;
use diesel::connection::LoadConnection;
use diesel::query_builder::Query;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel_outbox_core::__private::StoredRow;

/// The statement that selects rows in the order in which they are to be sent.
pub struct SelectRows<'a> {
    pub(super) table: Table,
    pub(crate) schema: Option<&'a str>,
}

/// Where the rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "only a test reads what was emitted"))]
    Outbox,
    Scheduled,
}

impl<'a> SelectRows<'a> {
    pub(crate) fn new(table: Table, schema: Option<&'a str>) -> Self {
        Self { table, schema }
    }
}

/// The columns are converted in SQL, so that they have the same types on every database. The last two are times in milliseconds since 1970.
type Columns = (Text, Text, Text, Text, Nullable<Binary>, Nullable<Text>, BigInt, BigInt);
type Values = (String, String, String, String, Option<Vec<u8>>, Option<String>, i64, i64);

impl Query for SelectRows<'_> {
    type SqlType = Columns;
}

/// A row that was read.
#[derive(Debug)]
pub struct LoadedRow {
    pub(crate) row: StoredRow,
    /// When it is due, in milliseconds since 1970.
    pub(crate) due_at: i64,
}

impl From<Values> for LoadedRow {
    fn from(values: Values) -> Self {
        let (id, aggregate_type, aggregate_id, event_type, payload, headers, created_at, due_at) = values;
        Self {
            row: StoredRow { id, aggregate_type, aggregate_id, event_type, payload, headers, created_at },
            due_at,
        }
    }
}

/// A backend whose rows can be read. A trait of its own, because a function that is generic in the backend cannot know that.
pub trait Load: Backend + Sized {
    fn load<C: LoadConnection<Backend = Self>>(
        conn: &mut C,
        select: &SelectRows<'_>,
    ) -> QueryResult<Vec<LoadedRow>>;

    #[cfg(feature = "async")]
    fn load_async<C: diesel_async::AsyncConnection<Backend = Self>>(
        conn: &mut C,
        select: SelectRows<'_>,
    ) -> impl Future<Output = QueryResult<Vec<LoadedRow>>> + Send;
}

macro_rules! load {
    ($feature:literal, $backend:ty) => {
        #[cfg(feature = $feature)]
        impl Load for $backend {
            fn load<C: LoadConnection<Backend = Self>>(
                conn: &mut C,
                select: &SelectRows<'_>,
            ) -> QueryResult<Vec<LoadedRow>> {
                rows_of(conn, select)
            }

            #[cfg(feature = "async")]
            async fn load_async<C: diesel_async::AsyncConnection<Backend = Self>>(
                conn: &mut C,
                select: SelectRows<'_>,
            ) -> QueryResult<Vec<LoadedRow>> {
                let rows: Vec<Values> = diesel_async::RunQueryDsl::load(select, conn).await?;
                Ok(rows.into_iter().map(LoadedRow::from).collect())
            }
        }
    };
}

load!("mysql", diesel::mysql::Mysql);
load!("postgres", diesel::pg::Pg);
load!("sqlite", diesel::sqlite::Sqlite);

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
fn rows_of<C>(conn: &mut C, select: &SelectRows<'_>) -> QueryResult<Vec<LoadedRow>>
where
    C: LoadConnection<Backend: super::OutboxBackend + diesel::expression::QueryMetadata<Columns>>,
    Values: diesel::deserialize::FromSqlRow<Columns, C::Backend>,
{
    use diesel::deserialize::FromSqlRow;

    conn.load(select)?
        .map(|row| {
            let values =
                Values::build_from_row(&row?).map_err(diesel::result::Error::DeserializationError)?;
            Ok(values.into())
        })
        .collect()
}
