use diesel::result::DatabaseErrorInformation;

use crate::RecordError;

/// Why an event was not emitted.
///
/// It turns into [`diesel::result::Error`] by `?`, so that it can be used in a transaction's closure whatever error
/// that returns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// No transaction is open. The event would be stored even if the change that it tells of is not.
    #[error(
        "emit was called outside a transaction: put the change and the emit into one \
         `conn.transaction(|c| {{ ...; c.emit(&event)?; diesel::QueryResult::Ok(()) }})`, and emit on the `c` that the \
         closure is given (Diesel must have opened the transaction: it does not know of a BEGIN sent by hand)"
    )]
    NotInTransaction,
    /// The event cannot be stored; the transaction can go on.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The database refused the insert, or was lost; the transaction must be rolled back.
    #[error("the event could not be written to the outbox: {0}{hint}", hint = hint(&.0.to_string()))]
    Database(#[from] diesel::result::Error),
}

impl From<EmitError> for diesel::result::Error {
    fn from(error: EmitError) -> Self {
        match error {
            EmitError::Database(Self::DatabaseError(kind, information)) => {
                let hint = hint(information.message());
                if hint.is_empty() {
                    return Self::DatabaseError(kind, information);
                }
                let message = information.message().to_owned() + hint;
                Self::DatabaseError(kind, Box::new(Hinted { information, message }))
            }
            EmitError::Database(error) => error,
            EmitError::Record(_) => Self::SerializationError(Box::new(error)),
            EmitError::NotInTransaction => Self::QueryBuilderError(Box::new(error)),
        }
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
    if text.contains("\"outbox\" does not exist") || text.contains("no such table: outbox") {
        " (run the migrations, `Migrations::new().run(..)` or `outbox migrate`; tables in a schema of their own must be in \
         the connection's search_path)"
    } else if text == "database is locked" {
        " (SQLite has one writer at a time, and the relay is one now and then: a transaction that reads before it emits must be an \
         `conn.immediate_transaction(|c| ..)`, as it fails at once if another one has written since it began to read; set a \
         `busy_timeout` too, so that it waits for its turn. Roll this one back and run it again)"
    } else {
        ""
    }
}
