//! `outbox wal setup` and `outbox wal drop`, with many unread events, with dead letters, and after accidents.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::wal::{self, WalError, WalOptions, WalSource, setup};
use diesel_outbox_relay::source::{PostgresSource, SourceOptions};
use outbox_tests::load::{
    count, drop_roles, grants, migrated, new_topic, relay, relay_at, repetitions, stop, wait_until_confirmed,
    wal, wal_relay, write,
};
use outbox_tests::{Database, Kafka, Process, Signal, eventually, workspace_binary};

const PATIENCE: Duration = Duration::from_secs(120);
/// In linear time the drop takes a few seconds, in quadratic time several minutes.
const BOUND: Duration = Duration::from_secs(45);
const MANY: usize = 200_000;
/// With so little memory, PostgreSQL does not hash a list of all events.
const LITTLE_MEMORY: &str = "64kB";

/// Starts `outbox wal drop`.
fn dropping(database: &Database<'_>) -> Process {
    let mut outbox = Command::new(workspace_binary("outbox"));
    outbox.args(["wal", "drop", "--slot", database.name()]).env("OUTBOX_DATABASE_URL", database.url());
    Process::start(&outbox)
}

/// Inserts this many events of any aggregates in one transaction.
fn insert(conn: &mut PgConnection, events: usize) {
    conn.batch_execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
         SELECT gen_random_uuid(), 'order', (n % 100)::text, 'Placed', n % 16 FROM generate_series(1, {events}) AS n"
    ))
    .unwrap();
}

/// The first drop is killed while it works. Its session must end as well.
#[test]
fn a_slot_with_many_unread_events_is_dropped_in_linear_time_after_a_killed_attempt() {
    let database = migrated();
    let conn = &mut database.connect();
    conn.batch_execute(&format!("ALTER DATABASE {} SET work_mem = '{LITTLE_MEMORY}'", database.name()))
        .unwrap();
    wal(&database, "setup");
    insert(conn, MANY);
    let killed = dropping(&database);
    killed.wait_for_line("how much there is", PATIENCE, |line| line.contains("events may be unsent"));
    killed.signal(Signal::Kill);
    killed.wait(PATIENCE);
    let again = dropping(&database);
    assert!(again.wait(BOUND).success(), "{}", again.output());
    assert!(again.output().contains(&format!("unsent={MANY}")), "{}", again.output());
    assert_eq!(
        count(conn, "outbox WHERE sent_at IS NULL AND seq > (SELECT max(sent_through) FROM outbox_shard)"),
        MANY
    );
}

/// Nothing marks the other events as sent: only their numbers show that they were sent from the WAL.
#[test]
fn requeuing_a_dead_letter_after_the_drop_sends_no_other_event_again() {
    let database = migrated();
    let topic = new_topic("requeued");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let log = wal_relay(&database, &topic);
    let conn = &mut database.connect();
    let large = Record::new("order", "large", "TooLarge").with_payload(vec![b'x'; 2_000_000]);
    conn.transaction(|c| c.emit(&large)).unwrap();
    let committed = write(conn, 0, 1, 10, 500);
    eventually("all but the large one", PATIENCE, || (counter.count() >= 500).then_some(()));
    wait_until_confirmed(conn, PATIENCE);
    stop(&log);
    wal(&database, "drop");

    let mut requeue = Command::new(workspace_binary("outbox"));
    requeue.args(["requeue", "--all"]).env("OUTBOX_DATABASE_URL", database.url());
    assert!(requeue.status().unwrap().success());
    let polling = relay(&database, &topic, &[]);
    // The dead letter is still too large.
    eventually("the dead letter to have been tried", PATIENCE, || {
        (count(conn, "outbox_dead_letter") == 1).then_some(())
    });
    let last = Record::new("order", "last", "0");
    let id = conn.transaction(|c| c.emit(&last)).unwrap();
    eventually("the last event", PATIENCE, || {
        (count(conn, &format!("outbox WHERE id = '{id}' AND sent_at IS NOT NULL")) == 1).then_some(())
    });
    stop(&polling);
    let received = Kafka::shared().read_all(&topic);
    assert_eq!(received.len(), committed.len() + 1, "events were sent again");

    let refused = conn.batch_execute("UPDATE outbox_shard SET sent_through = 0").unwrap_err().to_string();
    assert!(refused.contains("unmarked"), "{refused}");
}

/// Nothing marks these events as sent. If the sequence has a new file, or the role cannot learn which server it is on, that
/// means only that the sequence may have been set back.
#[test]
fn events_sent_from_the_wal_are_not_sent_again_when_the_sequence_is_unknown() {
    let database = migrated();
    let topic = new_topic("unknown");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let log = wal_relay(&database, &topic);
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 3, 10, 500);
    eventually("the events", PATIENCE, || (counter.count() >= 500).then_some(()));
    wait_until_confirmed(conn, PATIENCE);
    stop(&log);
    wal(&database, "drop");
    conn.batch_execute("UPDATE outbox_shard SET sequence_origin = 1").unwrap();
    let polling = relay(&database, &topic, &[]);
    committed.extend(write(conn, 1, 3, 10, 50));
    eventually("the later events", PATIENCE, || (counter.count() >= 550).then_some(()));
    stop(&polling);
    // Now the sequence really is set back.
    conn.batch_execute("ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    committed.extend(write(conn, 2, 3, 10, 50));
    let polling = relay(&database, &topic, &[]);
    eventually("the last events", PATIENCE, || (counter.count() >= 600).then_some(()));
    stop(&polling);
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

/// The new events have numbers of the polled part, but only the WAL has them.
#[test]
fn events_in_the_wal_with_numbers_of_a_restarted_sequence_are_polled_after_the_drop() {
    let database = migrated();
    let topic = new_topic("restarted");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 2, 10, 500);
    let deleting = relay(&database, &topic, &[]);
    eventually("the first events", PATIENCE, || (counter.count() >= 500).then_some(()));
    stop(&deleting);
    conn.batch_execute(
        "DELETE FROM outbox; UPDATE outbox_shard SET sent_through = (SELECT last_value FROM outbox_seq_seq)",
    )
    .unwrap();
    wal(&database, "setup");
    conn.batch_execute("ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    committed.extend(write(conn, 1, 2, 10, 50));
    conn.batch_execute("SELECT setval('outbox_seq_seq', 10000)").unwrap();
    wal(&database, "drop");
    let polling = relay(&database, &topic, &[]);
    eventually("the others", Duration::from_secs(20), || (counter.count() >= 550).then_some(()));
    stop(&polling);
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

/// Sends everything, and counts how often each event is sent.
fn drain(source: &mut dyn Source, sent: &mut BTreeMap<String, usize>, events: usize) {
    eventually("the events", PATIENCE, || {
        let mut records = Vec::new();
        while source.claim().unwrap() {
            while source.read(100, &mut records).unwrap() {}
            let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
            source.settle(&tickets).unwrap();
            source.release().unwrap();
            if records.is_empty() {
                break;
            }
            for claimed in records.drain(..) {
                *sent.entry(claimed.record.unwrap().id().to_string()).or_default() += 1;
            }
        }
        (sent.len() >= events)
            .then_some(())
            .or_else(|| source.wait(Duration::from_millis(5)).map(|_| None).unwrap())
    });
}

type Change = fn(&mut PgConnection, &mut PgConnection, &WalOptions) -> Result<(), WalError>;

/// Ends the session when it begins its n-th statement, and returns whether it came that far.
fn interrupted(database: &Database<'_>, change: Change, options: &WalOptions, nth: usize) -> bool {
    let mut conn = database.connect();
    let pid = diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("pg_backend_pid()"));
    let pid: i32 = pid.get_result(&mut conn).unwrap();
    let mut killer = database.connect();
    let mut begun = 0;
    conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if matches!(event, InstrumentationEvent::StartQuery { .. }) {
            begun += 1;
            if begun == nth {
                killer.batch_execute(&format!("SELECT pg_terminate_backend({pid}, 5000)")).unwrap();
            }
        }
    });
    change(&mut conn, &mut database.connect(), options).is_err()
}

fn set_up_again(database: &Database<'_>, conn: &mut PgConnection, options: &WalOptions, nth: usize) {
    match setup(conn, &mut database.connect(), options) {
        // It had reached its end.
        Ok(()) | Err(WalError::Exists { .. }) => {}
        Err(error) => panic!("setup after it ended before statement {nth}: {error}"),
    }
}

fn tear_down_again(database: &Database<'_>, conn: &mut PgConnection, options: &WalOptions, nth: usize) {
    wal::drop(conn, &mut database.connect(), options)
        .unwrap_or_else(|error| panic!("drop after it ended before statement {nth}: {error}"));
}

/// Each is run again until it succeeds.
#[test]
fn setup_and_drop_can_be_interrupted_before_any_statement_and_run_again() {
    let database = migrated();
    let conn = &mut database.connect();
    let mut options = WalOptions::default();
    options.slot = database.name().to_owned();
    let (mut sent, mut events) = (BTreeMap::new(), 0);
    let mut emit = |conn: &mut PgConnection| {
        let records: Vec<Record> = (0..2).map(|n| Record::new("order", n.to_string(), "Placed")).collect();
        conn.transaction(|c| c.emit_all(&records)).unwrap();
        events += 2;
        events
    };
    for nth in 1.. {
        emit(conn);
        let mut goes_on = interrupted(&database, setup, &options, nth);
        emit(conn);
        if goes_on {
            set_up_again(&database, conn, &options, nth);
        }
        let mut log = WalSource::new(database.url(), SourceOptions::default(), options.clone());
        drain(&mut log, &mut sent, emit(conn));
        drop(log);
        emit(conn);
        let ended = interrupted(&database, wal::drop, &options, nth);
        goes_on |= ended;
        emit(conn);
        if ended {
            tear_down_again(&database, conn, &options, nth);
        }
        let mut polling = PostgresSource::new(database.url(), SourceOptions::default());
        drain(&mut polling, &mut sent, emit(conn));
        assert!(sent.values().all(|times| *times == 1), "before statement {nth}: {sent:?}");
        assert_eq!(count(conn, "outbox_slot"), 0);
        assert_eq!(count(conn, "pg_replication_slots WHERE database = current_database()"), 0);
        if !goes_on {
            println!("neither has {nth} statements");
            break;
        }
    }
    assert_eq!(sent.len(), emit(conn) - 2);
}

/// As after a failure of the server: only the lower bounds say what was sent, so some events are sent again.
#[test]
fn setup_and_drop_of_a_lost_slot_can_be_interrupted_before_any_statement_and_lose_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    let mut options = WalOptions::default();
    options.slot = database.name().to_owned();
    let (mut sent, mut events) = (BTreeMap::new(), 0);
    let mut emit = |conn: &mut PgConnection| {
        conn.transaction(|c| c.emit(&Record::new("order", "1", "Placed"))).unwrap();
        events += 1;
        events
    };
    let lose = |conn: &mut PgConnection| {
        let lose = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
        eventually("the slot to be lost", PATIENCE, || conn.batch_execute(lose).ok());
        // A killed relay leaves this: the position alone could not distinguish a new slot from this one.
        conn.batch_execute("UPDATE outbox_slot SET bound_lsn = pg_current_wal_insert_lsn() + 1000000")
            .unwrap();
    };
    for nth in 1.. {
        setup(conn, &mut database.connect(), &options).unwrap();
        emit(conn);
        lose(conn);
        emit(conn);
        // A slot of another name replaces the lost one.
        options.slot = format!("{}_{nth}", database.name());
        let mut goes_on = interrupted(&database, setup, &options, nth);
        emit(conn);
        set_up_again(&database, conn, &options, nth);
        let mut log = WalSource::new(database.url(), SourceOptions::default(), options.clone());
        drain(&mut log, &mut sent, emit(conn));
        drop(log);
        emit(conn);
        lose(conn);
        emit(conn);
        goes_on |= interrupted(&database, wal::drop, &options, nth);
        emit(conn);
        tear_down_again(&database, conn, &options, nth);
        let mut polling = PostgresSource::new(database.url(), SourceOptions::default());
        drain(&mut polling, &mut sent, emit(conn));
        assert_eq!(count(conn, "outbox_slot"), 0);
        if !goes_on {
            println!("neither has {nth} statements");
            break;
        }
    }
}

/// The stranger may insert, and takes every advisory lock that any part of a relay uses.
#[test]
fn a_stranger_that_takes_advisory_locks_stops_neither_setup_nor_a_relay_nor_drop() {
    let database = migrated();
    let topic = new_topic("stranger");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    let (stranger, role) = (format!("{}_stranger", database.name()), format!("{}_relay", database.name()));
    conn.batch_execute(&format!(
        "CREATE ROLE {stranger} LOGIN PASSWORD 'stranger'; GRANT INSERT ON outbox TO {stranger}; \
         CREATE ROLE {role} LOGIN PASSWORD 'relay'; {}",
        grants(include_str!("../../docs/wal.md"), &role)
    ))
    .unwrap();
    let mut locking = PgConnection::establish(&database.url_as(&stranger, "stranger")).unwrap();
    locking
        .batch_execute(
            "SELECT pg_advisory_lock(1869968482 + n, 'outbox'::regclass::oid::int4) FROM generate_series(0, 20) AS n; \
             SELECT pg_advisory_lock(1869968482, 0)",
        )
        .unwrap();
    let refused = locking.batch_execute("BEGIN; LOCK TABLE outbox_reader IN EXCLUSIVE MODE NOWAIT");
    assert!(refused.unwrap_err().to_string().contains("permission denied"));

    write(conn, 0, 1, 10, 100);
    wal(&database, "setup");
    let start = || {
        let url = database.url_as(&role, "relay");
        relay_at(&url, &topic, &["--source", "wal", "--slot", database.name()])
    };
    let log = start();
    write(conn, 0, 1, 10, 500);
    let large = Record::new("order", "large", "TooLarge").with_payload(vec![b'x'; 2_000_000]);
    conn.transaction(|c| c.emit(&large)).unwrap();
    eventually("all events", PATIENCE, || (counter.count() >= 600).then_some(()));
    eventually("the dead letter", PATIENCE, || (count(conn, "outbox_dead_letter") == 1).then_some(()));
    let holds = "pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE relation = 'outbox_reader'::regclass \
                 AND mode = 'ExclusiveLock' AND backend_xid IS NULL AND backend_xmin IS NULL";
    assert_eq!(count(conn, holds), 1, "the active relay's lock holds nothing back");
    for statement in ["SET statement_timeout = '60s'", "VACUUM", "ANALYZE"] {
        conn.batch_execute(statement).unwrap();
    }
    stop(&log);
    // The role also has the grants to repair this.
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    write(conn, 0, 1, 10, 20);
    let log = start();
    eventually("what came after the restart", PATIENCE, || (counter.count() >= 620).then_some(()));
    stop(&log);
    wal(&database, "drop");
    drop(locking);
    drop_roles(conn, &format!("{stranger}, {role}"));
}

/// The relay has asked the server for a chunk that takes some seconds to decode.
#[test]
fn a_relay_that_is_stopped_in_the_middle_of_a_chunk_leaves_nothing_behind() {
    let database = migrated();
    let topic = new_topic("chunk");
    let conn = &mut database.connect();
    wal(&database, "setup");
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, shard) \
         SELECT gen_random_uuid(), 'order', (n % 100)::text, 'Placed', decode(repeat('78', 600), 'hex'), n % 16 \
         FROM generate_series(1, 200000) AS n",
    )
    .unwrap();
    let log = wal_relay(&database, &topic);
    let decodes = "pg_stat_activity WHERE datname = current_database() AND state = 'active' \
                   AND application_name = 'outbox relay' AND query LIKE '%pg_logical_slot_get_binary_changes%'";
    eventually("it to read a chunk", PATIENCE, || (count(conn, decodes) > 0).then_some(()));
    stop(&log);
    let sessions =
        "pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'";
    eventually("its sessions to end", Duration::from_millis(500), || {
        (count(conn, sessions) == 0).then_some(())
    });
    wal(&database, "drop");
    assert_eq!(count(conn, "pg_replication_slots WHERE database = current_database()"), 0);
}
