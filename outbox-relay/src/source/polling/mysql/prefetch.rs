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
use super::connection::{Database, Statements};
use super::read::{self, Batch};
use crate::source::database_error;
use crate::source::polling::prefetch::{self, Handing};
use crate::source::row::BlockedAggregates;

/// What a pass has still to read, and all that reading it takes.
pub(super) struct Backlog {
    pub(super) claimed: Claimed,
    /// All that the pass has given.
    pub(super) given: HashSet<i64>,
    pub(super) blocked: Option<BlockedAggregates>,
    pub(super) batch_size: BatchSize,
    pub(super) limit: usize,
}

pub(super) type Ahead = prefetch::Ahead<Backlog, Batch>;
pub(super) type Batches = prefetch::Batches<Batch>;

/// Starts a thread that reads ahead on a connection of its own.
pub(super) fn begin(database: Database) -> std::io::Result<Ahead> {
    let mut connected = None;
    Ahead::begin(move |backlog, handing| {
        let mut conn = match connected.take() {
            Some(conn) => conn,
            None => database.connect_to_snapshots()?,
        };
        read_on(&mut conn, backlog, handing).map_err(|error| database_error("reading ahead", error))?;
        connected = Some(conn);
        Ok(())
    })
}

fn read_on(conn: &mut Conn, backlog: Backlog, handing: &Handing<Batch>) -> mysql::Result<()> {
    let Backlog { claimed, mut given, blocked, mut batch_size, limit } = backlog;
    conn.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")?;
    let mut after = i64::MIN;
    while handing.wants() {
        let batch = read::read(conn, &claimed, &given, after, &mut batch_size, limit, blocked.as_ref())?;
        if let Some(last) = batch.given.last() {
            after = *last;
            given.retain(|seq| *seq > after);
        }
        handing.hand(batch);
    }
    conn.execute("COMMIT").map(drop)
}
