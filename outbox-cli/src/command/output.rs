//! What a command prints.

use std::io::{self, Write};

use super::failure::Failure;

/// Writes to standard output. If its reader has left, that is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, if anybody reads that.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "outbox: {line}");
}
