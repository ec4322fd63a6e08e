//! The synchronous connections that can hold an outbox: Diesel's own, pooled or not, and enums of them.

use diesel::QueryResult;
use diesel::connection::{Connection, LoadConnection};

use crate::backend::{
    CancelScheduled, FindInbox, InSchema, InsertMany, InsertMark, InsertOne, InsertScheduled, Load,
    LoadedRow, OutboxBackend, PruneMarks, SelectRows, StillMarked,
};

/// A synchronous connection to a database that can hold an outbox and an inbox.
///
/// Every Diesel connection to PostgreSQL, MySQL, MariaDB or SQLite implements it, pooled or not, if the feature `postgres`, `mysql` or `sqlite` is on. For an
/// enum with `#[derive(MultiConnection)]`, [`multi_connection!`](crate::multi_connection) implements it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a connection to a database that can hold an outbox",
    note = "turn on the feature `postgres`, `mysql` or `sqlite` of diesel-outbox, or of diesel-outbox-kafka for a consumer",
    note = "for a connection of diesel-async, use `AsyncEmit`, the inbox's methods that end in `_async`, or `Consumer::new_async`",
    note = "for an enum with `#[derive(MultiConnection)]`, call `diesel_outbox::multi_connection!`, which diesel-outbox-kafka re-exports"
)]
pub trait OutboxConnection: Connection {
    /// Runs one of this crate's statements and returns the number of rows.
    ///
    /// # Errors
    /// The database's error.
    #[doc(hidden)]
    fn execute_statement(&mut self, statement: Statement<'_>) -> QueryResult<usize>;

    /// Reads rows.
    ///
    /// # Errors
    /// The database's error.
    #[doc(hidden)]
    fn load_rows(&mut self, select: &SelectRows<'_>) -> QueryResult<Vec<LoadedRow>>;
}

/// One of this crate's statements.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a>(Kind<'a>);

#[derive(Debug, Clone, Copy)]
enum Kind<'a> {
    InsertOne(&'a InsertOne<'a>),
    InsertMany(&'a InsertMany<'a>),
    InsertMark(&'a InsertMark<'a>),
    StillMarked(&'a StillMarked<'a>),
    PruneMarks(&'a PruneMarks<'a>),
    FindInbox(&'a FindInbox<'a>),
    InsertScheduled(&'a InsertScheduled<'a>),
    CancelScheduled(&'a CancelScheduled<'a>),
}

macro_rules! statements {
    ($($name:ident),*) => {
        $(impl<'a> From<&'a $name<'a>> for Statement<'a> {
            fn from(statement: &'a $name<'a>) -> Self {
                Self(Kind::$name(statement))
            }
        })*

        #[diagnostic::do_not_recommend]
        impl<C: LoadConnection<Backend: OutboxBackend>> OutboxConnection for C {
            fn execute_statement(&mut self, statement: Statement<'_>) -> QueryResult<usize> {
                match statement.0 {
                    $(
                        Kind::$name(statement) if statement.schema.is_some() => {
                            self.execute_returning_count(&InSchema(statement))
                        }
                        Kind::$name(statement) => self.execute_returning_count(statement),
                    )*
                }
            }

            fn load_rows(&mut self, select: &SelectRows<'_>) -> QueryResult<Vec<LoadedRow>> {
                <C::Backend as Load>::load(self, select)
            }
        }
    };
}

statements!(
    InsertOne,
    InsertMany,
    InsertMark,
    StillMarked,
    PruneMarks,
    FindInbox,
    InsertScheduled,
    CancelScheduled
);

/// Implements [`OutboxConnection`](crate::OutboxConnection) for an enum with Diesel's `#[derive(MultiConnection)]`, so that it emits events, works with an
/// [`Inbox`](crate::Inbox) and runs `Migrations`.
///
/// List the variants that hold a connection to PostgreSQL, MySQL, MariaDB or SQLite. If the enum has other variants, write `..` behind the list:
/// on those, every call fails with [`EmitError::NoOutbox`](crate::EmitError::NoOutbox). Variants may have attributes such as
/// `#[cfg(..)]`.
///
/// ```
/// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// # mod example {
/// use diesel::prelude::*;
/// use diesel_outbox::{Emit, Migrations, Record};
///
/// #[derive(diesel::MultiConnection)]
/// pub enum DbConn {
///     Sqlite(SqliteConnection),
/// #   #[cfg(any())]
///     Pg(PgConnection),
/// }
///
/// diesel_outbox::multi_connection!(DbConn {
///     Sqlite,
/// #   #[cfg(any())]
///     Pg,
/// });
///
/// # pub fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let conn = &mut DbConn::establish(":memory:")?;
/// Migrations::new().run(conn)?;
/// conn.transaction(|c| c.emit(&Record::new("order", "7", "OrderPlaced")))?;
/// # Ok(())
/// # }
/// # }
/// # fn main() {
/// #     #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// #     example::main().unwrap();
/// # }
/// ```
#[macro_export]
macro_rules! multi_connection {
    ($name:ident { $($(#[$attribute:meta])* $variant:ident),+ $(,)? }) => {
        $crate::__multi_connection!($name { $($(#[$attribute])* $variant),+ });
    };
    ($name:ident { $($(#[$attribute:meta])* $variant:ident,)* .. }) => {
        $crate::__multi_connection!($name { $($(#[$attribute])* $variant),* } _);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __multi_connection {
    ($name:ident { $($(#[$attribute:meta])* $variant:ident),* } $($rest:tt)?) => {
        impl $crate::OutboxConnection for $name {
            fn execute_statement(
                &mut self,
                statement: $crate::Statement<'_>,
            ) -> ::diesel::QueryResult<usize> {
                match self {
                    $($(#[$attribute])* Self::$variant(c) => {
                        $crate::OutboxConnection::execute_statement(c, statement)
                    })*
                    $($rest => ::core::result::Result::Err($crate::EmitError::NoOutbox.into()),)?
                }
            }

            fn load_rows(
                &mut self,
                select: &$crate::SelectRows<'_>,
            ) -> ::diesel::QueryResult<::std::vec::Vec<$crate::LoadedRow>> {
                match self {
                    $($(#[$attribute])* Self::$variant(c) => $crate::OutboxConnection::load_rows(c, select),)*
                    $($rest => ::core::result::Result::Err($crate::EmitError::NoOutbox.into()),)?
                }
            }
        }

        $crate::__if_migrations! {
            impl $crate::MigrateConnection for $name {
                fn migrate(
                    &mut self,
                    migrations: &$crate::Migrations,
                ) -> ::core::result::Result<::std::vec::Vec<::std::string::String>, $crate::MigrationError> {
                    match self {
                        $($(#[$attribute])* Self::$variant(c) => {
                            $crate::MigrateConnection::migrate(c, migrations)
                        })*
                        $($rest => {
                            let error: ::diesel::result::Error = $crate::EmitError::NoOutbox.into();
                            ::core::result::Result::Err(error.into())
                        })?
                    }
                }
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
#[cfg(feature = "migrations")]
macro_rules! __if_migrations {
    ($($item:item)*) => { $($item)* };
}

#[doc(hidden)]
#[macro_export]
#[cfg(not(feature = "migrations"))]
macro_rules! __if_migrations {
    ($($item:item)*) => {};
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Record;

    #[test]
    fn debug_output_of_a_statement_shows_no_values() {
        let record = Record::new("order", "s3cret", "OrderPlaced").with_payload(*b"s3cret");
        let insert = InsertOne::new(&record, None);
        assert_eq!(format!("{:?}", Statement::from(&insert)), "Statement(InsertOne(InsertOne { .. }))");
    }
}
