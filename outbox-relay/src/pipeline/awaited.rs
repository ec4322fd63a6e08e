//! A pass on a backlog, with and without other outboxes that wait.

use std::cell::Cell;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Claimed, DeadLettered, Record, Source, SourceError};

use super::Passed;
use super::rehearsal::{Quick, pass_by};

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

/// Makes a pass during which the clock goes on a millisecond at each look, and returns how many records it sent.
fn sent(is_awaited: bool) -> usize {
    let (began, looks) = (Instant::now(), Cell::new(0));
    let now = || {
        looks.set(looks.get() + 1);
        began + Duration::from_millis(looks.get())
    };
    let mut source = Endless { is_awaited, read: 0, settled: 0 };
    assert!(matches!(pass_by(&now, &mut source, &mut Quick::default()), Ok(Passed::Worked)));
    assert_eq!(source.settled as u64, source.read, "what was read is sent");
    source.settled
}

#[test]
fn a_pass_on_a_backlog_ends_sooner_if_other_outboxes_wait_but_not_before_it_has_sent_something() {
    let (awaited, alone) = (sent(true), sent(false));
    assert!(awaited > 1 && awaited < alone / 5, "{awaited} records while others wait, {alone} else");
}
