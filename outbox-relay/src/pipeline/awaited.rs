//! A pass on a backlog, with and without other outboxes that wait.

use std::cell::Cell;
use std::time::{Duration, Instant};

use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_core::{
    Acknowledgement, Claimed, DeadLettered, Outcome, PublishError, Publisher, Record, Refusal, Source,
    SourceError,
};

use super::{Limits, Passed, Pipeline};
use crate::metrics::Metrics;

/// Always has another record.
struct Endless {
    is_awaited: bool,
    read: u64,
    settled: usize,
}

impl Source for Endless {
    fn claim(&mut self) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn read(&mut self, _: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.read += 1;
        records.push(Claimed::new(self.read, Ok(Record::new("order", "1", "OrderPlaced"))));
        Ok(true)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.settled += tickets.len();
        Ok(())
    }

    fn dead_letter(&mut self, _: u64, _: &str) -> Result<DeadLettered, SourceError> {
        Ok(DeadLettered::default())
    }

    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn abandon(&mut self) {}

    fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }
}

/// Acknowledges everything at the next opportunity.
#[derive(Default)]
struct Quick(Vec<u64>);

impl Publisher for Quick {
    fn publish(&mut self, ticket: u64, _: &str, _: &Record) -> Result<(), Refusal> {
        self.0.push(ticket);
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        _: Duration,
        known: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        known.extend(self.0.drain(..).map(|ticket| Acknowledgement::new(ticket, Outcome::Durable)));
        Ok(())
    }

    fn abandon(&mut self) {}

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

/// Makes a pass during which the clock goes on a millisecond at each look, and returns how many records it sent.
fn sent(is_awaited: bool) -> usize {
    let (began, looks) = (Instant::now(), Cell::new(0));
    let pipeline = Pipeline {
        topic_naming: &TopicNaming::default(),
        metrics: &Metrics::new(),
        limits: Limits::default(),
        now: &|| {
            looks.set(looks.get() + 1);
            began + Duration::from_millis(looks.get())
        },
        published: &Cell::new(0),
        stopping: &|| false,
    };
    let mut source = Endless { is_awaited, read: 0, settled: 0 };
    assert!(matches!(pipeline.pass(&mut source, &mut Quick::default()), Ok(Passed::Worked)));
    assert_eq!(source.settled as u64, source.read, "what was read is sent");
    source.settled
}

#[test]
fn a_pass_on_a_backlog_ends_sooner_if_other_outboxes_wait_but_not_before_it_has_sent_something() {
    let (awaited, alone) = (sent(true), sent(false));
    assert!(awaited > 1 && awaited < alone / 5, "{awaited} records while others wait, {alone} else");
}
