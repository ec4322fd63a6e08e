use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::{Content, ContentRow, Observe, Relays, content};
use crate::operate::sqlite::dead_letters;
use crate::operate::{DeadLetter, DeadLetterRow, dead_letter, hex};
use crate::source::julian_day::{created_at_ms, unix_ms};
use crate::statement::statement;

impl Observe for SqliteConnection {
    fn relays(&mut self) -> QueryResult<Relays> {
        Ok(Relays {
            sessions: None,
            claims: None,
            hidden: Some(
                "SQLite has no sessions, and does not show who uses the file. One relay works, with all shards.",
            ),
        })
    }

    fn last_number(&mut self) -> QueryResult<i64> {
        LastNumber::new().get_result(self)
    }

    fn dead_letter(&mut self, seq: i64, id: &str) -> QueryResult<Option<DeadLetter>> {
        let row = DeadLetterOf::new(seq, hex(id)).get_result::<DeadLetterRow>(self).optional()?;
        Ok(row.map(dead_letter))
    }

    fn limit_waits(&mut self) -> QueryResult<()> {
        self.batch_execute("PRAGMA busy_timeout = 2000")
    }

    fn content(&mut self, seq: i64, id: &str) -> QueryResult<Option<Content>> {
        let most = i64::try_from(Content::MOST).unwrap_or(i64::MAX);
        let row = ContentOf::new(most, most, seq, hex(id)).get_result::<ContentRow>(self).optional()?;
        Ok(row.map(content))
    }
}

statement!(
    Sqlite,
    LastNumber {} -> BigInt,
    "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0)"
);

statement!(
    Sqlite,
    DeadLetterOf { seq: i64 => BigInt, id: String => Text } -> (BigInt, Text, Text, Text, Text, BigInt, Text, BigInt),
    concat!(dead_letters!(), " WHERE seq = ? AND hex(id) = ?")
);

statement!(
    Sqlite,
    ContentOf { bytes: i64 => BigInt, characters: i64 => BigInt, seq: i64 => BigInt, id: String => Text }
        -> (Nullable<Binary>, Nullable<BigInt>, Nullable<Text>),
    "SELECT substr(CAST(payload AS BLOB), 1, ?), length(CAST(payload AS BLOB)), substr(headers, 1, ?) \
     FROM outbox_dead_letter WHERE seq = ? AND hex(id) = ?"
);
