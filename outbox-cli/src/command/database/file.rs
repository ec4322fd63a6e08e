//! The file that an SQLite URL names.

use std::fmt;
use std::path::Path;

use crate::command::failure::Failure;

/// An SQLite database's file.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseFile(String);

impl DatabaseFile {
    /// The file that a path, a `file:` or an `sqlite://` URL names.
    pub(super) fn named_by(url: &str) -> Result<Self, String> {
        let in_url = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("file:"));
        if in_url.is_none() && is_connection_string(url) {
            return Err(
                "name a PostgreSQL database by a URL, postgres://user:password@host:port/database".into()
            );
        }
        // What follows the path are parameters, and those may hold a key.
        let path = in_url.map_or(url, |path| path.split(['?', '#']).next().unwrap_or_default());
        let path = if in_url.is_some() { path.strip_prefix("//").unwrap_or(path) } else { path };
        if path.is_empty() { Err("it names no file".into()) } else { Ok(Self(path.to_owned())) }
    }

    /// Fails if there is no such file. SQLite would make it, which is right for migrations and else hides a mistake in the path.
    pub(super) fn require(&self) -> Result<(), Failure> {
        // SQLite decodes a path with `%` itself.
        if Path::new(&self.0).exists() || self.0.contains('%') {
            Ok(())
        } else {
            Err(Failure::NoFile(self.0.clone()))
        }
    }
}

impl fmt::Display for DatabaseFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether it looks like `host=.. password=..`, which libpq takes too.
fn is_connection_string(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, _)| {
        let name = name.trim();
        !name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_file() {
        for (url, file) in [
            ("outbox.db", "outbox.db"),
            ("/var/lib/out=box?.db", "/var/lib/out=box?.db"),
            ("sqlite://outbox.db", "outbox.db"),
            ("sqlite:///var/lib/outbox.db?key=s3cret", "/var/lib/outbox.db"),
            ("file:outbox.db", "outbox.db"),
            ("file:///var/lib/outbox.db", "/var/lib/outbox.db"),
        ] {
            assert_eq!(DatabaseFile::named_by(url).map(|file| file.0).as_deref(), Ok(file), "{url}");
        }
    }

    #[test]
    fn a_connection_string_is_no_file() {
        assert!(DatabaseFile::named_by("host=db user=ann password=s3cret").is_err());
        assert!(DatabaseFile::named_by("sqlite://").is_err());
    }
}
