//! A transactional outbox and inbox for Diesel.

// Without a database there is nobody to read what the statements hold.
#![cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(dead_code))]

mod backend;
mod emit;
mod inbox;
#[cfg(feature = "migrations")]
mod migrate;
#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
pub mod observe;
pub mod source;
#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
mod statement;

#[doc(hidden)]
pub use diesel_outbox_core::__private;
pub use diesel_outbox_core::{OutboxEvent, Record, RecordError, wire};
#[cfg(feature = "derive")]
pub use diesel_outbox_derive::OutboxEvent;

pub use self::backend::OutboxBackend;
#[cfg(feature = "async")]
pub use self::emit::AsyncEmit;
pub use self::emit::{Emit, EmitError};
pub use self::inbox::{Inbox, Once};
#[cfg(feature = "migrations")]
pub use self::migrate::{MigrationError, Migrations};
