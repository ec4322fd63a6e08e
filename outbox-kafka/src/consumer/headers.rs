//! Reads a record's headers. On Kafka their names may be any bytes, and rdkafka panics if they are not UTF-8.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders, OwnedMessage};

/// Reads every header once, so that reading them again cannot panic. Nothing else may read the headers of a message that has not
/// been here. A program that aborts on panics ends here.
///
/// # Errors
/// Returns why the record cannot be handled: which header it is.
pub(super) fn check(message: &OwnedMessage) -> Result<(), String> {
    let Some(headers) = message.headers() else { return Ok(()) };
    let mut position = 0;
    let read = || {
        for _ in headers.iter() {
            position += 1;
        }
    };
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| {
        format!(
            "the name of header {} of {} is not UTF-8, so the headers cannot be read. The dead letter has them as they were, \
             those of an earlier dead letter too. Give that header another name and send the record to its topic again",
            position + 1,
            headers.count()
        )
    })
}

/// Returns the value of the first header of this name.
pub(super) fn value<'a>(message: &'a OwnedMessage, name: &str) -> Option<&'a [u8]> {
    message.headers()?.iter().find(|header| header.key == name)?.value
}

/// Returns that value if it is text.
pub(super) fn text<'a>(message: &'a OwnedMessage, name: &str) -> Option<&'a str> {
    str::from_utf8(value(message, name)?).ok()
}

/// Returns a copy of the message's headers without those of these names. It is byte for byte the same if there are none of them, or
/// if the headers cannot be read.
pub(super) fn without(message: &OwnedMessage, names: &[&str], readable: bool) -> OwnedHeaders {
    let Some(headers) = message.headers() else { return OwnedHeaders::new() };
    let is_named = |header: &Header<'_, &[u8]>| names.contains(&header.key);
    if readable && headers.iter().any(|header| is_named(&header)) {
        headers.iter().filter(|header| !is_named(header)).fold(OwnedHeaders::new(), OwnedHeaders::insert)
    } else {
        headers.clone()
    }
}
