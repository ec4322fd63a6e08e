use std::time::Duration;

use outbox_tests::load::{new_topic, write};
use outbox_tests::{Kafka, Signal, Tables};

use super::outbox::Outbox;
use super::{PATIENCE, Step, assert_sent_exactly_once, emit_more, start};

pub(super) fn a_relay_that_was_frozen_past_its_claim_writes_nothing_more(outbox: &impl Outbox) {
    let tables = outbox.tables();
    for (name, occurrence) in [("publish after", 150), ("commit before", 1)] {
        let topic = new_topic("frozen");
        let mut committed = write(&mut tables.connect(), 0, 1, 50, 1_000);
        let step =
            Step { name: name.to_owned(), occurrence, delay_us: 1_000, freezes: true, ..Step::default() };
        let frozen = start(outbox, &topic, &step);
        frozen.wait_for_line("the step", PATIENCE, |line| line.contains("reached: "));
        // Its sessions end, as the server ends those of a process that is frozen for long, and another relay gets its claim.
        std::thread::sleep(Duration::from_millis(50));
        tables.end_sessions();
        let next = start(outbox, &topic, &Step::default());
        assert_sent_exactly_once(outbox, &topic, &committed);
        let before = Kafka::shared().read_all_uncommitted(&topic).len();
        frozen.signal(Signal::Continue);
        // It learns of it from the database or from Kafka.
        frozen.wait_for_line("a failure", PATIENCE, |line| line.contains("failed; trying again"));
        assert_eq!(
            Kafka::shared().read_all_uncommitted(&topic).len(),
            before,
            "{name}: the relay that was frozen wrote something"
        );
        committed.extend(emit_more(&mut tables.connect()));
        assert_sent_exactly_once(outbox, &topic, &committed);
        drop((frozen, next));
    }
}
