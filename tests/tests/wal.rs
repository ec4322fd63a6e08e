//! The relay that reads the WAL loses nothing, keeps the order of each aggregate, and sends once what the table held when the
//! slot was made.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use outbox_tests::load::{
    count, migrated, migrated_on, new_topic, relay, repetitions, stop, wait_until_confirmed, wal, wal_relay,
    write, write_together,
};
use outbox_tests::{Kafka, Postgres, Process, Signal, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn events_from_before_the_setup_are_sent_first_and_then_those_written_since() {
    let database = migrated();
    let topic = new_topic("wal");
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 2, 1_000, 20_000);
    let (more, relay) = std::thread::scope(|scope| {
        let written = scope.spawn(|| write(&mut database.connect(), 1, 2, 1_000, 40_000));
        let set_up = scope.spawn(|| wal(&database, "setup"));
        assert!(set_up.join().unwrap().contains("are read from the slot"));
        let relay = wal_relay(&database, &topic);
        (written.join().unwrap(), relay)
    });
    committed.extend(more);
    let counter = Kafka::shared().counter(&topic);
    eventually("all events", PATIENCE, || (counter.count() >= committed.len()).then_some(()));
    stop(&relay);
    let received = Kafka::shared().read_all(&topic);
    assert_eq!(repetitions(&received, &committed), 0);
    assert!(count(conn, "outbox WHERE sent_at IS NULL") > 0, "all was polled");
}

/// The shards' lower bounds are a little before the last polled number, by less than the least step by which they move, and far
/// behind the later numbers.
#[test]
fn a_relay_that_starts_late_does_not_look_for_ever_for_polled_events() {
    let database = migrated();
    let topic = new_topic("late");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 1, 10, 100);
    let polling = relay(&database, &topic, &[]);
    eventually("the first events", PATIENCE, || (counter.count() >= 100).then_some(()));
    stop(&polling);
    wal(&database, "setup");
    let later: Vec<Record> =
        (0..70_000).map(|number| Record::new("order", "late", number.to_string())).collect();
    committed.extend(later.iter().map(|record| record.id().to_string()));
    conn.transaction(|c| c.emit_all(&later)).unwrap();
    let relay = wal_relay(&database, &topic);
    eventually("all events", PATIENCE, || (counter.count() >= committed.len()).then_some(()));
    stop(&relay);
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

/// Events that were not polled before the drop are polled after it.
#[test]
fn unsent_events_stay_unsent_when_the_slot_is_dropped() {
    let database = migrated();
    let topic = new_topic("dropped");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 1, 10, 2_000);
    wal(&database, "setup");
    committed.extend(write(conn, 0, 1, 10, 1_000));
    wal(&database, "drop");
    let relay = relay(&database, &topic, &[]);
    eventually("all events", PATIENCE, || (counter.count() >= 3_000).then_some(()));
    stop(&relay);
    assert_eq!(Kafka::shared().read_all(&topic).len(), committed.len());
}

/// A transaction with a low number commits after the relay has stopped. Only its event must be polled.
#[test]
fn events_sent_before_an_older_event_commits_are_not_sent_again() {
    let database = migrated();
    let topic = new_topic("older");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let log = wal_relay(&database, &topic);
    let late = &mut database.connect();
    late.batch_execute("BEGIN").unwrap();
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
                  VALUES (gen_random_uuid(), 'order', 'late', '0', 0)";
    late.batch_execute(insert).unwrap();
    write(&mut database.connect(), 0, 1, 10, 500);
    eventually("the others", PATIENCE, || (counter.count() >= 500).then_some(()));
    stop(&log);
    late.batch_execute("COMMIT").unwrap();
    wal(&database, "drop");
    let polling = relay(&database, &topic, &[]);
    let conn = &mut database.connect();
    eventually("all to be sent", PATIENCE, || {
        (count(conn, "outbox WHERE sent_at IS NULL AND aggregateid = 'late'") == 0).then_some(())
    });
    stop(&polling);
    assert_eq!(Kafka::shared().read_all(&topic).len(), 501);
}

/// A random number below this one.
fn random(below: usize) -> usize {
    Record::new("", "", "").id().as_u128() as usize % below
}

/// This happens twice: when a relay starts, and after it was frozen for a while. The first relay is killed in the middle.
#[test]
fn a_relay_that_is_far_behind_reads_batches_and_then_the_stream() {
    // A server of its own: everything that it writes counts towards how far the relay is behind.
    let server = Postgres::start(15);
    let database = migrated_on(&server);
    let topic = new_topic("behind");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    wal(&database, "setup");
    let write_by = |writers: std::ops::Range<usize>, events: usize| -> BTreeSet<String> {
        std::thread::scope(|scope| {
            let database = &database;
            let write = |writer| move || write(&mut database.connect(), writer, 9, 900, events);
            let writers: Vec<_> = writers.map(|writer| scope.spawn(write(writer))).collect();
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        })
    };
    let mut committed = write_by(0..4, 50_000);
    let large: Vec<Record> =
        (0..60_000).map(|number| Record::new("order", "large", number.to_string())).collect();
    committed.extend(large.iter().map(|record| record.id().to_string()));
    conn.transaction(|c| c.emit_all(&large)).unwrap();

    let in_batches = |relay: &Process| {
        relay.wait_for_line("that it reads chunks", PATIENCE, |line| line.contains("in chunks"));
    };
    let streams = |relay: &Process| {
        relay.wait_for_line("that it streams", PATIENCE, |line| line.contains("streamed from here on"));
    };
    let killed = wal_relay(&database, &topic);
    in_batches(&killed);
    eventually("some events", PATIENCE, || (counter.count() >= 50_000).then_some(()));
    killed.signal(Signal::Kill);
    killed.wait(PATIENCE);
    let relay = wal_relay(&database, &topic);
    in_batches(&relay);
    std::thread::scope(|scope| {
        let written = scope.spawn(|| write_by(4..5, 20_000));
        streams(&relay);
        committed.extend(written.join().unwrap());
    });
    eventually("all events", PATIENCE, || (counter.count() >= committed.len()).then_some(()));
    let printed = relay.lines().len();
    relay.signal(Signal::Stop);
    committed.extend(write_by(5..9, 50_000));
    relay.signal(Signal::Continue);
    for what in ["in chunks", "streamed from here on"] {
        eventually(what, PATIENCE, || {
            relay.lines()[printed..].iter().any(|line| line.contains(what)).then_some(())
        });
    }
    eventually("all events", PATIENCE, || (counter.count() >= committed.len()).then_some(()));
    stop(&relay);
    let repeated = repetitions(&Kafka::shared().read_all(&topic), &committed);
    println!("{repeated} repeated as the first was killed");
    assert!(repeated < 25_000, "{repeated} repeated");
}

/// One of two relays is active. It is killed at any moment, and the other one takes over.
#[test]
fn relays_that_are_killed_lose_nothing_and_repeat_only_what_was_not_confirmed() {
    const EVENTS: usize = 200_000;
    const KILLS: usize = 20;
    let database = migrated();
    let topic = new_topic("killed");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let (committed, relays) = std::thread::scope(|scope| {
        let written = scope.spawn(|| write_together(&database, 4, EVENTS));
        let mut relays = vec![wal_relay(&database, &topic), wal_relay(&database, &topic)];
        for kill in 1..=KILLS {
            let target = kill * EVENTS / (KILLS + 2) + random(EVENTS / KILLS / 2);
            eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
            let active = relays.iter().position(is_active).unwrap_or(0);
            let victim = relays.remove(active);
            victim.signal(Signal::Kill);
            victim.wait(PATIENCE);
            relays.push(wal_relay(&database, &topic));
        }
        (written.join().unwrap(), relays)
    });
    eventually("all events", PATIENCE, || (counter.count() >= EVENTS).then_some(()));
    wait_until_confirmed(&mut database.connect(), PATIENCE);
    relays.iter().for_each(stop);
    let repeated = repetitions(&Kafka::shared().read_all(&topic), &committed);
    println!("{repeated} of {EVENTS} repeated in {KILLS} kills");
    // The records in flight, and those that were settled since the relay last confirmed its position.
    assert!(repeated < KILLS * 9_000, "{repeated} repeated");
}

fn is_active(relay: &Process) -> bool {
    relay.lines().iter().any(|line| line.contains("this relay reads the write-ahead log"))
}

#[test]
fn a_relay_that_is_stopped_by_a_signal_repeats_nothing() {
    const EVENTS: usize = 100_000;
    let database = migrated();
    let topic = new_topic("stopped");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let conn = &mut database.connect();
    // One large transaction, which no confirmation can divide, and many small ones.
    let large: Vec<Record> = (0..EVENTS / 2)
        .map(|n| Record::new("order", "large", n.to_string()).with_payload(vec![b'x'; 200]))
        .collect();
    conn.transaction(|c| c.emit_all(&large)).unwrap();
    let mut committed = write(conn, 0, 1, 500, EVENTS / 2);
    committed.extend(large.iter().map(|record| record.id().to_string()));
    for target in [10_000, 30_000, 60_000] {
        let relay = wal_relay(&database, &topic);
        eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
        stop(&relay);
        assert!(counter.count() < EVENTS, "the stop came after the end");
        // A relay that is stopped before it has received anything must know what was sent, too.
        let relay = wal_relay(&database, &topic);
        relay.wait_for_line("that it reads", PATIENCE, |line| line.contains("reads the write-ahead log"));
        stop(&relay);
    }
    let relay = wal_relay(&database, &topic);
    eventually("the rest", PATIENCE, || (counter.count() >= EVENTS).then_some(()));
    stop(&relay);
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

#[test]
fn another_relay_takes_over_within_two_seconds() {
    let database = migrated();
    let topic = new_topic("standby");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let conn = &mut database.connect();
    let mut emit = || conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
    let first = wal_relay(&database, &topic);
    emit();
    eventually("the first event", PATIENCE, || (counter.count() >= 1).then_some(()));
    let second = wal_relay(&database, &topic);
    let next_in_line = "pg_locks WHERE locktype = 'advisory' AND classid = 1869968486 AND granted \
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let looking = &mut database.connect();
    eventually("the second relay to stand by", PATIENCE, || {
        (count(looking, next_in_line) == 1).then_some(())
    });
    first.signal(Signal::Kill);
    first.wait(PATIENCE);
    let killed = Instant::now();
    emit();
    eventually("the second event", PATIENCE, || (counter.count() >= 2).then_some(()));
    let took = killed.elapsed();
    println!("taken over after {took:?}");
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    stop(&second);
}

#[test]
fn polling_continues_where_reading_the_wal_ended_and_the_other_way_round() {
    let database = migrated();
    let topic = new_topic("back");
    let counter = Kafka::shared().counter(&topic);
    let committed = std::thread::scope(|scope| {
        let written = scope.spawn(|| write_together(&database, 4, 150_000));
        let polling = relay(&database, &topic, &[]);
        let has_come = |events| {
            eventually("some events", PATIENCE, || (counter.count() >= events).then_some(()));
        };
        has_come(15_000);
        // Both relays run, and each sends its part.
        wal(&database, "setup");
        let log = wal_relay(&database, &topic);
        has_come(50_000);
        stop(&polling);
        stop(&log);
        wal(&database, "drop");
        let polling = relay(&database, &topic, &[]);
        has_come((counter.count() + 20_000).min(150_000));
        wal(&database, "setup");
        stop(&polling);
        let log = wal_relay(&database, &topic);
        let committed = written.join().unwrap();
        has_come(committed.len());
        stop(&log);
        committed
    });
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

#[test]
fn a_relay_whose_slot_is_gone_stops_and_after_another_setup_the_rest_is_sent() {
    let database = migrated();
    let topic = new_topic("lost");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    let refused = wal_relay(&database, &topic);
    assert_eq!(refused.wait(PATIENCE).code(), Some(1));
    refused.wait_for_line("what to do", PATIENCE, |line| line.contains("run `outbox wal setup --slot"));

    wal(&database, "setup");
    let mut committed = write(conn, 0, 1, 10, 1_000);
    let relay = wal_relay(&database, &topic);
    eventually("the first events", PATIENCE, || (counter.count() >= 1_000).then_some(()));
    stop(&relay);
    // More events are written, and the slot is lost.
    committed.extend(
        (0..100)
            .map(|n| {
                let record = Record::new("order", "late", n.to_string());
                conn.transaction(|c| c.emit(&record)).unwrap().to_string()
            })
            .collect::<Vec<_>>(),
    );
    conn.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", database.name())).unwrap();
    let stopped = wal_relay(&database, &topic);
    assert_eq!(stopped.wait(PATIENCE).code(), Some(1));
    stopped.wait_for_line("what to do", PATIENCE, |line| line.contains("no longer exists"));

    wal(&database, "setup");
    let relay = wal_relay(&database, &topic);
    // Some events may arrive a second time before the last one arrives for the first time.
    eventually("the rest", PATIENCE, || {
        let received = Kafka::shared().read_all(&topic);
        let ids: BTreeSet<_> = received.iter().filter_map(|event| event.header("id")).collect();
        (ids.len() == committed.len()).then_some(())
    });
    stop(&relay);
    let repeated = repetitions(&Kafka::shared().read_all(&topic), &committed);
    println!("{repeated} repeated after a slot was lost");
}

#[test]
fn an_idle_outbox_does_not_retain_the_wal_of_other_tables() {
    let database = migrated();
    let topic = new_topic("idle");
    wal(&database, "setup");
    let watched =
        ["--source", "wal", "--slot", database.name(), "--lag-interval", "100ms", "--slot-size-warning", "1"];
    let relay = relay(&database, &topic, &watched);
    relay.wait_for_line("a warning", PATIENCE, |line| line.contains("max_slot_wal_keep_size is not set"));
    let conn = &mut database.connect();
    conn.batch_execute("CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
        .unwrap();
    wait_until_confirmed(conn, PATIENCE);
    relay.wait_for_line("a warning", PATIENCE, |line| line.contains("the slot retains much"));
    relay.wait_for_line("the lag", PATIENCE, |line| {
        ["outbox lag", "wal_bytes=", "wal_seconds=", "retained_bytes=", "slot_status=\"reserved\""]
            .iter()
            .all(|part| line.contains(part))
    });
    stop(&relay);
}

/// The shards' lower bounds show that these rows were sent, and they are old enough.
#[test]
fn rows_that_were_sent_from_the_wal_are_pruned_without_a_mark() {
    let database = migrated();
    let topic = new_topic("pruned");
    wal(&database, "setup");
    let conn = &mut database.connect();
    let keeping = wal_relay(&database, &topic);
    write(conn, 0, 1, 10, 500);
    eventually("it to be known that all are sent", PATIENCE, || {
        (count(conn, "outbox WHERE seq > (SELECT min(sent_through) FROM outbox_shard)") == 0).then_some(())
    });
    stop(&keeping);
    assert_eq!((count(conn, "outbox"), count(conn, "outbox WHERE sent_at IS NOT NULL")), (500, 0));
    let options = ["--source", "wal", "--slot", database.name(), "--keep-sent", "1s"];
    let pruning = relay(&database, &topic, &options);
    eventually("the rows to be pruned", PATIENCE, || (count(conn, "outbox") == 0).then_some(()));
    stop(&pruning);
    assert_eq!(Kafka::shared().read_all(&topic).len(), 500);
}

/// Rows that the service deletes in the same transaction are still in the WAL.
#[test]
fn events_whose_rows_are_deleted_in_their_own_transaction_are_sent() {
    let database = migrated();
    let topic = new_topic("empty");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let relay = wal_relay(&database, &topic);
    let conn = &mut database.connect();
    for n in 0..100 {
        conn.transaction(|c| {
            let id = c.emit(&Record::new("order", "1", n.to_string()))?;
            c.batch_execute(&format!("DELETE FROM outbox WHERE id = '{id}'"))?;
            QueryResult::Ok(())
        })
        .unwrap();
    }
    conn.batch_execute("TRUNCATE outbox").unwrap();
    eventually("all events", PATIENCE, || (counter.count() >= 100).then_some(()));
    stop(&relay);
    assert_eq!(Kafka::shared().read_all(&topic).len(), 100);
    assert_eq!(count(conn, "outbox"), 0);
}

#[test]
fn a_relay_keeps_running_when_a_column_is_added_to_the_table() {
    let database = migrated();
    let topic = new_topic("column");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let relay = wal_relay(&database, &topic);
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 1, 10, 500);
    conn.batch_execute("ALTER TABLE outbox ADD COLUMN tenant text DEFAULT 'a'").unwrap();
    committed.extend(write(conn, 0, 1, 10, 500));
    eventually("all events", PATIENCE, || (counter.count() >= 1_000).then_some(()));
    stop(&relay);
    let received = Kafka::shared().read_all(&topic);
    assert_eq!(received.len(), committed.len());
}
