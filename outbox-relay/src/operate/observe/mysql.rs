use diesel::QueryResult;
use mysql::Conn;
use mysql::prelude::Queryable;

use super::{Content, ContentRow, Observe, RelaySession, Relays, content};
use crate::operate::mysql::{DEAD_LETTERS, failed};
use crate::operate::{DeadLetter, DeadLetterRow, dead_letter, hex};
use crate::source::mysql::{relays, row_of};

impl Observe for Conn {
    fn relays(&mut self) -> QueryResult<Relays> {
        let sessions = relays(self).map_err(failed)?.into_iter().map(|(id, leads, works, client)| {
            let client =
                client.map(|host| host.rsplit_once(':').map_or(host.clone(), |(host, _)| host.to_owned()));
            RelaySession { id, client, age: None, leads, works }
        });
        Ok(Relays {
            sessions: Some(sessions.collect()),
            claims: None,
            hidden: Some("MySQL and MariaDB do not show a relay's role which session has locked a shard."),
        })
    }

    fn last_number(&mut self) -> QueryResult<i64> {
        let last: Option<i64> = self.query_first(LAST_NUMBER).map_err(failed)?;
        Ok(last.unwrap_or_default())
    }

    fn dead_letter(&mut self, seq: i64, id: &str) -> QueryResult<Option<DeadLetter>> {
        let statement = format!("{DEAD_LETTERS} WHERE seq = ? AND HEX(id) = '{}'", hex(id));
        let row: Option<mysql::Row> = self.exec_first(statement, (seq,)).map_err(failed)?;
        row.map(|row| row_of::<DeadLetterRow>(row).map(dead_letter)).transpose().map_err(failed)
    }

    fn limit_waits(&mut self) -> QueryResult<()> {
        self.query_drop(LIMITS).map_err(failed)
    }

    fn content(&mut self, seq: i64, id: &str) -> QueryResult<Option<Content>> {
        let most = Content::MOST;
        let statement = format!(
            "SELECT SUBSTRING(payload, 1, {most}), CAST(LENGTH(payload) AS SIGNED), SUBSTRING(headers, 1, {most}) \
             FROM outbox_dead_letter WHERE seq = ? AND HEX(id) = '{}'",
            hex(id)
        );
        let row: Option<mysql::Row> = self.exec_first(statement, (seq,)).map_err(failed)?;
        row.map(|row| row_of::<ContentRow>(row).map(content)).transpose().map_err(failed)
    }
}

/// MariaDB counts seconds and for each statement; MySQL counts milliseconds, and only for a SELECT. Neither runs the other's comment.
const LIMITS: &str = "SET SESSION lock_wait_timeout = 2, SESSION innodb_lock_wait_timeout = 2 \
    /*M!100101 , SESSION max_statement_time = 10 */ /*!50708 , SESSION max_execution_time = 10000 */";

/// The table may be empty, if rows are deleted as soon as they are sent. Then the shards' bounds say how far it has been.
const LAST_NUMBER: &str = "SELECT GREATEST(COALESCE((SELECT MAX(seq) FROM outbox), 0), \
    COALESCE((SELECT MAX(sent_through) FROM outbox_shard), 0))";
