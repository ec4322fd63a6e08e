//! While a transaction that has emitted stays open, the relay's costs do not grow. When it ends, none of its events is lost or
//! overtaken.

#[path = "open_writer/before_the_emit.rs"]
mod before_the_emit;
#[path = "open_writer/warnings.rs"]
mod warnings;

use std::thread;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::{Claimed, Source};
use diesel_outbox_relay::source::{PostgresSource, SentRows, SourceOptions};
use outbox_tests::load::{entries_read, migrated_on, wait_for_the_relays_end};
use outbox_tests::{Database, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
const SENT: i64 = 100_000;

fn source(database: &Database<'_>) -> PostgresSource {
    PostgresSource::new(database.url(), SourceOptions::default())
}

fn emit(conn: &mut PgConnection, aggregate: &str, event_type: &str) {
    conn.transaction(|c| c.emit(&Record::new("order", aggregate, event_type))).unwrap();
}

/// Inserts rows of all shards that another relay has sent.
fn keep_sent(conn: &mut PgConnection) {
    conn.batch_execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
         SELECT gen_random_uuid(), 'order', 'sent', 'Sent', n % 16, now() FROM generate_series(1, {SENT}) AS n; ANALYZE outbox"
    ))
    .unwrap();
}

fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

/// Makes one pass and returns the types of the events that it sent.
fn pass(source: &mut PostgresSource) -> Vec<String> {
    let mut types = Vec::new();
    if source.claim().unwrap() {
        let mut records = Vec::new();
        while source.read(1_000, &mut records).unwrap() {}
        settle(source, &records);
        types.extend(records.into_iter().map(|claimed| claimed.record.unwrap().event_type().to_owned()));
    }
    types
}

fn settle(source: &mut PostgresSource, records: &[Claimed]) {
    let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
    source.settle(&tickets).unwrap();
    source.release().unwrap();
}

/// Makes passes until this event is sent.
fn send(source: &mut PostgresSource, event_type: &str) -> Vec<String> {
    let mut sent = Vec::new();
    eventually(event_type, PATIENCE, || {
        sent.extend(pass(source));
        sent.iter().any(|sent| sent == event_type).then_some(())
    });
    sent
}

/// Emits until the second bound of each shard has passed everything that was sent.
fn go_past_what_was_sent(source: &mut PostgresSource, conn: &mut PgConnection) {
    let mut emitted = 0;
    eventually("the second bound to move", PATIENCE, || {
        emitted += 1;
        emit(conn, "other", "Other");
        pass(source);
        (count(conn, "SELECT min(passed) FROM outbox_shard") >= SENT).then_some(())
    });
    assert!(
        count(conn, "SELECT max(sent_through) FROM outbox_shard") < SENT,
        "the open transaction was gone past"
    );
}

/// Emits so little that the distance between the bounds is not worth a write by itself.
fn emit_until_there_is_a_second_bound(relay: &mut PostgresSource, conn: &mut PgConnection) {
    let mut emitted = 0;
    eventually("a second bound", PATIENCE, || {
        emitted += 1;
        emit(conn, "other", "Other");
        pass(relay);
        (emitted > 100 && count(conn, "SELECT max(passed) FROM outbox_shard") > 0).then_some(())
    });
}

/// How many index entries a relay reads in a session of its own to send one event.
fn entries_of_a_look(database: &Database<'_>) -> i64 {
    entries_read(database, || {
        emit(&mut database.connect(), "other", "Measured");
        assert_eq!(pass(&mut source(database)), ["Measured"]);
    })
}

/// The open transaction's first event lies before everything that was sent since, its second one after that.
fn a_look_is_cheap_and_nothing_is_lost(server: &Postgres) {
    let database = migrated_on(server);
    let (conn, writer) = (&mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&Record::new("order", "slow", "First")).unwrap();
    keep_sent(conn);
    go_past_what_was_sent(&mut relay, conn);
    drop(relay);
    let entries = entries_of_a_look(&database);
    assert!(entries < 10_000, "{entries} entries were read for one event");

    let mut relay = source(&database);
    emit(conn, "other", "Before");
    send(&mut relay, "Before");
    writer.emit(&Record::new("order", "slow", "Second")).unwrap();
    commit(writer);
    emit(conn, "other", "After");
    let sent = send(&mut relay, "After");
    assert_eq!(sent.iter().filter(|sent| *sent != "After").collect::<Vec<_>>(), ["First", "Second"]);
    assert_eq!(count(conn, "SELECT count(*) FROM outbox WHERE sent_at IS NULL"), 0);
    // The relay forgets the transaction.
    go_on_until_it_is_forgotten(&mut relay, conn);
    assert!(!relay.claim().unwrap(), "something is claimed again and again");
}

fn go_on_until_it_is_forgotten(relay: &mut PostgresSource, conn: &mut PgConnection) {
    eventually("the first bound to move", PATIENCE, || {
        emit(conn, "other", "Last");
        pass(relay);
        (count(conn, "SELECT min(sent_through) FROM outbox_shard") >= SENT).then_some(())
    });
    while relay.claim().unwrap() {
        relay.release().unwrap();
    }
}

fn commit(writer: &mut PgConnection) {
    AnsiTransactionManager::commit_transaction(writer).unwrap();
}

/// Runs on all versions at the same time.
#[test]
fn a_writer_that_stays_open_does_not_make_each_claim_expensive_on_any_version() {
    thread::scope(|scope| {
        let versions = [14, 15, 16, 17, 18].map(|major| {
            let look = move || a_look_is_cheap_and_nothing_is_lost(&Postgres::start(major));
            thread::Builder::new().name(format!("PostgreSQL {major}")).spawn_scoped(scope, look).unwrap()
        });
        for version in versions {
            version.join().unwrap();
        }
    });
}

/// Another transaction stays open, so the first bound does not move.
#[test]
fn the_events_of_a_long_transaction_are_passed_over_only_once() {
    const EMITTED: i64 = 50_000;
    let database = migrated_on(Postgres::shared_version(15));
    let (conn, writer, large) = (&mut database.connect(), &mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&Record::new("order", "slow", "First")).unwrap();
    large
        .batch_execute(&format!(
            "BEGIN; INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
             SELECT gen_random_uuid(), 'order', 'large', 'Large', n % 16 FROM generate_series(1, {EMITTED}) AS n"
        ))
        .unwrap();
    eventually("the second bound to move", PATIENCE, || {
        emit(conn, "other", "Other");
        pass(&mut relay);
        (count(conn, "SELECT min(passed) FROM outbox_shard") >= EMITTED).then_some(())
    });
    large.batch_execute("COMMIT; ANALYZE outbox").unwrap();
    let unsent = "SELECT count(*) FROM outbox WHERE sent_at IS NULL";
    eventually("most of it to be sent", PATIENCE, || {
        assert!(relay.claim().unwrap());
        let mut records = Vec::new();
        relay.read(500, &mut records).unwrap();
        settle(&mut relay, &records);
        (count(conn, unsent) < EMITTED / 5).then_some(())
    });
    drop(relay);
    let entries = entries_read(&database, || {
        let mut relay = source(&database);
        assert!(relay.claim().unwrap());
        relay.read(100, &mut Vec::new()).unwrap();
    });
    assert!(entries < EMITTED / 5, "{entries} entries were read for a hundred events");
}

/// The relay compares the ids of the open transactions with those in the table. While they stay open, nothing can clean up old
/// versions of the table's rows.
#[test]
fn the_bounds_are_not_written_again_while_the_same_writers_stay_open() {
    let database = migrated_on(Postgres::shared_version(15));
    let conn = &mut database.connect();
    let mut writers: Vec<PgConnection> = (0..4).map(|_| database.connect()).collect();
    for writer in writers.iter_mut().rev() {
        AnsiTransactionManager::begin_transaction(writer).unwrap();
        writer.emit(&Record::new("order", "slow", "First")).unwrap();
    }
    keep_sent(conn);
    let mut relay = source(&database);
    go_past_what_was_sent(&mut relay, conn);
    let versions = |conn: &mut PgConnection| -> String {
        diesel::dsl::sql::<Text>("SELECT string_agg(ctid::text, ' ' ORDER BY shard) FROM outbox_shard")
            .get_result(conn)
            .unwrap()
    };
    let before = versions(conn);
    for _ in 0..10 {
        emit(conn, "other", "Other");
        send(&mut relay, "Other");
    }
    assert_eq!(versions(conn), before);
}

/// Rows that are written under a savepoint have the id of a subtransaction.
#[test]
fn an_event_that_was_emitted_under_a_savepoint_is_sent_when_the_transaction_ends() {
    let database = migrated_on(Postgres::shared_version(15));
    let (conn, writer) = (&mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.transaction(|c| c.emit(&Record::new("order", "slow", "First"))).unwrap();
    keep_sent(conn);
    go_past_what_was_sent(&mut relay, conn);
    commit(writer);
    assert_eq!(send(&mut relay, "First"), ["First"]);
}

/// Of two open transactions one ends. The relay must not start from the beginning each time just because the other stays open.
#[test]
fn when_one_of_two_open_writers_ends_its_event_is_sent_and_later_claims_stay_cheap() {
    let database = migrated_on(Postgres::shared_version(15));
    let conn = &mut database.connect();
    let (first, second) = (&mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    for (writer, event_type) in [(&mut *first, "First"), (&mut *second, "Second")] {
        AnsiTransactionManager::begin_transaction(writer).unwrap();
        writer.emit(&Record::new("order", event_type, event_type)).unwrap();
    }
    keep_sent(conn);
    go_past_what_was_sent(&mut relay, conn);
    commit(first);
    assert_eq!(send(&mut relay, "First"), ["First"]);
    eventually("nothing to be claimed any more", PATIENCE, || match relay.claim().unwrap() {
        true => {
            relay.release().unwrap();
            None
        }
        false => Some(()),
    });
    drop(relay);
    let entries = entries_of_a_look(&database);
    assert!(entries < 10_000, "{entries} entries were read for one event");
    commit(second);
    assert_eq!(send(&mut source(&database), "Second"), ["Second"]);
}

/// Two open transactions with many sent events between them, as soon as the relay knows of both.
fn an_older_and_a_younger_writer(database: &Database<'_>, relay: &mut PostgresSource) -> [PgConnection; 2] {
    let conn = &mut database.connect();
    let [mut older, mut younger] = [database.connect(), database.connect()];
    AnsiTransactionManager::begin_transaction(&mut older).unwrap();
    older.emit(&Record::new("order", "older", "Older")).unwrap();
    keep_sent(conn);
    go_past_what_was_sent(relay, conn);
    AnsiTransactionManager::begin_transaction(&mut younger).unwrap();
    younger.emit(&Record::new("order", "younger", "Younger")).unwrap();
    eventually("the relay to know of both", PATIENCE, || {
        emit(conn, "other", "Other");
        pass(relay);
        (count(conn, "SELECT min(cardinality(open))::bigint FROM outbox_shard") == 2).then_some(())
    });
    [older, younger]
}

/// The relay looks for its rows among those that came since it began, not since the older one began. A new relay knows where
/// that is, too.
#[test]
fn when_a_younger_transaction_ends_the_relay_looks_back_only_to_its_beginning() {
    let database = migrated_on(Postgres::shared_version(15));
    let mut relay = source(&database);
    let [older, younger] = &mut an_older_and_a_younger_writer(&database, &mut relay);
    drop(relay);
    commit(younger);
    let entries = entries_read(&database, || {
        assert_eq!(send(&mut source(&database), "Younger"), ["Younger"]);
    });
    assert!(entries < 10_000, "{entries} entries were read for one event");
    commit(older);
    assert_eq!(send(&mut source(&database), "Older"), ["Older"]);
}

/// Otherwise the bound could stand still for ever, because there may always be some open transaction.
#[test]
fn the_first_bound_moves_up_to_where_the_oldest_open_transaction_began() {
    let database = migrated_on(Postgres::shared_version(15));
    let conn = &mut database.connect();
    let mut relay = source(&database);
    let [older, younger] = &mut an_older_and_a_younger_writer(&database, &mut relay);
    commit(older);
    let mut sent = send(&mut relay, "Older");
    go_on_until_it_is_forgotten(&mut relay, conn);
    commit(younger);
    sent.extend(send(&mut relay, "Younger"));
    sent.retain(|sent| sent != "Other" && sent != "Last");
    assert_eq!(sent, ["Older", "Younger"]);
}

/// A relay that deletes sent rows must not lose the open transaction's event either.
#[test]
fn a_relay_that_deletes_sent_rows_sends_the_event_of_a_writer_that_stayed_open() {
    let database = migrated_on(Postgres::shared_version(15));
    let (conn, writer) = (&mut database.connect(), &mut database.connect());
    let mut options = SourceOptions::default();
    options.sent_rows = SentRows::Delete;
    let mut relay = PostgresSource::new(database.url(), options);
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&Record::new("order", "slow", "First")).unwrap();
    keep_sent(conn);
    go_past_what_was_sent(&mut relay, conn);
    commit(writer);
    assert_eq!(send(&mut relay, "First"), ["First"]);
}

/// Nothing is emitted afterwards, and the distance between the bounds is not worth a write by itself.
#[test]
fn a_quiet_outbox_is_not_claimed_for_ever_after_a_writer_has_ended() {
    let database = migrated_on(Postgres::shared_version(15));
    let (conn, writer) = (&mut database.connect(), &mut database.connect());
    let mut relay = source(&database);
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&Record::new("order", "other", "First")).unwrap();
    emit_until_there_is_a_second_bound(&mut relay, conn);
    commit(writer);
    assert_eq!(send(&mut relay, "First"), ["First"]);
    eventually("nothing to be claimed any more", Duration::from_secs(5), || match relay.claim().unwrap() {
        true => {
            assert!(!relay.read(10, &mut Vec::new()).unwrap());
            relay.release().unwrap();
            None
        }
        false => Some(()),
    });
}

/// The lower bound is the number of a row that is done, as after a relay that has read the WAL.
#[test]
fn the_row_at_the_lower_bound_is_not_sent_again_when_a_writer_has_ended() {
    let database = migrated_on(Postgres::shared_version(15));
    let conn = &mut database.connect();
    // The very first relay checks whether the bounds have passed unsent rows. This one does that.
    assert!(!source(&database).claim().unwrap());
    emit(conn, "1", "First");
    conn.batch_execute(
        "UPDATE outbox_shard SET sent_through = last, unmarked = last, passed = last, \
         open = ARRAY[pg_current_xact_id()::text::bigint] FROM (SELECT max(seq) AS last FROM outbox) AS o",
    )
    .unwrap();
    emit(conn, "1", "Second");
    assert_eq!(pass(&mut source(&database)), ["Second"]);
}

/// Its coordinator is gone, and the server has been restarted since.
#[test]
fn a_prepared_transaction_that_nobody_ends_holds_nothing_back_and_is_sent_when_somebody_does() {
    let server = Postgres::start_with(15, &[("max_prepared_transactions", "5")]);
    let database = migrated_on(&server);
    let writer = &mut database.connect();
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.batch_execute("SET LOCAL outbox.notify = 'off'").unwrap();
    writer.emit(&Record::new("order", "slow", "First")).unwrap();
    writer.batch_execute("PREPARE TRANSACTION 'orphan'").unwrap();
    keep_sent(writer);
    server.restart();
    let conn = &mut database.connect();
    let mut relay = source(&database);
    go_past_what_was_sent(&mut relay, conn);
    conn.batch_execute("COMMIT PREPARED 'orphan'").unwrap();
    assert_eq!(send(&mut relay, "First"), ["First"]);
    go_on_until_it_is_forgotten(&mut relay, conn);
}

/// Otherwise each sent row would leave entries in all indexes, which costs a third of the speed and bloats them.
#[test]
fn marking_rows_as_sent_makes_heap_only_updates() {
    const EVENTS: i64 = 20_000;
    let database = migrated_on(Postgres::shared_version(15));
    let conn = &mut database.connect();
    let mut relay = source(&database);
    for _ in 0..EVENTS / 1_000 {
        let event = |n: i64| Record::new("order", n.to_string(), "Emitted").with_payload(vec![b'x'; 200]);
        conn.transaction(|c| c.emit_all((0..1_000).map(event))).unwrap();
        pass(&mut relay);
    }
    let unsent = "SELECT count(*) FROM outbox WHERE sent_at IS NULL";
    eventually("all to be sent", PATIENCE, || {
        pass(&mut relay);
        (count(conn, unsent) == 0).then_some(())
    });
    drop(relay);
    wait_for_the_relays_end(conn);
    let updated = |what| format!("SELECT {what} FROM pg_stat_user_tables WHERE relname = 'outbox'");
    let (all, in_page) = (count(conn, &updated("n_tup_upd")), count(conn, &updated("n_tup_hot_upd")));
    assert!(all >= EVENTS && in_page * 10 >= all * 9, "{in_page} of {all} updates were heap-only");
}
