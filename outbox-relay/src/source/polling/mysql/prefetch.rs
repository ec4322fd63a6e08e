//! Reads a backlog ahead, in a snapshot.
//!
//! The worker's own reads each begin anew at the bounds, because a row with a low number may have been committed since the last one, and
//! pass over all that the pass has sent. A snapshot shows what was committed when it was taken and nothing else, so that each of its reads
//! can go on where the last one ended. The worker has claimed the shards before and holds them for longer, so nobody else settles their
//! rows meanwhile. What the pass itself has given by then is left out, because the snapshot does not see what the pass has settled.

use std::collections::HashSet;

use mysql::Conn;

use super::batch_size::BatchSize;
use super::bounds::Claimed;
use super::connection::{MysqlDatabase, Statements};
use super::read::{self, Batch};
use crate::source::database_error;
use crate::source::polling::prefetch::{self, Handing};

/// What a pass has still to read, and all that reading it takes.
pub(super) struct Backlog {
    pub(super) claimed: Claimed,
    /// All that the pass has given.
    pub(super) given: HashSet<i64>,
    pub(super) blocks: bool,
    pub(super) batch_size: BatchSize,
    pub(super) limit: usize,
}

type Ahead = prefetch::Ahead<Backlog, Batch>;
pub(super) type ReadAhead = prefetch::ReadAhead<Backlog, Batch>;

/// Starts a thread that reads ahead on a connection of its own.
pub(super) fn begin(database: MysqlDatabase) -> std::io::Result<Ahead> {
    let mut connected = None;
    Ahead::begin(move |backlog, handing| {
        // The server closes a connection that was idle for long.
        let begun = connected.take().and_then(|conn| begin_snapshot(conn).ok());
        let mut conn = match begun {
            Some(conn) => conn,
            None => begin_snapshot(database.connect_to_snapshots()?)
                .map_err(|error| database_error("reading ahead", error))?,
        };
        read_on(&mut conn, backlog, handing).map_err(|error| database_error("reading ahead", error))?;
        // If the server has closed it meanwhile, the next backlog gets a new one.
        connected = conn.execute("COMMIT").is_ok().then_some(conn);
        Ok(())
    })
}

/// Takes a snapshot. It is not read only by name: a proxy would send it to a replica.
fn begin_snapshot(mut conn: Conn) -> mysql::Result<Conn> {
    conn.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")?;
    Ok(conn)
}

fn read_on(conn: &mut Conn, backlog: Backlog, handing: &Handing<Batch>) -> mysql::Result<()> {
    let Backlog { claimed, mut given, blocks, mut batch_size, limit } = backlog;
    let mut after = i64::MIN;
    while handing.wants() {
        let batch = read::read(conn, &claimed, &given, after, &mut batch_size, limit, blocks)?;
        if let Some(last) = batch.given.last() {
            after = *last;
            given.retain(|seq| *seq > after);
        }
        handing.hand(batch);
    }
    Ok(())
}
