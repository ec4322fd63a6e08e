//! The same from the WAL, and what is different there.

use std::time::Duration;

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::{Source, SourceError};
use diesel_outbox_relay::source::SourceOptions;
use diesel_outbox_relay::source::wal::{WalOptions, WalSource};
use outbox_tests::load::{migrated, new_topic, wal, write};
use outbox_tests::{Database, Signal, Tables};
use uuid::Uuid;

use super::outbox::{FromWal, Outbox};
use super::{PATIENCE, Step, assert_sent_exactly_once, emit_from, frozen, killed, lanes, refused, start};

#[test]
fn a_relay_on_the_wal_that_is_killed_at_any_step_loses_nothing_and_sends_nothing_twice() {
    killed::a_relay_that_is_killed_at_any_step_loses_nothing_and_sends_nothing_twice(&FromWal::new());
}

#[test]
fn a_relay_on_the_wal_that_was_frozen_past_its_claim_writes_nothing_more() {
    frozen::a_relay_that_was_frozen_past_its_claim_writes_nothing_more(&FromWal::new());
}

#[test]
fn one_relay_on_the_wal_works_and_the_next_takes_over_when_it_is_killed() {
    lanes::one_relay_works_and_the_next_takes_over_when_it_is_killed(&FromWal::new());
}

#[test]
fn a_record_from_the_wal_that_kafka_refuses_becomes_a_dead_letter_and_the_others_arrive_once() {
    refused::a_record_that_kafka_refuses_becomes_a_dead_letter_and_the_others_arrive_once(&FromWal::new());
}

/// Starts a relay that kills itself at a step, and waits until it has.
fn kill_at(outbox: &impl Outbox, topic: &str, name: &str) {
    let step = Step { name: name.to_owned(), occurrence: 1, ..Step::default() };
    let relay = start(outbox, topic, &step);
    relay.wait_for_line("the step", PATIENCE, |line| line.contains("reached: "));
    relay.signal(Signal::Kill);
    relay.wait(PATIENCE);
}

#[test]
fn what_was_in_the_table_at_the_setup_is_sent_exactly_once_too() {
    let (database, topic) = (migrated(), new_topic("cutover"));
    let mut committed = write(&mut database.connect(), 0, 1, 50, 1_000);
    wal(&database, "setup");
    let outbox = FromWal::of(database);
    for (number, step) in
        ["commit after", "commit before", "commit after", "settle_committed after", "release after"]
            .iter()
            .enumerate()
    {
        committed.extend(emit_from(&mut outbox.tables().connect(), 10_000 + 200 * number));
        kill_at(&outbox, &topic, step);
    }
    let _relay = start(&outbox, &topic, &Step::default());
    assert_sent_exactly_once(&outbox, &topic, &committed);
}

#[test]
fn what_a_relay_that_was_killed_had_committed_is_not_polled_once_the_slot_is_dropped() {
    let (database, topic) = (migrated(), new_topic("dropped"));
    wal(&database, "setup");
    let committed = write(&mut database.connect(), 0, 1, 50, 1_000);
    let outbox = FromWal::of(database);
    kill_at(&outbox, &topic, "commit after");
    let database = outbox.tables();
    database.wait_for_the_relays_end();
    wal(database, "drop");
    let _relay = start(database, &topic, &Step::default());
    assert_sent_exactly_once(database, &topic, &committed);
}

#[test]
fn an_aggregate_on_the_wal_is_blocked_by_its_dead_letter_and_the_others_arrive_once() {
    refused::an_aggregate_is_blocked_by_its_dead_letter_and_the_others_arrive_once(&FromWal::new());
}

/// A source as a relay has it that sends exactly once.
fn source(database: &Database<'_>) -> WalSource {
    let options = SourceOptions::default().exactly_once(true);
    WalSource::new(database.relay_url(), options, WalOptions::default().slot(database.name()))
}

fn claim(source: &mut WalSource) {
    outbox_tests::eventually("something to claim", PATIENCE, || {
        let claimed = source.claim().unwrap();
        (claimed || source.wait(Duration::from_millis(10)).unwrap() && source.claim().unwrap()).then_some(())
    });
}

fn take_over(source: &mut WalSource, ids: &[Uuid]) {
    claim(source);
    source.settle_committed(ids).unwrap();
    source.release().unwrap();
}

/// Reads so many records and settles them. The pass stays open. Returns their ids.
fn pass(source: &mut WalSource, limit: usize) -> Result<Vec<Uuid>, SourceError> {
    claim(source);
    let mut records = Vec::new();
    source.read(limit, &mut records)?;
    source.settle(&records.iter().map(|claimed| claimed.ticket).collect::<Vec<_>>())?;
    Ok(records.iter().map(|claimed| claimed.record.as_ref().unwrap().id()).collect())
}

/// Emits six events in one transaction. Returns their ids.
fn emit_six(database: &Database<'_>) -> Vec<Uuid> {
    wal(database, "setup");
    let records: Vec<Record> = (0..6).map(|number| Record::new("order", "1", format!("{number}"))).collect();
    database.connect().transaction(|c| c.emit_all(&records)).unwrap();
    records.iter().map(Record::id).collect()
}

/// A relay settles the first two events, and is frozen when it has committed the next two to Kafka.
fn frozen_after_a_commit(database: &Database<'_>) -> (WalSource, Vec<Uuid>) {
    let (ids, mut frozen) = (emit_six(database), source(database));
    take_over(&mut frozen, &[]);
    assert_eq!(pass(&mut frozen, 2).unwrap(), ids[..2]);
    frozen.release().unwrap();
    assert_eq!(pass(&mut frozen, 2).unwrap(), ids[2..4]);
    cut_off(database);
    (frozen, ids)
}

/// The server gives the active relay's lock and slot away, but not its other session.
fn cut_off(database: &Database<'_>) {
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE relation = 'outbox_reader'::regclass \
               AND mode = 'ExclusiveLock'; \
               SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots \
               WHERE slot_name = current_database() AND active";
    database.connect().batch_execute(end).unwrap();
}

#[test]
fn a_position_that_a_frozen_relay_stores_late_does_not_undo_what_another_one_has_sent() {
    let database = migrated();
    let (mut frozen, ids) = frozen_after_a_commit(&database);
    let mut next = source(&database);
    take_over(&mut next, &ids[2..4]);
    assert_eq!(pass(&mut next, 1).unwrap(), ids[4..5]);
    next.release().unwrap();
    frozen.release().expect_err("that it was overtaken");
    drop((frozen, next));
    assert_eq!(pass(&mut source(&database), 9).unwrap(), ids[5..]);
}

#[test]
fn a_position_that_a_frozen_relay_stores_after_the_take_over_does_not_count() {
    let database = migrated();
    let (mut frozen, ids) = frozen_after_a_commit(&database);
    let mut next = source(&database);
    take_over(&mut next, &ids[2..4]);
    frozen.release().expect_err("that it was overtaken");
    assert_eq!(pass(&mut next, 9).unwrap(), ids[4..]);
    next.release().unwrap();
}

/// The one that has taken over may have sent the record.
#[test]
fn a_frozen_relay_makes_no_dead_letter_after_another_one_has_taken_over() {
    let database = migrated();
    let (ids, mut frozen, mut records) = (emit_six(&database), source(&database), Vec::new());
    take_over(&mut frozen, &[]);
    claim(&mut frozen);
    frozen.read(1, &mut records).unwrap();
    cut_off(&database);
    let mut next = source(&database);
    take_over(&mut next, &[]);
    assert_eq!(pass(&mut next, 9).unwrap(), ids);
    frozen.dead_letter(records[0].ticket, "refused").expect_err("that it was overtaken");
    next.release().unwrap();
    assert_eq!(database.count("outbox_dead_letter"), 0);
}
