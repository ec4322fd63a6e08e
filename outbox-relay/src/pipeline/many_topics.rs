//! How many records a pass has in flight, if they are of few topics, and of many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel_outbox_core::{
    Acknowledgement, Claimed, DeadLettered, Outcome, PublishError, Publisher, Record, Refusal, Source,
    SourceError,
};

use super::Passed;
use super::rehearsal::pass_by;

const RECORDS: u64 = 100_000;

/// Has records of so many topics in turn.
struct OfTopics {
    topics: u64,
    read: u64,
}

impl Source for OfTopics {
    fn claim(&mut self) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let end = RECORDS.min(self.read + limit as u64);
        let record = |n: u64| Record::new(format!("t{}", n % self.topics), "1", "OrderPlaced");
        records.extend((self.read..end).map(|n| Claimed::new(n, Ok(record(n)))));
        self.read = end;
        Ok(end < RECORDS)
    }

    fn settle(&mut self, _: &[u64]) -> Result<(), SourceError> {
        Ok(())
    }

    fn dead_letter(&mut self, _: u64, _: &str) -> Result<DeadLettered, SourceError> {
        Ok(DeadLettered::default())
    }

    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn abandon(&mut self) {}

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }
}

/// Acknowledges nothing before it gets nothing more.
#[derive(Default)]
struct Holding {
    in_flight: Vec<u64>,
    had: usize,
    most: Arc<AtomicUsize>,
}

impl Publisher for Holding {
    fn publish(&mut self, ticket: u64, _: &str, _: &Record) -> Result<(), Refusal> {
        self.in_flight.push(ticket);
        self.most.fetch_max(self.in_flight.len(), Ordering::Relaxed);
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        _: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        if self.had == self.in_flight.len() {
            let durable = |ticket| Acknowledgement::new(ticket, Outcome::Durable);
            acknowledgements.extend(self.in_flight.drain(..).map(durable));
        }
        self.had = self.in_flight.len();
        Ok(())
    }

    fn abandon(&mut self) {}

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

#[test]
fn more_records_may_be_in_flight_if_they_are_of_many_topics() {
    // However slow the machine is, the pass has time.
    let began = Instant::now();
    for (topics, expected) in [(1, 8_000), (499, 8_000), (500, 16_000), (1_000, 32_000), (4_000, 32_000)] {
        let publisher = Holding::default();
        let most = publisher.most.clone();
        let passed = pass_by(&|| began, &mut OfTopics { topics, read: 0 }, &mut { publisher });
        assert!(matches!(passed, Ok(Passed::Worked)));
        assert_eq!(most.load(Ordering::Relaxed), expected, "{topics} topics");
    }
}
