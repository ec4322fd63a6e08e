//! A publication that is changed while a slot uses it hides events. No relay passes over them, and a user who follows the
//! advice of its error to the letter loses nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel_outbox_relay::source::wal::{self, WalError, WalOptions, setup};
use outbox_tests::load::{count, migrated_on, new_topic, relay, stop, wal, wal_relay, wal_with, write};
use outbox_tests::{Database, Kafka, Postgres, Process, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const WITHOUT_TABLE: &str = "ALTER PUBLICATION outbox DROP TABLE outbox";
const WITHOUT_PUBLICATION: &str = "DROP PUBLICATION outbox";
/// From PostgreSQL 15 on. The relay needs columns that are not in this list.
const WITHOUT_COLUMNS: &str = "ALTER PUBLICATION outbox SET TABLE outbox (seq, id, aggregatetype)";

fn execute(database: &Database<'_>, sql: &str) {
    database.connect().batch_execute(sql).unwrap();
}

fn emit(database: &Database<'_>, events: usize) -> BTreeSet<String> {
    write(&mut database.connect(), 0, 1, 10, events)
}

fn arrive(topic: &str, committed: &BTreeSet<String>) {
    let arrived = || -> BTreeSet<String> {
        let received = Kafka::shared().read_all(topic);
        received.iter().map(|event| event.header("id").unwrap().to_owned()).collect()
    };
    eventually("all events", PATIENCE, || committed.is_subset(&arrived()).then_some(()));
}

/// Runs the commands in the relay's last error, in their order.
fn follow_advice(database: &Database<'_>, stopped: &Process) {
    let advice = stopped.wait_for_line("what to do", PATIENCE, |line| line.contains("run `outbox wal"));
    assert_eq!(stopped.wait(PATIENCE).code(), Some(1));
    let commands: Vec<&str> =
        advice.split('`').filter_map(|quoted| quoted.strip_prefix("outbox wal ")).collect();
    assert!(!commands.is_empty(), "no command in {advice}");
    for command in commands {
        wal_with(database, &command.split(' ').collect::<Vec<_>>());
    }
}

fn is_changed_under_a_relay(major: u32, change: &str) {
    let database = migrated_on(Postgres::shared_version(major));
    let topic = new_topic("publication");
    wal(&database, "setup");
    let log = wal_relay(&database, &topic);
    let mut committed = emit(&database, 50);
    arrive(&topic, &committed);
    execute(&database, change);
    committed.extend(emit(&database, 20));
    follow_advice(&database, &log);
    let log = wal_relay(&database, &topic);
    committed.extend(emit(&database, 10));
    arrive(&topic, &committed);
    stop(&log);
}

macro_rules! under_a_relay {
    ($($name:ident: $major:literal, $change:expr;)*) => {
        $(#[test] fn $name() { is_changed_under_a_relay($major, $change); })*
    };
}

under_a_relay! {
    a_table_that_leaves_its_publication_hides_nothing_on_15: 15, WITHOUT_TABLE;
    a_table_that_leaves_its_publication_hides_nothing_on_18: 18, WITHOUT_TABLE;
    a_publication_that_is_dropped_hides_nothing_on_15: 15, WITHOUT_PUBLICATION;
    columns_that_leave_a_publication_hide_nothing_on_15: 15, WITHOUT_COLUMNS;
    columns_that_leave_a_publication_hide_nothing_on_18: 18, WITHOUT_COLUMNS;
    // Slots of this version skip a publication that does not exist.
    a_publication_that_is_dropped_hides_nothing_on_18: 18, WITHOUT_PUBLICATION;
}

#[test]
fn setup_and_drop_leave_the_slot_alone_if_the_publication_was_mistyped() {
    let database = migrated_on(Postgres::shared_version(15));
    wal(&database, "setup");
    let (conn, lock) = (&mut database.connect(), &mut database.connect());
    let mut options = WalOptions::default();
    (options.slot, options.publication) = (database.name().to_owned(), "other".to_owned());
    for done in [setup(conn, lock, &options), wal::drop(conn, lock, &options)] {
        let error = done.unwrap_err();
        assert!(matches!(error, WalError::OtherPublication { .. }), "{error}");
        assert!(error.to_string().contains("`outbox`"), "{error}");
    }
}

/// The setup changes nothing before it fails, and its advice loses nothing.
#[test]
fn a_setup_over_a_publication_that_was_changed_leaves_the_slot_alone_and_says_what_to_do() {
    let database = migrated_on(Postgres::shared_version(15));
    let topic = new_topic("setup-again");
    wal(&database, "setup");
    let mut committed = emit(&database, 20);
    execute(&database, WITHOUT_TABLE);
    committed.extend(emit(&database, 20));
    let (conn, lock) = (&mut database.connect(), &mut database.connect());
    let mut options = WalOptions::default();
    options.slot = database.name().to_owned();
    let error = setup(conn, lock, &options).unwrap_err();
    assert!(matches!(error, WalError::Publication { .. }), "{error}");
    let slot = format!("pg_replication_slots WHERE slot_name = '{}'", database.name());
    assert_eq!(count(conn, &slot), 1, "the slot is gone");
    for command in error.to_string().split('`').filter_map(|quoted| quoted.strip_prefix("outbox wal ")) {
        wal_with(&database, &command.split(' ').collect::<Vec<_>>());
    }
    let log = wal_relay(&database, &topic);
    committed.extend(emit(&database, 10));
    arrive(&topic, &committed);
    stop(&log);
}

/// By then the publication has all inserts again.
#[test]
fn a_table_that_was_out_of_its_publication_for_a_while_is_noticed() {
    let database = migrated_on(Postgres::shared_version(15));
    let topic = new_topic("for-a-while");
    wal(&database, "setup");
    let mut committed = emit(&database, 50);
    let log = wal_relay(&database, &topic);
    arrive(&topic, &committed);
    stop(&log);
    execute(&database, WITHOUT_TABLE);
    committed.extend(emit(&database, 20));
    execute(&database, "ALTER PUBLICATION outbox ADD TABLE outbox");
    committed.extend(emit(&database, 10));
    follow_advice(&database, &wal_relay(&database, &topic));
    let log = wal_relay(&database, &topic);
    arrive(&topic, &committed);
    stop(&log);
}

/// The slot is dropped before any relay has noticed the change.
#[test]
fn after_a_drop_nothing_is_unsent_although_the_publication_was_changed() {
    let database = migrated_on(Postgres::shared_version(15));
    let topic = new_topic("dropped-after");
    wal(&database, "setup");
    let mut committed = emit(&database, 10);
    execute(&database, WITHOUT_TABLE);
    committed.extend(emit(&database, 20));
    wal(&database, "drop");
    let polling = relay(&database, &topic, &[]);
    arrive(&topic, &committed);
    stop(&polling);
}

/// As if an earlier version had set it up with that publication. The WAL shows rows that are not whole, unless the list has all columns.
#[test]
fn a_drop_works_whatever_columns_the_publication_has_and_nothing_is_unsent() {
    let all = "seq, id, aggregatetype, aggregateid, type, payload, headers, created_at";
    for columns in ["id", "seq, id, aggregatetype", all] {
        let database = migrated_on(Postgres::shared_version(15));
        let topic = new_topic("columns");
        wal(&database, "setup");
        execute(&database, &format!("ALTER PUBLICATION outbox SET TABLE outbox ({columns})"));
        execute(
            &database,
            "UPDATE outbox_slot SET publication = (SELECT concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin) FROM pg_publication AS p \
             JOIN pg_publication_rel AS r ON r.prpubid = p.oid WHERE p.pubname = 'outbox')",
        );
        let committed = emit(&database, 30);
        wal(&database, "drop");
        let polling = relay(&database, &topic, &[]);
        arrive(&topic, &committed);
        stop(&polling);
    }
}

#[test]
fn a_setup_refuses_a_publication_that_has_not_all_columns() {
    let database = migrated_on(Postgres::shared_version(15));
    let make =
        "CREATE PUBLICATION outbox FOR TABLE outbox (seq, id, aggregatetype) WITH (publish = 'insert')";
    execute(&database, make);
    let (conn, lock) = (&mut database.connect(), &mut database.connect());
    let mut options = WalOptions::default();
    options.slot = database.name().to_owned();
    let error = setup(conn, lock, &options).unwrap_err();
    assert!(matches!(error, WalError::Publication { .. }), "{error}");
}
