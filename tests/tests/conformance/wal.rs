//! The WAL as a source.

use std::time::{Duration, Instant};

use diesel_outbox::Record;
use diesel_outbox_core::{Claimed, DeadLettered, Lag, Source, SourceError};
use diesel_outbox_relay::operate::Operate;
use diesel_outbox_relay::source::SourceOptions;
use diesel_outbox_relay::source::wal::{WalOptions, WalSource, setup};
use outbox_tests::Database;

use super::store::{OnServer, Store, postgres};

/// PostgreSQL, read from a slot that was made before the first emit.
pub(super) struct OnWal(OnServer<Database<'static>>);

pub(super) fn wal() -> OnWal {
    let store = postgres(15);
    setup(&mut store.tables.connect(), &mut store.tables.connect(), &options(&store.tables)).unwrap();
    OnWal(store)
}

fn options(database: &Database<'_>) -> WalOptions {
    let mut options = WalOptions::default();
    options.slot = database.name().to_owned();
    options
}

impl Store for OnWal {
    fn source(&self, options_of_source: SourceOptions) -> Box<dyn Source> {
        let database = &self.0.tables;
        Box::new(Patient(WalSource::new(database.relay_url(), options_of_source, options(database))))
    }

    fn emit(&self, records: &[Record]) {
        self.0.emit(records);
    }

    fn execute(&self, sql: &str) {
        self.0.execute(sql);
    }

    fn count(&self, from: &str) -> i64 {
        self.0.count(from)
    }

    fn observe(&self) -> Box<dyn Operate + Send> {
        self.0.observe()
    }

    fn requeues_at_once(&self) -> bool {
        true
    }

    fn restart_numbers(&self) {
        self.0.restart_numbers();
    }
}

/// A committed event arrives a moment later, so this waits for it if there is none yet.
struct Patient(WalSource);

const A_MOMENT: Duration = Duration::from_millis(1_500);

impl Source for Patient {
    fn claim(&mut self) -> Result<bool, SourceError> {
        let since = Instant::now();
        while !self.0.claim()? {
            if since.elapsed() >= A_MOMENT {
                return Ok(false);
            }
            self.0.wait(Duration::from_millis(10))?;
        }
        Ok(true)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let (before, since) = (records.len(), Instant::now());
        loop {
            let more = self.0.read(limit, records)?;
            if records.len() > before || since.elapsed() >= A_MOMENT {
                return Ok(more);
            }
            self.0.wait(Duration::from_millis(10))?;
        }
    }

    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        self.0.read_ahead(limit)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.0.settle(tickets)
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.0.dead_letter(ticket, reason)
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.0.release()
    }

    fn abandon(&mut self) {
        self.0.abandon();
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.0.wait(limit)
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        self.0.upkeep()
    }
}
