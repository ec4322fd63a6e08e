//! The items that the derives' generated code calls and that the crates share. They are not part of the public API and may change
//! in any release. The traits exist for the compiler's message when one is not implemented.

mod decoding;
mod emitting;
mod marking;
mod migrating;
mod pruning;
mod running;
mod scheduling;
pub mod spans;
mod storing;

use std::error::Error;
use std::fmt::Display;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use serde::Serialize;
pub use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use self::decoding::{
    Decoded, FromJson, FromText, check, decode, from_id, id_part, id_parts, upcast, version,
};
pub use self::emitting::{checked_record, chunks, is_outbox_missing, is_statement_elsewhere};
pub use self::marking::ROLLED_BACK;
pub use self::migrating::{
    CREATE_MIGRATION_RECORD, MIGRATION_RECORD, MYSQL_FIND_MIGRATION_RECORD, MYSQL_MIGRATION_LOCK,
    MYSQL_MIGRATION_UNLOCK, SQLITE_FIND_MIGRATION_RECORD, migration_version, postgres_migration_lock,
};
pub use self::pruning::Pruning;
pub use self::running::{Running, Stop, panic_message};
pub use self::scheduling::Due;
pub use self::storing::{StoredRow, stored_record};
pub use crate::encoded::identity;
use crate::{Record, RecordError, variant};

/// Puts a message on one line: databases report errors with line breaks, which a log line should not have.
pub fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Quotes a name for SQL, whatever characters it contains.
pub fn quoted_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns the statement with which a PostgreSQL session finds the tables in this schema, and all else in the server's own. What
/// somebody else makes in other schemas, or as temporary tables, takes no name of those.
pub fn set_search_path(schema: &str) -> String {
    format!("SET search_path TO pg_catalog, {}, pg_temp", quoted_identifier(schema))
}

/// Quotes a text for SQL, whatever characters it contains.
pub fn quoted_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The longest retention, about 100 years. Databases cannot count back much further.
pub const LONGEST_RETENTION: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Converts milliseconds since 1970 to a time. A time that the system cannot represent becomes 1970.
pub fn from_unix_ms(ms: i64) -> SystemTime {
    let distance = Duration::from_millis(ms.unsigned_abs());
    let time = if ms < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

/// Converts a time to milliseconds since 1970, rounded down.
pub fn unix_ms(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let started = i64::from(before.subsec_nanos() % 1_000_000 != 0);
            i64::try_from(before.as_millis()).map_or(i64::MIN, |ms| -ms - started)
        }
    }
}

/// A value that an aggregate id or a header can be made from.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written as the text of an id or a header",
    label = "this does not implement `std::fmt::Display`",
    note = "implement `std::fmt::Display` for `{Self}`, or let a function make the id: `#[outbox(id = path::to::function)]`"
)]
pub trait Text {
    /// Returns the text.
    fn text(&self) -> String;
}

#[diagnostic::do_not_recommend]
impl<T: Display + ?Sized> Text for T {
    fn text(&self) -> String {
        self.to_string()
    }
}

/// A value that can be a payload by default.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written as JSON, which is the payload by default",
    label = "this does not implement `serde::Serialize`",
    note = "put `#[derive(serde::Serialize)]` on `{Self}`, or say what its payload is: \
            `#[outbox(payload = path::to::function)]` or `#[outbox(tombstone)]`"
)]
pub trait Json {
    /// Returns the record with this value as its payload.
    ///
    /// # Errors
    /// [`RecordError::Encode`] with serde's error.
    fn json(&self, record: Record) -> Result<Record, RecordError>;

    /// Returns the record with this value as its payload, without the name of the variant.
    ///
    /// # Errors
    /// [`RecordError::Encode`] with serde's error.
    fn content(&self, record: Record) -> Result<Record, RecordError>;
}

#[diagnostic::do_not_recommend]
impl<T: Serialize + ?Sized> Json for T {
    fn json(&self, record: Record) -> Result<Record, RecordError> {
        record.json(self)
    }

    fn content(&self, record: Record) -> Result<Record, RecordError> {
        variant::to_content(self).map(|bytes| record.with_payload(bytes)).map_err(RecordError::encode)
    }
}

/// The return type of a payload function.
#[diagnostic::on_unimplemented(
    message = "a payload function cannot return `{Self}`",
    label = "this function makes the payload",
    note = "let it return `Vec<u8>`, or `Result<Vec<u8>, E>` with an error that converts into \
            `Box<dyn Error + Send + Sync>`"
)]
pub trait Payload {
    /// Returns the payload's bytes.
    ///
    /// # Errors
    /// [`RecordError::Encode`] with the function's own error.
    fn into_bytes(self) -> Result<Vec<u8>, RecordError>;
}

impl Payload for Vec<u8> {
    fn into_bytes(self) -> Result<Vec<u8>, RecordError> {
        Ok(self)
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> Payload for Result<Vec<u8>, E> {
    fn into_bytes(self) -> Result<Vec<u8>, RecordError> {
        self.map_err(RecordError::encode)
    }
}

/// A value that can be an event's own id.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the id of an event",
    label = "this is not a `Uuid`",
    note = "an event's id is a `uuid::Uuid`, unique to the event: make the field one, or write `#[outbox(event_id = \
            path::to::function)]` on the type"
)]
pub trait EventId {
    /// Returns the id.
    fn event_id(&self) -> Uuid;
}

impl EventId for Uuid {
    fn event_id(&self) -> Uuid {
        *self
    }
}

/// The return type of a function that makes headers.
#[diagnostic::on_unimplemented(
    message = "a function that makes headers cannot return `{Self}`",
    label = "this function makes the headers",
    note = "let it return an iterator or a collection of pairs of texts, such as `Vec<(String, String)>`"
)]
pub trait Headers {
    /// Adds these headers to the record.
    fn add_to(self, record: Record) -> Record;
}

#[diagnostic::do_not_recommend]
impl<N: Into<String>, V: Into<String>, I: IntoIterator<Item = (N, V)>> Headers for I {
    fn add_to(self, record: Record) -> Record {
        self.into_iter().fold(record, |record, (name, value)| record.header(name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_identifier_is_one_name_whatever_is_in_it() {
        assert_eq!(quoted_identifier("public"), "\"public\"");
        assert_eq!(quoted_identifier("a\"; b"), "\"a\"\"; b\"");
    }

    #[test]
    fn a_time_in_milliseconds_comes_back_as_it_was() {
        for ms in [0, 1, -1, 1_764_000_000_123, -62_135_596_800_000, 253_402_300_799_999] {
            assert_eq!(unix_ms(from_unix_ms(ms)), ms);
        }
        assert_eq!(unix_ms(UNIX_EPOCH - Duration::from_nanos(1)), -1);
    }
}
