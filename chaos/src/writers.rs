//! Writers that emit in transactions of every kind, and note each event in the ledger in the same transaction.

use std::sync::atomic::{AtomicBool, Ordering};
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
}

/// How a writer speaks to its database.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Sets the longest wait for a lock.
    pub session: &'static str,
    /// Whether a transaction can be prepared, to be committed later by another session.
    pub prepares: bool,
}

/// How long a writer waits before it connects again, and between two transactions.
const RECONNECT: Duration = Duration::from_millis(50);
const BETWEEN: Duration = Duration::from_millis(4);

/// Writes until the order to end. A transaction that fails is forgotten: what was committed, the ledger knows.
pub fn write<C>(url: &str, name: usize, mut rng: Rng, dialect: Dialect, orders: &Orders)
where
    C: OutboxConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection,
{
    let mut round = 0_u64;
    let mut prepared: Option<String> = None;
    while !orders.end.load(Ordering::Relaxed) {
        let Ok(mut conn) = C::establish(url) else {
            thread::sleep(RECONNECT);
            continue;
        };
        if conn.batch_execute(dialect.session).is_err() {
            continue;
        }
        if let Some(left) = prepared.take() {
            // It may have been committed after all, or never have been prepared.
            let _ = conn.batch_execute(&format!("COMMIT PREPARED '{left}'"));
        }
        let mut failures = 0;
        // After a few failures it looks whether a new connection does better.
        while failures < 3 && !orders.end.load(Ordering::Relaxed) {
            if orders.pause.load(Ordering::Relaxed) {
                thread::sleep(BETWEEN);
                continue;
            }
            round += 1;
            let outcome = if dialect.prepares && rng.u8(..100) < 4 {
                let gid = format!("{name}-{round}-{}", rng.u64(..));
                let outcome = in_two_phases(&mut conn, &mut rng, &gid);
                prepared = outcome.is_err().then_some(gid);
                outcome
            } else {
                in_one_phase(&mut conn, &mut rng)
            };
            match outcome {
                Ok(()) | Err(RollbackTransaction) => failures = 0,
                Err(_) if prepared.is_some() => failures = 3,
                Err(_) => failures += 1,
            }
            thread::sleep(BETWEEN);
        }
    }
    // Nothing that was prepared stays open.
    while let Some(left) = prepared.take() {
        match C::establish(url) {
            Ok(mut conn) => drop(conn.batch_execute(&format!("COMMIT PREPARED '{left}'"))),
            Err(_) => {
                thread::sleep(RECONNECT);
                prepared = Some(left);
            }
        }
    }
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

fn in_two_phases<C>(conn: &mut C, rng: &mut Rng, gid: &str) -> QueryResult<()>
where
    C: OutboxConnection<TransactionManager = AnsiTransactionManager> + SimpleConnection,
{
    AnsiTransactionManager::begin_transaction(conn)?;
    let prepared = conn
        .batch_execute("SET LOCAL outbox.notify = 'off'")
        .and_then(|()| emit(conn, &records(rng)))
        .and_then(|()| conn.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")));
    if let Err(error) = prepared {
        let _ = AnsiTransactionManager::rollback_transaction(conn);
        return Err(error);
    }
    // The server has no transaction any more, but Diesel has.
    AnsiTransactionManager::commit_transaction(conn)?;
    thread::sleep(Duration::from_millis(rng.u64(..100)));
    let end = if rng.u8(..10) == 0 { "ROLLBACK" } else { "COMMIT" };
    conn.batch_execute(&format!("{end} PREPARED '{gid}'"))
}
