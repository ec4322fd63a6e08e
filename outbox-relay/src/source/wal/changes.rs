//! What a slot has of the WAL, decoded by an ordinary connection. `get` moves the slot behind what was read, and `peek` leaves it
//! where it is.

use diesel::pg::Pg;
use diesel::sql_types::{BigInt, Binary, Integer, Text};
use diesel_outbox_core::__private::quoted_identifier;

use super::position::Lsn;
use crate::statement::statement;

/// Returns the statement that reads up to this end, or until this many messages have come. It reads the transaction in which that
/// happens as a whole.
pub(super) fn get(slot: &str, end: Lsn, messages: i32, publication: &str) -> Get<'static> {
    Get::new(slot.to_owned(), end as i64, messages, quoted_identifier(publication))
}

/// Returns the statement that reads all up to this end.
pub(super) fn peek(slot: &str, end: Lsn, publication: &str) -> Peek<'static> {
    Peek::new(slot.to_owned(), end as i64, quoted_identifier(publication))
}

/// A call with the end and the protocol's options. The options are those of the stream, given in another way.
macro_rules! changes {
    ($function:literal, $messages:literal) => {
        concat!(
            "SELECT data FROM ",
            "pg_catalog.",
            $function,
            "(?, '0/0'::pg_lsn + ?::numeric, ",
            $messages,
            ", 'proto_version', '1', 'binary', 'true', 'publication_names', ?)"
        )
    };
}

statement!(
    Pg,
    pub(super) Get {
        slot: String => Text,
        end: i64 => BigInt,
        messages: i32 => Integer,
        publication: String => Text
    } -> Binary,
    changes!("pg_logical_slot_get_binary_changes", "?")
);

statement!(
    Pg,
    pub(super) Peek { slot: String => Text, end: i64 => BigInt, publication: String => Text } -> Binary,
    changes!("pg_logical_slot_peek_binary_changes", "NULL")
);
