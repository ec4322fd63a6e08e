//! What parses bytes from outside, for the fuzz targets.

use crate::source::wal::fuzzing;

/// Reads what a server sends on a replication connection. Each message has its length before it, in one byte.
pub fn replication(mut data: &[u8]) {
    let mut messages = Vec::new();
    while let Some((length, rest)) = data.split_first() {
        let (message, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        messages.push(message.to_vec().into());
        data = rest;
    }
    fuzzing::read(messages);
}
