//! A worker's source, if the relay has several outboxes.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Claimed, DeadLettered, Lag, Source, SourceError};

use super::outbox::Outbox;
use super::queue::{News, Queue};
use crate::metrics;
use crate::source::database::PostgresDatabase;
use crate::source::polling::postgres::PostgresSource;

/// How long the worker looks after outboxes at once while it makes no passes, because the broker is away.
const UPKEEP_TIME: Duration = Duration::from_millis(200);

/// The outboxes that a queue hands out, as a source: each pass is in another one, if others wait.
pub(crate) struct SharedSource {
    /// In the outbox at hand.
    source: PostgresSource,
    queue: Arc<Queue>,
    at_hand: Option<Arc<Outbox>>,
    /// Whether there is more to do in the outbox at hand than could be seen when it was last looked at.
    has_work: bool,
    /// Whether a look at the outbox at hand went well.
    has_looked: bool,
    /// Whether the worker makes passes.
    makes_passes: bool,
}

impl fmt::Debug for SharedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSource").field("source", &self.source).finish_non_exhaustive()
    }
}

impl SharedSource {
    pub(crate) fn new(database: PostgresDatabase, queue: Arc<Queue>) -> Self {
        Self {
            source: PostgresSource::of(database),
            queue,
            at_hand: None,
            has_work: false,
            has_looked: false,
            makes_passes: false,
        }
    }

    /// Takes this outbox in hand. If there is no connection, nothing is wrong with the outbox, and it waits as before.
    fn take(&mut self, outbox: Arc<Outbox>) -> Result<(), SourceError> {
        if let Err(error) = self.source.enter(outbox.clone()) {
            self.queue.put_back(outbox);
            return Err(error);
        }
        self.at_hand = Some(outbox);
        Ok(())
    }

    /// Looks after the outbox at hand if that is due.
    fn look_after(&mut self) -> Result<(), SourceError> {
        let Some(outbox) = &self.at_hand else { return Ok(()) };
        if outbox.needs_upkeep() {
            outbox.set_needs_upkeep(false);
            if let Some(lag) = self.source.upkeep()? {
                outbox.report_lag(lag);
            }
        }
        Ok(())
    }

    /// Looks after the outbox at hand, and lets others have it. If its look or pass had failed, it would have been put off.
    fn give_back(&mut self) -> Result<(), SourceError> {
        self.look_after()?;
        if let Some(outbox) = self.at_hand.take() {
            if std::mem::take(&mut self.has_looked) && outbox.went_well() {
                metrics::recovered_in(outbox.name());
            }
            if std::mem::take(&mut self.has_work) {
                self.queue.put(outbox);
            } else {
                let after_work = outbox.set_has_work(false);
                self.queue.report(outbox, News::FoundNothing { after_work });
            }
        }
        Ok(())
    }
}

impl Source for SharedSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.makes_passes = true;
        self.give_back()?;
        let Some(outbox) = self.queue.next() else { return Ok(false) };
        self.take(outbox.clone())?;
        // Until the look has found nothing.
        self.has_work = true;
        if outbox.has_failed() {
            // If its pass fails again, it is not given back.
            self.look_after()?;
        }
        self.has_work = self.source.claim()?;
        self.has_looked = true;
        if self.has_work && !outbox.set_has_work(true) {
            self.queue.report(outbox, News::HasWork);
        }
        Ok(self.has_work)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.source.read(limit, records)
    }

    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        self.source.read_ahead(limit)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.source.settle(tickets)
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.source.dead_letter(ticket, reason)
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.source.release()
    }

    fn abandon(&mut self) {
        self.source.abandon();
    }

    fn lingers(&self) -> bool {
        self.source.lingers() && !self.queue.has_waiting()
    }

    fn is_awaited(&self) -> bool {
        self.queue.has_waiting()
    }

    fn put_off(&mut self, error: Option<&SourceError>) -> Option<Duration> {
        let outbox = self.at_hand.take()?;
        (self.has_work, self.has_looked) = (false, false);
        outbox.set_has_work(false);
        let wait = outbox.put_off(error);
        self.queue.report(outbox, News::PutOff(wait));
        Some(wait)
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.give_back()?;
        let has_waiting = self.queue.wait(limit);
        if !has_waiting {
            self.source.rest();
        }
        Ok(has_waiting)
    }

    fn outbox(&self) -> Option<&str> {
        self.at_hand.as_ref().map(|outbox| &**outbox.name())
    }

    /// Looks after the outbox at hand, and after another that waits for that. While the broker is away no pass is made, and the worker
    /// looks after as many as it has time for.
    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        self.give_back()?;
        let time = if std::mem::take(&mut self.makes_passes) { Duration::ZERO } else { UPKEEP_TIME };
        let began = Instant::now();
        while let Some(outbox) = self.queue.next_if(Outbox::needs_upkeep) {
            self.take(outbox)?;
            self.has_work = true;
            self.give_back()?;
            if began.elapsed() >= time {
                break;
            }
        }
        Ok(None)
    }
}
