use std::sync::Arc;

use sea_orm::{DbErr, SqlErr};

use crate::RecordError;

/// The reason why an event was refused before anything was sent to the database. The transaction can go on.
///
/// `emit` returns [`DbErr`], so `?` works wherever it works for SeaORM's own calls. [`EmitError::of`] finds this error in it. If the
/// database refused the event, the error is SeaORM's own, such as `DbErr::Exec(..)`, and contains no `EmitError`.
///
/// ```
/// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sea_orm::DbErr> {
/// use sea_orm::{Database, TransactionTrait};
/// use sea_orm_outbox::{Emit, EmitError, Record, RecordError};
///
/// # let db = Database::connect("sqlite::memory:").await?;
/// # sea_orm_outbox::Migrations::new().run(&db).await?;
/// let txn = db.begin().await?;
/// let error = txn.emit(&Record::new("order", "", "OrderPlaced")).await.unwrap_err();
/// assert!(matches!(EmitError::of(&error), Some(EmitError::Record(RecordError::Empty { .. }))));
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "sqlite", feature = "migrations")))]
/// # fn main() {}
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The event cannot be stored: its record breaks a limit, or its payload cannot be encoded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A schema was set, but the connection is to SQLite, which has no schemas.
    #[error("SQLite has no schemas: do not call `.schema(..)` for a connection to SQLite")]
    NoSchemas,
    /// The feature for the connection's database is off.
    #[error(
        "sea-orm-outbox was built without support for {database}: turn on its feature `postgres`, `mysql` or `sqlite`, the one for \
         this connection's database"
    )]
    NoOutbox {
        /// The database's name.
        database: &'static str,
    },
}

impl EmitError {
    /// Returns the `EmitError` that an error of SeaORM's contains, or `None` if it contains none.
    pub fn of(error: &DbErr) -> Option<&Self> {
        match error {
            DbErr::TryIntoErr { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }
}

/// Becomes a `DbErr::TryIntoErr`, the only one of SeaORM's errors that can hold another error.
impl From<EmitError> for DbErr {
    fn from(error: EmitError) -> Self {
        Self::TryIntoErr { from: "event", into: "row", source: Arc::new(error) }
    }
}

/// Returns the error's kind, of which there are few, for the event's span.
pub(super) fn error_type(error: &DbErr) -> String {
    let kind = match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => "UniqueViolation",
        Some(SqlErr::ForeignKeyConstraintViolation(_)) => "ForeignKeyViolation",
        // What OpenTelemetry's conventions call all others
        _ => "_OTHER",
    };
    kind.to_owned()
}

/// Adds advice to the error if the cause is known.
#[cfg(not(any(feature = "mysql", feature = "postgres", feature = "sqlite")))]
pub(super) fn explained(error: DbErr) -> DbErr {
    error
}

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(super) use self::advice::explained;

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod advice {
    use std::borrow::Cow;
    use std::error::Error;
    use std::fmt;
    use std::sync::Arc;

    use diesel_outbox_core::__private::{is_outbox_missing, is_statement_elsewhere};
    use sea_orm::sqlx::error::{DatabaseError, ErrorKind};
    use sea_orm::{DbErr, RuntimeErr, SqlxError};

    /// Adds advice to the error if the cause is known.
    pub(in crate::emit) fn explained(error: DbErr) -> DbErr {
        match error {
            DbErr::Exec(RuntimeErr::SqlxError(error)) => DbErr::Exec(RuntimeErr::SqlxError(hinted(error))),
            DbErr::Query(RuntimeErr::SqlxError(error)) => DbErr::Query(RuntimeErr::SqlxError(hinted(error))),
            error => error,
        }
    }

    fn hinted(error: Arc<SqlxError>) -> Arc<SqlxError> {
        match Arc::try_unwrap(error) {
            Ok(SqlxError::Database(inner)) => {
                let hint = hint(inner.message());
                if hint.is_empty() {
                    return Arc::new(SqlxError::Database(inner));
                }
                let message = inner.message().to_owned() + hint;
                Arc::new(SqlxError::Database(Box::new(Hinted { inner, message })))
            }
            Ok(error) => Arc::new(error),
            Err(shared) => shared,
        }
    }

    /// The database's error, with advice behind its message.
    #[derive(Debug)]
    struct Hinted {
        inner: Box<dyn DatabaseError>,
        message: String,
    }

    impl fmt::Display for Hinted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.message)
        }
    }

    impl Error for Hinted {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self.inner.as_error())
        }
    }

    impl DatabaseError for Hinted {
        fn message(&self) -> &str {
            &self.message
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            self.inner.code()
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }

        fn constraint(&self) -> Option<&str> {
            self.inner.constraint()
        }

        fn table(&self) -> Option<&str> {
            self.inner.table()
        }

        fn kind(&self) -> ErrorKind {
            self.inner.kind()
        }
    }

    fn hint(text: &str) -> &'static str {
        if is_outbox_missing(text) {
            " (run the migrations with `Migrations::new().run(&db)` or `outbox migrate`; if the tables are in a schema of their own, add \
             it to the connection's search_path or name it with `Outbox::new().schema(..)`)"
        } else if is_statement_elsewhere(text) {
            " (if there is a pooler in transaction mode before the database, let it know prepared statements, as PgBouncer does from 1.21 on \
             with `max_prepared_statements`, or connect to a pool in session mode: sqlx names each statement that it prepares, whatever \
             its cache holds)"
        } else if text == "database is locked" {
            " (SQLite has one writer at a time, and the relay writes too: roll this transaction back and run it again. To avoid the \
             error, begin a transaction that reads before it emits with `SqliteTransactionMode::Immediate`, because otherwise it fails \
             at once if another one has written since; and let connections wait longer for their turn, with sqlx's `busy_timeout`)"
        } else {
            ""
        }
    }
}
