use diesel::QueryResult;
use mysql::Conn;
use mysql::prelude::Queryable;

use super::{Content, ContentRow, Observe, RelaySession, Relays, content};
use crate::operate::hex;
use crate::operate::mysql::failed;
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

/// The table may be empty, if rows are deleted as soon as they are sent. Then the shards' bounds say how far it has been.
const LAST_NUMBER: &str = "SELECT GREATEST(COALESCE((SELECT MAX(seq) FROM outbox), 0), \
    COALESCE((SELECT MAX(sent_through) FROM outbox_shard), 0))";
