use diesel::result::{DatabaseErrorInformation, Error as DieselError};
use diesel_outbox_core::__private::{is_outbox_missing, is_statement_elsewhere};

use crate::RecordError;

/// The reason why an event was refused before anything was sent to the database. The transaction can go on.
///
/// `emit` returns [`diesel::result::Error`], so `?` works in every closure in which it works for Diesel's own calls.
/// [`EmitError::of`] finds this error in it. If the database refused the event, the error is Diesel's own, such as
/// `DatabaseError(UniqueViolation, ..)`, and contains no `EmitError`.
///
/// ```
/// # use diesel::prelude::*;
/// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_outbox::{Emit, EmitError, Record};
///
/// # let conn = &mut SqliteConnection::establish(":memory:")?;
/// # diesel_outbox::Migrations::new().run(conn)?;
/// let error = conn.emit(&Record::new("order", "7", "OrderPlaced")).unwrap_err();
/// assert!(matches!(EmitError::of(&error), Some(EmitError::NotInTransaction)));
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "sqlite", feature = "migrations")))]
/// # fn main() {}
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// No transaction is open, so the event could be stored without the change that it reports. Emit in the transaction that makes
    /// the change.
    #[error(
        "emit was called outside a transaction: put the change and the emit into one \
         `conn.transaction(|c| {{ ...; c.emit(&event)?; diesel::QueryResult::Ok(()) }})`, and call `emit` on the closure's \
         `c` (let Diesel open the transaction, because it does not notice a BEGIN that you send yourself)"
    )]
    NotInTransaction,
    /// The event cannot be stored: its record breaks a limit, or its payload cannot be encoded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A schema was set, but the connection is to SQLite, which has no schemas.
    #[error("SQLite has no schemas: do not call `.schema(..)` for a connection to SQLite")]
    NoSchemas,
    /// The connection is an enum whose variant is not listed in [`multi_connection!`](crate::multi_connection).
    #[error(
        "this connection's database cannot hold an outbox: its variant is not listed in `diesel_outbox::multi_connection!`. Use a \
         connection to PostgreSQL, MySQL, MariaDB or SQLite, or list its variant if it is one"
    )]
    NoOutbox,
}

impl EmitError {
    /// Returns the `EmitError` that an error of Diesel's contains, or `None` if it contains none.
    pub fn of(error: &DieselError) -> Option<&Self> {
        match error {
            DieselError::QueryBuilderError(inner) | DieselError::SerializationError(inner) => {
                inner.downcast_ref()
            }
            _ => None,
        }
    }
}

/// [`Record`](EmitError::Record) becomes a `SerializationError`, and all others a `QueryBuilderError`.
impl From<EmitError> for DieselError {
    fn from(error: EmitError) -> Self {
        match error {
            EmitError::Record(_) => Self::SerializationError(Box::new(error)),
            EmitError::NotInTransaction | EmitError::NoSchemas | EmitError::NoOutbox => {
                Self::QueryBuilderError(Box::new(error))
            }
        }
    }
}

/// Returns the error's kind, of which there are few, for the event's span.
pub(super) fn error_type(error: &DieselError) -> String {
    match error {
        DieselError::DatabaseError(kind, _) => format!("{kind:?}"),
        // What OpenTelemetry's conventions call all others
        _ => "_OTHER".to_owned(),
    }
}

/// Adds advice to the error if the cause is known.
pub(super) fn explained(error: DieselError) -> DieselError {
    match error {
        DieselError::DatabaseError(kind, information) => match Advice::on(information.message()) {
            Some(advice) => DieselError::DatabaseError(kind, Box::new(Advised::new(information, &advice))),
            None => DieselError::DatabaseError(kind, information),
        },
        error => error,
    }
}

/// What to do about an error of the database.
struct Advice {
    /// It stands behind the message, because Diesel shows only the message of an error.
    short: &'static str,
    /// The hint, which explains it.
    long: &'static str,
}

/// The database's error with advice.
struct Advised {
    information: Box<dyn DatabaseErrorInformation + Send + Sync>,
    message: String,
    hint: String,
}

impl Advised {
    fn new(information: Box<dyn DatabaseErrorInformation + Send + Sync>, advice: &Advice) -> Self {
        let message = format!("{}: {}", information.message(), advice.short);
        let hints = information.hint().into_iter().chain([advice.long]);
        let hint = hints.collect::<Vec<_>>().join(" ");
        Self { information, message, hint }
    }
}

impl DatabaseErrorInformation for Advised {
    fn message(&self) -> &str {
        &self.message
    }

    fn details(&self) -> Option<&str> {
        self.information.details()
    }

    fn hint(&self) -> Option<&str> {
        Some(&self.hint)
    }

    fn table_name(&self) -> Option<&str> {
        self.information.table_name()
    }

    fn column_name(&self) -> Option<&str> {
        self.information.column_name()
    }

    fn constraint_name(&self) -> Option<&str> {
        self.information.constraint_name()
    }

    fn statement_position(&self) -> Option<i32> {
        self.information.statement_position()
    }
}

impl Advice {
    fn on(message: &str) -> Option<Self> {
        if is_outbox_missing(message) {
            return Some(Self {
                short: "run the migrations, or name the schema that has the tables",
                long: "Create the tables with `Migrations::new().run(..)` or `outbox migrate`. If they are in a schema of their own, \
                       add it to the connection's `search_path`, or name it with `Outbox::new().schema(..)`.",
            });
        }
        if is_statement_elsewhere(message) {
            return Some(Self {
                short: "if there is a pooler in transaction mode before the database, turn off the connection's cache of prepared \
                        statements: `conn.set_prepared_statement_cache_size(CacheSize::Disabled)`",
                long: "Such a pooler, PgBouncer for example, gives each transaction another session of the server, and a statement is \
                       prepared in one session only. docs/poolers.md in the repository shows how to set up pools for it.",
            });
        }
        (message == "database is locked").then_some(Self {
            short: "roll this transaction back and run it again. To avoid the error, set a `busy_timeout`, and use \
                    `conn.immediate_transaction(|c| ..)` if a transaction reads before it emits",
            long: "SQLite has one writer at a time, and the relay writes too. With a `busy_timeout` writers wait for their turn. A \
                   transaction that reads before it emits fails at once all the same, if another one has written since. An \
                   immediate transaction waits for its turn before it reads.",
        })
    }
}
