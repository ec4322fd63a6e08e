//! Notices a pooler that gives a connection another session of the server for each transaction, such as PgBouncer with `pool_mode =
//! transaction`. It would spread what the relay sets, locks and listens to over sessions that others use too.
//!
//! The server has a process for each session. So there are two signs of such a pooler. Two connections that are open at the same time
//! are in one process, because a pooler that has little to do gives the session that was used last to whoever asks next. Or the
//! statements of one connection run in different processes, because others have used its session meanwhile. A direct connection has
//! neither, nor has one through a pooler that keeps a session for each connection.

use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};
use diesel_outbox_core::SourceError;

use crate::source::interval::has_passed;

/// How often both connections are asked. Each time a busy pooler may happen to give the same sessions as before.
const ROUNDS: usize = 3;

/// What to do.
const ADVICE: &str = "Connect directly to PostgreSQL, or to a database of the pooler with pool_mode = session; services that emit may \
                      go on through the pooler";

/// A process of a server, by its number and by the start of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    server: i64,
}

impl Process {
    /// The process that runs this connection's statements. The statement is not cached, because a pooler may have given the name to
    /// another one. It runs before the session's `search_path` is set, so it names the schema of each function.
    fn of(conn: &mut PgConnection) -> QueryResult<Self> {
        let own = "SELECT pg_catalog.pg_backend_pid(), \
             (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)::bigint";
        let (pid, server) = sql::<(Integer, BigInt)>(own).get_result(conn)?;
        Ok(Self { pid, server })
    }
}

/// Returns what shows that the connections go through such a pooler, and what to do; or `None` if nothing does. Neither may be in a
/// transaction. If the second one fails, nothing is known.
///
/// # Errors
/// The error of the first connection.
#[doc(hidden)]
pub fn pooler_problem(conn: &mut PgConnection, second: &mut PgConnection) -> QueryResult<Option<String>> {
    let first = Process::of(conn)?;
    for _ in 0..ROUNDS {
        match Process::of(second) {
            Ok(other) if other == first => return Ok(Some(shared(first))),
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
        // Twice, in case the pooler hands its sessions out in turn, and has two.
        for _ in 0..2 {
            let now = Process::of(conn)?;
            if now != first {
                return Ok(Some(changed(first, now)));
            }
        }
    }
    Ok(None)
}

fn shared(process: Process) -> String {
    problem(&format!("two connections at once were in the server's process {}", process.pid))
}

fn changed(before: Process, now: Process) -> String {
    problem(&format!(
        "the statements of one connection ran in the server's processes {} and {}",
        before.pid, now.pid
    ))
}

fn problem(seen: &str) -> String {
    format!(
        "the database is reached through a pooler that gives a connection another session of the server for each transaction (PgBouncer \
         with pool_mode = transaction or statement, for example): {seen}. The settings, locks and notifications that this needs belong \
         to a session. {ADVICE}"
    )
}

/// The process that a connection is in, looked at now and then, in case the pooler had nothing else to do when it was connected.
#[derive(Debug)]
pub(super) struct OwnProcess {
    process: Process,
    looked: Option<Instant>,
}

impl OwnProcess {
    pub(super) fn of(conn: &mut PgConnection) -> QueryResult<Self> {
        Ok(Self { process: Process::of(conn)?, looked: Some(Instant::now()) })
    }

    /// Returns an error if the connection is in another process by now.
    pub(super) fn look(
        &mut self,
        conn: &mut PgConnection,
        interval: Duration,
    ) -> QueryResult<Option<SourceError>> {
        if !has_passed(self.looked, interval) {
            return Ok(None);
        }
        self.looked = Some(Instant::now());
        let now = Process::of(conn)?;
        let problem = (now != self.process).then(|| changed(self.process, now));
        Ok(problem.map(SourceError::misconfigured))
    }
}
