//! If a sequence is set back, it gives numbers that the relay has passed already. No event with such a number is lost or
//! overtaken, whenever that happens. A user who follows the advice of an error to the letter loses nothing.

use std::cell::Cell;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::{Operate, Requeue};
use diesel_outbox_relay::source::{PostgresSource, SentRows, SourceOptions};
use outbox_tests::load::{drop_roles, grants, migrated, new_topic, relay, relay_at, stop, wal, wal_relay};
use outbox_tests::{Kafka, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
/// The first half of the key of the advisory lock that the relay holds while it sleeps.
const ASLEEP: i32 = 1_869_968_482;

fn source(url: &str) -> PostgresSource {
    PostgresSource::new(url, SourceOptions::default())
}

/// Emits events of ten aggregates. The event type of each is its number.
fn emit(conn: &mut PgConnection, numbers: std::ops::Range<u32>) {
    let records = numbers.map(|n| Record::new("order", (n % 10).to_string(), n.to_string()));
    conn.transaction(|c| c.emit_all(records)).unwrap();
}

/// Makes passes, which may fail, until this many events are sent, and returns their numbers.
fn send(source: &mut PostgresSource, count: usize) -> Vec<u32> {
    let mut sent = Vec::new();
    eventually(&format!("{count} events"), PATIENCE, || {
        match pass(source) {
            Ok(numbers) => sent.extend(numbers),
            Err(_) => source.abandon(),
        }
        (sent.len() >= count).then_some(())
    });
    sent
}

fn pass(source: &mut PostgresSource) -> Result<Vec<u32>, diesel_outbox_core::SourceError> {
    let mut records = Vec::new();
    if source.claim()? {
        while source.read(1_000, &mut records)? {}
        source.settle(&records.iter().map(|claimed| claimed.ticket).collect::<Vec<_>>())?;
        source.release()?;
    }
    Ok(records.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type().parse().unwrap()).collect())
}

/// Checks that each of these numbers was sent once, and those of each aggregate in their order.
#[track_caller]
fn assert_complete(sent: &[u32], numbers: std::ops::Range<u32>) {
    let mut sorted = sent.to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, numbers.collect::<Vec<_>>());
    for aggregate in 0..10 {
        let its: Vec<u32> = sent.iter().copied().filter(|n| n % 10 == aggregate).collect();
        assert!(its.is_sorted(), "{its:?}");
    }
}

fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

/// Sends so many events that the lower bounds move.
fn send_some(source: &mut PostgresSource, conn: &mut PgConnection) {
    emit(conn, 0..5_000);
    assert_complete(&send(source, 5_000), 0..5_000);
    eventually("the bounds to move", PATIENCE, || {
        emit(conn, 5_000..5_010);
        send(source, 10);
        (count(conn, "SELECT max(sent_through) FROM outbox_shard") > 3_000).then_some(())
    });
}

#[test]
fn a_sequence_that_is_restarted_while_no_relay_runs_hides_no_event() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    emit(conn, 0..10);
    conn.batch_execute("DELETE FROM outbox WHERE seq < 1000; ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    emit(conn, 10..30);
    // The lag counts them before any relay has noticed.
    assert_eq!(conn.lag().unwrap().unsent, 30);
    assert_complete(&send(&mut source(database.url()), 30), 0..30);
    assert_eq!(conn.lag().unwrap().unsent, 0);
    // The sequence now continues after the highest number.
    emit(conn, 30..40);
    assert_eq!(count(conn, "SELECT count(*) - count(DISTINCT seq) FROM outbox"), 0);
    assert_complete(&send(&mut source(database.url()), 10), 30..40);
}

/// By then the new numbers are higher than any that was sent.
#[test]
fn a_restarted_sequence_that_has_caught_up_hides_no_event() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    emit(conn, 0..9_000);
    assert_eq!(conn.lag().unwrap().unsent, 9_000);
    assert_complete(&send(&mut source(database.url()), 9_000), 0..9_000);
}

/// Rows that were sent from the WAL have no mark, and the lag does not count them. Pruning must not take an event that was
/// emitted with such a number after the restart for one of them.
#[test]
fn events_from_after_a_restart_are_distinguished_from_those_sent_from_the_wal() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute(
        "UPDATE outbox SET sent_at = NULL WHERE seq <= 1000; UPDATE outbox_shard SET unmarked = 1000, unmarked_until = now(); \
         DELETE FROM outbox WHERE seq < 500",
    )
    .unwrap();
    emit(conn, 0..10);
    assert_eq!(conn.lag().unwrap().unsent, 10);
    conn.batch_execute("ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    emit(conn, 10..30);
    assert_eq!(conn.lag().unwrap().unsent, 30);

    let mut options = SourceOptions::default();
    options.sent_rows = SentRows::Keep { retention: Duration::ZERO };
    let mut relay = PostgresSource::new(database.url(), options);
    relay.upkeep().unwrap();
    eventually("what was sent to be pruned", PATIENCE, || {
        let sent = count(conn, "SELECT count(*) FROM outbox WHERE seq BETWEEN 1000 AND 4000");
        (sent == 0).then_some(())
    });
    assert_eq!(conn.lag().unwrap().unsent, 30);
    assert_complete(&send(&mut relay, 30), 0..30);
}

/// The sequence has the same file as before, and the role has only the grants that an operator needs.
#[test]
fn the_lag_counts_the_events_that_a_sequence_that_was_set_back_hides() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute("DELETE FROM outbox WHERE seq < 1000; SELECT setval('outbox_seq_seq', 7)").unwrap();
    emit(conn, 0..20);
    let role = format!("{}_operator", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'operator'; \
         GRANT SELECT ON outbox, outbox_shard, outbox_slot, outbox_seq_seq, outbox_dead_letter TO {role}"
    ))
    .unwrap();
    let mut operator = PgConnection::establish(&database.url_as(&role, "operator")).unwrap();
    assert_eq!(operator.lag().unwrap().unsent, 20);
    drop(operator);
    conn.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

#[test]
fn a_dead_letter_that_is_requeued_after_a_sequence_restart_hides_no_event() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute(
        "INSERT INTO outbox_dead_letter (seq, id, aggregatetype, aggregateid, type, shard, created_at, reason) \
         SELECT seq, id, aggregatetype, aggregateid, '0', shard, created_at, 'none' FROM outbox WHERE seq = 4001; \
         DELETE FROM outbox WHERE seq < 1000; ALTER SEQUENCE outbox_seq_seq RESTART",
    )
    .unwrap();
    emit(conn, 1..20);
    assert_eq!(conn.requeue(&Requeue::All).unwrap(), 1);
    assert_eq!(conn.lag().unwrap().unsent, 20);
    assert_complete(&send(&mut source(database.url()), 20), 0..20);
}

#[test]
fn a_sequence_that_is_restarted_while_a_relay_works_hides_no_event() {
    let database = migrated();
    let conn = &mut database.connect();
    let mut relay = source(database.url());
    send_some(&mut relay, conn);
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    emit(conn, 0..20);
    assert_complete(&send(&mut relay, 20), 0..20);
    conn.batch_execute("SELECT setval('outbox_seq_seq', 7)").unwrap();
    emit(conn, 20..30);
    assert_complete(&send(&mut relay, 10), 20..30);
}

/// By the time the relay checks the table, the sequence has passed all numbers that it ever gave.
#[test]
fn a_sequence_that_was_set_back_and_catches_up_before_the_relay_checks_hides_no_event() {
    let database = migrated();
    let conn = &mut database.connect();
    let mut relay = source(database.url());
    send_some(&mut relay, conn);
    let last = count(conn, "SELECT last_value FROM outbox_seq_seq");
    conn.batch_execute("DELETE FROM outbox; SELECT setval('outbox_seq_seq', 7)").unwrap();
    eventually("the relay to notice", PATIENCE, || pass(&mut relay).err());
    relay.abandon();
    emit(conn, 0..20);
    conn.batch_execute(&format!("SELECT setval('outbox_seq_seq', {})", last + 10)).unwrap();
    emit(conn, 20..30);
    assert_complete(&send(&mut relay, 30), 0..30);
}

/// Logical replication copies rows, but no sequence.
#[test]
fn a_copy_without_its_sequence_continues_after_its_rows() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    emit(conn, 0..5);
    conn.batch_execute(
        "CREATE SEQUENCE fresh; ALTER TABLE outbox ALTER seq DROP IDENTITY; \
         ALTER TABLE outbox ALTER seq ADD GENERATED BY DEFAULT AS IDENTITY",
    )
    .unwrap();
    assert_complete(&send(&mut source(database.url()), 5), 0..5);
    emit(conn, 5..15);
    assert_complete(&send(&mut source(database.url()), 10), 5..15);
}

/// Two new servers may give the sequence's file the same number.
#[test]
fn rows_from_another_server_are_noticed_although_the_sequence_has_the_same_file() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    emit(conn, 0..10);
    conn.batch_execute(
        "DELETE FROM outbox WHERE seq <= 100; UPDATE outbox SET seq = seq + 1 - \
         (SELECT min(seq) FROM outbox WHERE sent_at IS NULL) WHERE sent_at IS NULL; \
         UPDATE outbox_shard SET sequence_origin = pg_relation_filenode('outbox_seq_seq')",
    )
    .unwrap();
    assert_complete(&send(&mut source(database.url()), 10), 0..10);
}

/// Runs the statements of the page. The second block is for rows that were put back without the first.
#[test]
fn rows_that_are_put_back_as_the_page_says_are_sent() {
    let page = include_str!("../../docs/wal.md");
    let (_, page) = page.split_once("## Restored rows").unwrap();
    let mut blocks = page.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap());
    let (first, second) = (blocks.next().unwrap(), blocks.next().unwrap());
    let (before, after) = first.split_once("-- load the rows here").unwrap();

    let database = migrated();
    let conn = &mut database.connect();
    let relay = &mut source(database.url());
    emit(conn, 0..10);
    conn.batch_execute("CREATE TABLE backup AS SELECT * FROM outbox; DELETE FROM outbox").unwrap();
    send_some(relay, conn);

    conn.batch_execute(before).unwrap();
    conn.batch_execute("INSERT INTO outbox_back SELECT * FROM backup").unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    conn.batch_execute(after).unwrap();
    assert_complete(&send(relay, 10), 0..10);

    conn.batch_execute("INSERT INTO outbox SELECT * FROM backup").unwrap();
    conn.batch_execute(second).unwrap();
    assert_complete(&send(relay, 10), 0..10);
    emit(conn, 10..15);
    assert_complete(&send(relay, 5), 10..15);
}

/// Returns the statement that an error advises. The statement begins with these words.
fn advice(error: &str, begins: &str) -> String {
    let start = error.find(begins).unwrap_or_else(|| panic!("no {begins} in: {error}"));
    error[start..].split(';').next().unwrap().to_owned()
}

fn refusal(url: &str) -> String {
    source(url).claim().unwrap_err().to_string()
}

#[test]
fn a_table_without_a_sequence_is_refused_with_advice_that_loses_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    emit(conn, 0..5);
    conn.batch_execute("ALTER TABLE outbox ALTER seq DROP IDENTITY").unwrap();
    conn.batch_execute(&advice(&refusal(database.url()), "ALTER TABLE")).unwrap();
    emit(conn, 5..25);
    assert_complete(&send(&mut source(database.url()), 25), 0..25);
}

#[test]
fn missing_shards_are_refused_with_advice_that_loses_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute("DELETE FROM outbox_shard WHERE shard > 3").unwrap();
    emit(conn, 0..50);
    conn.batch_execute(&advice(&refusal(database.url()), "INSERT INTO outbox_shard")).unwrap();
    assert_complete(&send(&mut source(database.url()), 50), 0..50);
}

/// The second one of three dead letters of an aggregate stays one. The others are requeued, and then the sequence is set back.
#[test]
fn requeued_events_keep_their_places_among_dead_letters_when_they_are_numbered_anew() {
    let database = migrated();
    let conn = &mut database.connect();
    let prefix = Kafka::shared().unique("places");
    let start = |allowed: &str| {
        let (pattern, allowed) = (format!("{prefix}.{{aggregatetype}}"), format!("{prefix}.{allowed}"));
        let options = ["--allow-topics", &allowed, "--dead-letter-policy", "block", "--delete-sent"];
        relay(&database, &pattern, &options)
    };
    let first = start("order");
    let blocked = (0..3).map(|n| Record::new("blocked", "1", n.to_string()));
    conn.transaction(|c| c.emit_all(blocked)).unwrap();
    emit(conn, 0..100);
    eventually("the dead letters", PATIENCE, || {
        (count(conn, "SELECT count(*) FROM outbox") == 0 && conn.dead_letters(9).unwrap().len() == 3)
            .then_some(())
    });
    stop(&first);
    let letters = conn.dead_letters(9).unwrap();
    // As it is while the outbox is read from the WAL, so that they get new numbers.
    let end = count(conn, "SELECT min(polled_through) FROM outbox_shard");
    conn.batch_execute("UPDATE outbox_shard SET polled_through = 100").unwrap();
    for letter in [&letters[0], &letters[2]] {
        assert_eq!(conn.requeue(&Requeue::Id(letter.id.parse().unwrap())).unwrap(), 1);
    }
    conn.batch_execute(&format!("UPDATE outbox_shard SET polled_through = {end}")).unwrap();
    assert_eq!(count(conn, "SELECT count(*) FROM outbox_requeued"), 2, "they have not got new numbers");
    conn.batch_execute("ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    emit(conn, 0..1);
    let second = start("blocked");
    let topic = format!("{prefix}.blocked");
    let received = Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    assert_eq!(received[0].header("eventType"), Some("0"));
    eventually("the third to be held back", PATIENCE, || {
        (conn.dead_letters(9).unwrap().len() >= 2).then_some(())
    });
    stop(&second);
    assert_eq!(Kafka::shared().read_all(&topic).len(), 1, "the third has passed the second");
}

#[test]
fn a_relay_without_the_privilege_to_set_the_sequence_says_which_grants_it_needs() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute("DELETE FROM outbox WHERE seq < 1000; ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    emit(conn, 0..20);
    let role = format!("{}_relay", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'relay'; GRANT SELECT, UPDATE ON outbox, outbox_shard TO {role}; \
         GRANT SELECT ON outbox_seq_seq, outbox_requeued TO {role}"
    ))
    .unwrap();
    let url = database.url_as(&role, "relay");
    let refusal = refusal(&url);
    for grant in refusal.match_indices("GRANT ").map(|(at, _)| &refusal[at..]) {
        let grant = grant.split([';', '.']).next().unwrap().trim();
        conn.batch_execute(&grant.replace("the relay's role", &role)).unwrap();
    }
    let mut relay = source(&url);
    assert_complete(&send(&mut relay, 20), 0..20);
    drop(relay);
    drop_roles(conn, &role);
}

/// With these grants the relay sends, makes a dead letter, prunes, and repairs a sequence that was restarted.
#[test]
fn a_polling_relay_needs_only_the_grants_that_the_page_lists() {
    let database = migrated();
    let conn = &mut database.connect();
    let topic = new_topic("role");
    let counter = Kafka::shared().counter(&topic);
    let (role, service) = (format!("{}_relay", database.name()), format!("{}_service", database.name()));
    let grants = grants(include_str!("../../docs/roles.md"), &role);
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'relay'; {grants}; \
         CREATE ROLE {service} LOGIN PASSWORD 'service'; GRANT INSERT ON outbox TO {service}"
    ))
    .unwrap();
    let emitting = &mut PgConnection::establish(&database.url_as(&service, "service")).unwrap();
    let start = |arguments: &[&str]| relay_at(&database.url_as(&role, "relay"), &topic, arguments);
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
         VALUES (gen_random_uuid(), 'order', 'old', 'Sent', 0, now() - interval '1 day')",
    )
    .unwrap();
    emit(emitting, 0..5_000);
    let large = Record::new("order", "large", "TooLarge").with_payload(vec![b'x'; 2_000_000]);
    emitting.transaction(|c| c.emit(&large)).unwrap();
    let relay = start(&["--keep-sent", "1h"]);
    eventually("all events", PATIENCE, || (counter.count() >= 5_000).then_some(()));
    for (what, rows) in [
        ("the dead letter", "SELECT count(*) - 1 FROM outbox_dead_letter"),
        ("what is old to be pruned", "SELECT count(*) FROM outbox WHERE aggregateid = 'old'"),
    ] {
        eventually(what, PATIENCE, || (count(conn, rows) == 0).then_some(()));
    }
    stop(&relay);
    assert!(!relay.output().contains("permission denied"), "{}", relay.output());
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    emit(emitting, 0..20);
    let relay = start(&["--delete-sent"]);
    eventually("what came after the restart", PATIENCE, || (counter.count() >= 5_020).then_some(()));
    stop(&relay);
    assert_eq!(count(conn, "SELECT count(*) FROM outbox"), 0, "{}", relay.output());
    conn.batch_execute(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{service}'"
    ))
    .unwrap();
    drop_roles(conn, &format!("{role}, {service}"));
}

/// A sleeping relay checks nothing, and the event that wakes it has a low number.
#[test]
fn a_sequence_that_is_restarted_while_a_relay_sleeps_hides_no_event() {
    let database = migrated();
    let conn = &mut database.connect();
    let topic = new_topic("sleeps");
    let counter = Kafka::shared().counter(&topic);
    emit(conn, 0..5_000);
    let relay = relay(&database, &topic, &["--poll-interval", "1h"]);
    eventually("the first events", PATIENCE, || (counter.count() >= 5_000).then_some(()));
    let is_asleep = format!(
        "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE locktype = 'advisory' \
         AND classid = {ASLEEP} AND objid = 'outbox'::regclass AND mode = 'ExclusiveLock' AND datname = current_database() \
         AND state = 'idle' AND state_change < clock_timestamp() - interval '300 ms'"
    );
    eventually("the relay to sleep", PATIENCE, || (count(conn, &is_asleep) > 0).then_some(()));
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    emit(conn, 0..1);
    emit(conn, 1..20);
    eventually("what came after the restart", PATIENCE, || (counter.count() >= 5_020).then_some(()));
    stop(&relay);
}

#[test]
fn a_sequence_that_is_restarted_under_a_relay_on_the_wal_hides_no_event() {
    let database = migrated();
    let conn = &mut database.connect();
    let topic = new_topic("log");
    let counter = Kafka::shared().counter(&topic);
    emit(conn, 0..5_000);
    wal(&database, "setup");
    let log = wal_relay(&database, &topic);
    emit(conn, 5_000..5_100);
    eventually("the first events", PATIENCE, || (counter.count() >= 5_100).then_some(()));
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    emit(conn, 0..20);
    log.wait_for_line("that it was repaired", PATIENCE, |line| line.contains("goes_on_after"));
    emit(conn, 20..40);
    eventually("what came after the restart", PATIENCE, || (counter.count() >= 5_140).then_some(()));
    stop(&log);
    // The numbers continue after the highest one, so polling misses nothing afterwards.
    wal(&database, "drop");
    emit(conn, 40..60);
    assert_complete(&send(&mut source(database.url()), 20), 40..60);
}

/// If sessions cache numbers, or the sequence counts down, events can have numbers that the relay has passed already.
#[test]
fn a_sequence_with_unsuitable_options_is_refused_with_advice_that_loses_nothing() {
    for change in ["CACHE 20", "INCREMENT -1", "CYCLE", "INCREMENT -2 CYCLE CACHE 5"] {
        let database = migrated();
        let (conn, other) = (&mut database.connect(), &mut database.connect());
        let mut relay = source(database.url());
        send_some(&mut relay, conn);
        let emitted = Cell::new(0);
        let emit_some = |conn: &mut PgConnection| {
            let first = emitted.replace(emitted.get() + 5);
            emit(conn, first..first + 5);
        };
        conn.batch_execute(&format!("DELETE FROM outbox; ALTER SEQUENCE outbox_seq_seq {change}")).unwrap();
        emit_some(conn);
        emit_some(other);
        let mut sent = Vec::new();
        let refusal = |relay: &mut PostgresSource, sent: &mut Vec<u32>| {
            eventually("the relay to refuse", PATIENCE, || match pass(relay) {
                Ok(numbers) => {
                    sent.extend(numbers);
                    None
                }
                Err(error) => {
                    relay.abandon();
                    // A relay at work first notices only that something has happened to the sequence.
                    Some(error.to_string()).filter(|error| error.contains("run ALTER SEQUENCE"))
                }
            })
        };
        emit_some(conn);
        for _ in change.split(" CACHE ") {
            conn.batch_execute(&advice(&refusal(&mut relay, &mut sent), "ALTER SEQUENCE")).unwrap();
            // Sessions drop the numbers that they have cached. If the sequence has counted down, some of the numbers that it
            // gives exist already until a relay has set it.
            if change.starts_with("CACHE") {
                emit_some(other);
                emit_some(conn);
            }
        }
        let missing = emitted.get() as usize - sent.len();
        sent.extend(send(&mut relay, missing));
        emit_some(other);
        emit_some(conn);
        sent.extend(send(&mut relay, 10));
        sent.sort_unstable();
        assert_eq!(sent, (0..emitted.get()).collect::<Vec<_>>(), "{change}");
    }
}
