use diesel::result::{DatabaseErrorInformation, Error as DieselError};

use crate::RecordError;

/// Why an event was refused before anything was sent to the database. The transaction can go on.
///
/// `emit` returns [`diesel::result::Error`], so that `?` works in every closure in which it works for Diesel's own calls.
/// [`EmitError::of`] finds this error in it. If the database itself refused, the error is Diesel's own, such as
/// `DatabaseError(UniqueViolation, ..)`.
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
    /// No transaction is open. The event would be stored even if the change that it reports is not.
    #[error(
        "emit was called outside a transaction: put the change and the emit into one \
         `conn.transaction(|c| {{ ...; c.emit(&event)?; diesel::QueryResult::Ok(()) }})`, and emit on the `c` that the \
         closure is given (Diesel must have opened the transaction: it does not know of a BEGIN sent by hand)"
    )]
    NotInTransaction,
    /// The event cannot be stored.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A schema was named, but the database has none.
    #[error("SQLite has no schemas: leave out `.schema(..)` for a connection to it")]
    NoSchemas,
    /// The connection is an enum, and `multi_connection!` does not name the variant that it is.
    #[error(
        "this connection is to a database that cannot hold an outbox: `diesel_outbox::multi_connection!` does not name its variant"
    )]
    NoOutbox,
}

impl EmitError {
    /// Returns this crate's error that an error of Diesel's holds, if it holds one.
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

/// The same error with what to do, if that is known.
pub(super) fn explained(error: DieselError) -> DieselError {
    match error {
        DieselError::DatabaseError(kind, information) => {
            let hint = hint(information.message());
            if hint.is_empty() {
                return DieselError::DatabaseError(kind, information);
            }
            let message = information.message().to_owned() + hint;
            DieselError::DatabaseError(kind, Box::new(Hinted { information, message }))
        }
        error => error,
    }
}

/// What the database said, and what to do.
struct Hinted {
    information: Box<dyn DatabaseErrorInformation + Send + Sync>,
    message: String,
}

impl DatabaseErrorInformation for Hinted {
    fn message(&self) -> &str {
        &self.message
    }

    fn details(&self) -> Option<&str> {
        self.information.details()
    }

    fn hint(&self) -> Option<&str> {
        self.information.hint()
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

fn hint(text: &str) -> &'static str {
    let is_missing = ["\"outbox\" does not exist", ".outbox\" does not exist", "no such table: outbox"];
    if is_missing.iter().any(|missing| text.contains(missing)) {
        " (run the migrations, `Migrations::new().run(..)` or `outbox migrate`; a schema of their own must be in the \
         connection's search_path, or be named: `Outbox::new().schema(..)`)"
    } else if text == "database is locked" {
        " (SQLite has one writer at a time, and the relay is one now and then: a transaction that reads before it emits must be an \
         `conn.immediate_transaction(|c| ..)`, as it fails at once if another one has written since it began to read; set a \
         `busy_timeout` too, so that it waits for its turn. Roll this one back and run it again)"
    } else {
        ""
    }
}
