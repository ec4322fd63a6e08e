//! Writers that emit in transactions of every kind, and note each event in the ledger in the same transaction.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::result::Error::RollbackTransaction;
use diesel_outbox::{Emit, OutboxConnection, Record};
use fastrand::Rng;

use crate::ledger::{RESERVED, note, record};

/// The orders for the writers meanwhile.
#[derive(Default)]
pub struct Orders {
    /// They end.
    pub end: AtomicBool,
    /// They write nothing as long as this is set.
    pub pause: AtomicBool,
    /// How many of them rest because of that, with no transaction open.
    pub resting: AtomicUsize,
}

impl Orders {
    fn rest(&self, mut finish: impl FnMut()) {
        self.resting.fetch_add(1, Ordering::Relaxed);
        while self.pause.load(Ordering::Relaxed) && !self.end.load(Ordering::Relaxed) {
            finish();
            thread::sleep(RECONNECT);
        }
        self.resting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a writer speaks to its database.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Sets the longest wait for a lock.
    pub session: &'static str,
    /// How a transaction is prepared, to be committed later, perhaps by another session.
    pub two_phases: TwoPhases,
}

/// How a transaction is prepared.
#[derive(Clone, Copy, Debug)]
pub enum TwoPhases {
    /// With PREPARE TRANSACTION.
    Prepared,
    /// With XA.
    Xa,
    /// Not at all.
    None,
}

impl TwoPhases {
    fn begin(self, gid: &str) -> String {
        match self {
            Self::Xa => format!("XA START '{gid}'"),
            _ => "BEGIN".to_owned(),
        }
    }

    fn prepare(self, gid: &str) -> String {
        match self {
            Self::Xa => format!("XA END '{gid}'; XA PREPARE '{gid}'"),
            _ => format!("PREPARE TRANSACTION '{gid}'"),
        }
    }

    /// `end` is COMMIT or ROLLBACK.
    fn end(self, end: &str, gid: &str) -> String {
        match self {
            Self::Xa => format!("XA {end} '{gid}'"),
            _ => format!("{end} PREPARED '{gid}'"),
        }
    }
}

/// How long a writer waits before it connects again, and between two transactions.
const RECONNECT: Duration = Duration::from_millis(50);
const BETWEEN: Duration = Duration::from_millis(4);

/// Writes until the order to end. A transaction that fails is forgotten: what was committed, the ledger knows.
pub fn write<'u, C>(url: &dyn Fn() -> &'u str, name: usize, mut rng: Rng, dialect: Dialect, orders: &Orders)
where
    C: OutboxConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection,
{
    let mut round = 0_u64;
    let mut prepared: Vec<String> = Vec::new();
    while !orders.end.load(Ordering::Relaxed) {
        let Ok(mut conn) = C::establish(url()) else {
            thread::sleep(RECONNECT);
            continue;
        };
        if conn.batch_execute(dialect.session).is_err() {
            continue;
        }
        finish(&mut conn, &mut prepared, dialect);
        let mut failures = 0;
        // After a few failures it looks whether a new connection does better.
        while failures < 3 && !orders.end.load(Ordering::Relaxed) {
            finish(&mut conn, &mut prepared, dialect);
            if orders.pause.load(Ordering::Relaxed) {
                orders.rest(|| finish(&mut conn, &mut prepared, dialect));
                continue;
            }
            round += 1;
            let left = prepared.len();
            let outcome = if !matches!(dialect.two_phases, TwoPhases::None) && rng.u8(..100) < 4 {
                let gid = format!("{name}-{round}-{}", rng.u64(..));
                let outcome = in_two_phases(&mut conn, &mut rng, dialect.two_phases, &gid);
                if outcome.is_err() {
                    prepared.push(gid);
                }
                outcome
            } else {
                in_one_phase(&mut conn, &mut rng)
            };
            match outcome {
                Ok(()) | Err(RollbackTransaction) => failures = 0,
                Err(_) if prepared.len() > left => failures = 3,
                Err(_) => failures += 1,
            }
            thread::sleep(BETWEEN);
        }
    }
    // Nothing that was prepared stays open.
    while !prepared.is_empty() {
        match C::establish(url()) {
            Ok(mut conn) => {
                finish(&mut conn, &mut prepared, dialect);
                break;
            }
            Err(_) => thread::sleep(RECONNECT),
        }
    }
}

/// Commits what was left prepared, perhaps. Whatever is still refused may be refused only because the server has not yet noticed that its
/// session is gone, so it is tried again. It may also have been committed after all, or never have been prepared.
fn finish<C: SimpleConnection>(conn: &mut C, prepared: &mut Vec<String>, dialect: Dialect) {
    prepared.retain(|gid| conn.batch_execute(&dialect.two_phases.end("COMMIT", gid)).is_err());
}

/// Returns events in the order in which everybody locks aggregates.
fn records(rng: &mut Rng) -> Vec<Record> {
    let count = match rng.u8(..10) {
        0..4 => 1,
        4..9 => rng.usize(2..8),
        _ => rng.usize(8..60),
    };
    let mut aggregates: Vec<u32> = (0..count).map(|_| rng.u32(..RESERVED)).collect();
    aggregates.sort_unstable();
    aggregates.into_iter().map(record).collect()
}

fn emit<C: OutboxConnection + SimpleConnection>(conn: &mut C, records: &[Record]) -> QueryResult<()> {
    if records.is_empty() {
        // Diesel hands libmariadb an empty statement as a pointer to nothing, which libmariadb follows.
        return Ok(());
    }
    note(conn, records, false)?;
    match records {
        [one] => conn.emit(one).map(drop),
        several => conn.emit_all(several).map(drop),
    }
}

fn in_one_phase<C>(conn: &mut C, rng: &mut Rng) -> QueryResult<()>
where
    C: OutboxConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection,
{
    let records = records(rng);
    conn.transaction(|conn| {
        if rng.u8(..4) == 0 {
            with_savepoints(conn, rng, &records)?;
        } else {
            emit(conn, &records)?;
        }
        if rng.u8(..20) == 0 {
            // Others pass its numbers meanwhile.
            let longest = if rng.u8(..12) == 0 { 1_500 } else { 150 };
            thread::sleep(Duration::from_millis(rng.u64(5..longest)));
        }
        if rng.u8(..10) == 0 { Err(RollbackTransaction) } else { Ok(()) }
    })
}

/// Emits a part of the events in a savepoint, half of which are rolled back.
fn with_savepoints<C>(conn: &mut C, rng: &mut Rng, records: &[Record]) -> QueryResult<()>
where
    C: OutboxConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection,
{
    let (first, rest) = records.split_at(rng.usize(..=records.len()));
    let (inner, last) = rest.split_at(rng.usize(..=rest.len()));
    emit(conn, first)?;
    let saved = conn.transaction(|conn| {
        emit(conn, inner)?;
        if rng.bool() { Err(RollbackTransaction) } else { Ok(()) }
    });
    match saved {
        Ok(()) | Err(RollbackTransaction) => emit(conn, last),
        Err(error) => Err(error),
    }
}

fn in_two_phases<C>(conn: &mut C, rng: &mut Rng, phases: TwoPhases, gid: &str) -> QueryResult<()>
where
    C: OutboxConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection,
{
    AnsiTransactionManager::begin_transaction_sql(conn, &phases.begin(gid))?;
    if matches!(phases, TwoPhases::Prepared) {
        conn.batch_execute("SET LOCAL outbox.notify = 'off'")?;
    }
    emit(conn, &records(rng))?;
    conn.batch_execute(&phases.prepare(gid))?;
    thread::sleep(Duration::from_millis(rng.u64(..100)));
    let end = if rng.u8(..10) == 0 { "ROLLBACK" } else { "COMMIT" };
    conn.batch_execute(&phases.end(end, gid))?;
    // The server has no transaction any more, but Diesel has.
    AnsiTransactionManager::commit_transaction(conn)
}
