//! What the code written by `#[derive(InboxEvent)]` calls.

use std::any::type_name;
use std::error::Error;
use std::str::FromStr;

use serde::de::DeserializeOwned;

use crate::{DecodeError, EncodedEvent, variant};

/// What can be read from a payload by default.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from JSON, which is the payload by default",
    label = "this does not implement `serde::Deserialize`",
    note = "put `#[derive(serde::Deserialize)]` on `{Self}`, without borrowed fields, or say how its payload is decoded: \
            `#[outbox(decode = path::to::function)]`"
)]
pub trait FromJson: Sized {
    /// The value that the payload is as a whole.
    ///
    /// # Errors
    /// [`DecodeError::NoPayload`] and [`DecodeError::Payload`].
    fn from_json(event: &EncodedEvent<'_>) -> Result<Self, DecodeError>;

    /// The variant at this index whose content the payload is.
    ///
    /// # Errors
    /// [`DecodeError::NoPayload`] and [`DecodeError::Payload`].
    fn from_content(event: &EncodedEvent<'_>, index: u32) -> Result<Self, DecodeError>;
}

#[diagnostic::do_not_recommend]
impl<T: DeserializeOwned> FromJson for T {
    fn from_json(event: &EncodedEvent<'_>) -> Result<Self, DecodeError> {
        event.json()
    }

    fn from_content(event: &EncodedEvent<'_>, index: u32) -> Result<Self, DecodeError> {
        variant::from_content(index, event.require_payload()?).map_err(|error| event.not_json::<Self>(error))
    }
}

/// What a part of an aggregate id can be read as.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from the aggregate id, which is all that a tombstone has",
    label = "this does not implement `std::str::FromStr`",
    note = "implement `std::str::FromStr` for `{Self}`, or say how the event is made from the aggregate id: \
            `#[outbox(decode = path::to::function)]`"
)]
pub trait FromText: Sized {
    /// The value, if the text is one.
    fn from_text(text: &str) -> Option<Self>;
}

#[diagnostic::do_not_recommend]
impl<T: FromStr> FromText for T {
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// What a function that decodes an event, or brings an older one up to date, may return.
#[diagnostic::on_unimplemented(
    message = "a function that decodes `{T}` cannot return `{Self}`",
    label = "this function makes the event",
    note = "let it return `{T}`, or `Result<{T}, E>` with an error that converts into `Box<dyn Error + Send + Sync>`"
)]
pub trait Decoded<T> {
    /// The event.
    ///
    /// # Errors
    /// The function's own.
    fn decoded(self) -> Result<T, Box<dyn Error + Send + Sync>>;
}

impl<T> Decoded<T> for T {
    fn decoded(self) -> Result<T, Box<dyn Error + Send + Sync>> {
        Ok(self)
    }
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Decoded<T> for Result<T, E> {
    fn decoded(self) -> Result<T, Box<dyn Error + Send + Sync>> {
        self.map_err(Into::into)
    }
}

/// The event that a function of the user's made; its error says nothing of a place.
fn made<T>(event: &EncodedEvent<'_>, made: impl Decoded<T>) -> Result<T, DecodeError> {
    made.decoded().map_err(|source| DecodeError::Payload {
        event_type: event.event_type().to_owned(),
        target: type_name::<T>(),
        position: None,
        source,
    })
}

/// What events without a version count as.
const FIRST_VERSION: u32 = 1;

/// The version that decides how the event is decoded.
pub fn version(event: &EncodedEvent<'_>) -> u32 {
    event.get_version().unwrap_or(FIRST_VERSION)
}

/// The event from a function that decodes the payload.
///
/// # Errors
/// [`DecodeError::NoPayload`] and [`DecodeError::Payload`].
pub fn decode<'a, T, R: Decoded<T>>(
    event: &EncodedEvent<'a>,
    decode: impl FnOnce(&'a [u8]) -> R,
) -> Result<T, DecodeError> {
    made(event, decode(event.require_payload()?))
}

/// The event from a function that takes an older one.
///
/// # Errors
/// [`DecodeError::NoPayload`] and [`DecodeError::Payload`].
pub fn upcast<T, R: Decoded<T>, Old: FromJson>(
    event: &EncodedEvent<'_>,
    upcast: impl FnOnce(Old) -> R,
) -> Result<T, DecodeError> {
    made(event, upcast(Old::from_json(event)?))
}

/// The event from a function that takes a tombstone's aggregate id.
///
/// # Errors
/// [`DecodeError::AggregateId`] and [`DecodeError::Payload`].
pub fn from_id<'a, T, R: Decoded<T>>(
    event: &EncodedEvent<'a>,
    decode: impl FnOnce(&'a str) -> R,
) -> Result<T, DecodeError> {
    made(event, decode(require_id(event)?))
}

/// The parts of the aggregate id.
///
/// # Errors
/// [`DecodeError::AggregateId`] if there are more or fewer.
pub fn id_parts<'a, const N: usize>(
    event: &EncodedEvent<'a>,
    separator: &str,
) -> Result<[&'a str; N], DecodeError> {
    let id = require_id(event)?;
    let parts: Vec<&str> = if N == 1 { vec![id] } else { id.split(separator).collect() };
    let count = parts.len();
    parts.try_into().map_err(|_| bad_id(event, format!("has {count} parts, and its type needs {N}")))
}

/// A part of the aggregate id as the field's type.
///
/// # Errors
/// [`DecodeError::AggregateId`] if it is none.
pub fn id_part<T: FromText>(event: &EncodedEvent<'_>, text: &str, field: &str) -> Result<T, DecodeError> {
    T::from_text(text)
        .ok_or_else(|| bad_id(event, format!("has no `{}` for the field `{field}`", type_name::<T>())))
}

/// The event, if it is what was asked for.
///
/// # Errors
/// [`DecodeError::WrongType`] if it is not.
pub fn check<T>(event: &EncodedEvent<'_>, decoded: T, is_it: bool) -> Result<T, DecodeError> {
    if is_it {
        return Ok(decoded);
    }
    Err(DecodeError::WrongType { event_type: event.event_type().to_owned(), target: type_name::<T>() })
}

fn require_id<'a>(event: &EncodedEvent<'a>) -> Result<&'a str, DecodeError> {
    event.get_aggregate_id().ok_or_else(|| bad_id(event, "is missing".to_owned()))
}

fn bad_id(event: &EncodedEvent<'_>, problem: String) -> DecodeError {
    DecodeError::AggregateId { event_type: event.event_type().to_owned(), problem }
}
