//! What tests of a pass share: rows, a publisher, and the pass itself.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_core::{
    Acknowledgement, Claimed, DeadLettered, Outcome, PublishError, Publisher, Record, Refusal, Source,
    SourceError,
};

use super::{Limits, PassError, Passed, Pipeline};
use crate::max_rate::MaxRate;
use crate::metrics::Metrics;

/// The rows of one pass. The policy is to block.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) unread: Vec<Claimed>,
    pub(crate) settled: Vec<u64>,
    pub(crate) dead: Vec<u64>,
}

impl Source for Rows {
    fn claim(&mut self) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn read(&mut self, _: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        records.append(&mut self.unread);
        Ok(false)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.settled.extend(tickets);
        Ok(())
    }

    fn dead_letter(&mut self, ticket: u64, _: &str) -> Result<DeadLettered, SourceError> {
        self.dead.push(ticket);
        Ok(DeadLettered::default().holding_back(true))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn abandon(&mut self) {}

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }
}

/// Takes everything but events of the type `Refused`, and acknowledges it at the next opportunity.
#[derive(Default)]
pub(crate) struct Quick {
    in_flight: Vec<u64>,
    /// How many records it has taken.
    pub(crate) taken: Arc<AtomicUsize>,
}

impl Publisher for Quick {
    fn publish(&mut self, ticket: u64, _: &str, record: &Record) -> Result<(), Refusal> {
        if record.event_type() == "Refused" {
            return Err(Refusal::Rejected { reason: "refused".to_owned() });
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.in_flight.push(ticket);
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        _: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        let durable = |ticket| Acknowledgement::new(ticket, Outcome::Durable);
        acknowledgements.extend(self.in_flight.drain(..).map(durable));
        Ok(())
    }

    fn abandon(&mut self) {
        self.in_flight.clear();
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

/// Makes a pass with this clock.
pub(crate) fn pass_by(
    now: &dyn Fn() -> Instant,
    source: &mut dyn Source,
    publisher: &mut dyn Publisher,
) -> Result<Passed, PassError> {
    let pipeline = Pipeline {
        topic_naming: &TopicNaming::default(),
        max_rate: &MaxRate::default(),
        metrics: &Metrics::new(),
        limits: Limits::default(),
        now,
        published: &Cell::new(0),
        stopping: &|| false,
    };
    pipeline.pass(source, publisher)
}

/// Makes a pass.
pub(crate) fn pass(source: &mut dyn Source, publisher: &mut dyn Publisher) -> Result<Passed, PassError> {
    pass_by(&Instant::now, source, publisher)
}
