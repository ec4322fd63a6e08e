//! The position from which the relay reads the WAL. The relay stores it while it sends a transaction, and refuses it if it is
//! of another server or another slot.

use std::collections::{BTreeSet, VecDeque};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::{Acknowledgement, Outcome, PublishError, Publisher, Refusal};
use diesel_outbox_relay::source::wal::WalOptions;
use diesel_outbox_relay::{Relay, RelayHandle};
use outbox_tests::load::{
    count, migrated, migrated_on, new_topic, relay, stop, wait_for_the_relays_end, wal, wal_relay, write,
};
use outbox_tests::{Database, Kafka, Postgres, Process, eventually, workspace_binary};

const PATIENCE: Duration = Duration::from_secs(60);

/// Acknowledges one record at a time with a pause before each, until it is told to be quick.
struct SlowAndSteady {
    in_flight: VecDeque<u64>,
    acknowledged: Instant,
    is_quick: Arc<AtomicBool>,
}

const PAUSE: Duration = Duration::from_millis(50);
const MANY: usize = 1_500;

impl Publisher for SlowAndSteady {
    fn publish(&mut self, ticket: u64, _: &str, _: &Record) -> Result<(), Refusal> {
        self.in_flight.push_back(ticket);
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        std::thread::sleep(wait.min(PAUSE));
        let is_quick = self.is_quick.load(Ordering::Relaxed);
        if is_quick || self.acknowledged.elapsed() >= PAUSE {
            self.acknowledged = Instant::now();
            let due = if is_quick { self.in_flight.len() } else { self.in_flight.len().min(1) };
            let durable = |ticket| Acknowledgement::new(ticket, Outcome::Durable);
            acknowledgements.extend(self.in_flight.drain(..due).map(durable));
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.in_flight.clear();
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

/// A relay whose broker is slow until the switch makes it quick.
fn slow_relay(database: &Database<'_>) -> (RelayHandle, Arc<AtomicBool>) {
    let is_quick = Arc::new(AtomicBool::new(false));
    let is_quick_there = is_quick.clone();
    let mut options = WalOptions::default();
    options.slot = database.name().to_owned();
    let relay = Relay::postgres_wal(database.url(), options)
        .broker(move || {
            let (in_flight, acknowledged) = (VecDeque::new(), Instant::now());
            let is_quick = is_quick_there.clone();
            Ok(Box::new(SlowAndSteady { in_flight, acknowledged, is_quick }) as Box<dyn Publisher>)
        })
        .spawn()
        .unwrap();
    (relay, is_quick)
}

/// Emits so many events that sending them takes longer than a session may be silent.
fn emit_many(conn: &mut PgConnection) {
    let events: Vec<Record> = (0..MANY).map(|n| Record::new("order", "1", n.to_string())).collect();
    conn.transaction(|c| c.emit_all(&events)).unwrap();
}

/// Waits until the session that holds the lock has been used again in the same pass: the server ends it if it sends no
/// statement for 30 seconds.
fn lock_is_kept(conn: &mut PgConnection) {
    let is_used = "pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE datname = current_database() \
                   AND relation = 'outbox_reader'::regclass AND mode = 'ExclusiveLock' \
                   AND state_change > xact_start + interval '8 seconds'";
    eventually("the lock's session to be used", Duration::from_secs(25), || {
        (count(conn, is_used) == 1).then_some(())
    });
}

/// Otherwise a relay that ends in the middle would send the whole transaction again, and the server would end a session that
/// sends no statement.
#[test]
fn the_relay_stores_how_much_of_a_transaction_it_has_sent_while_a_slow_broker_takes_it() {
    let database = migrated();
    wal(&database, "setup");
    let conn = &mut database.connect();
    emit_many(conn);
    let (relay, is_quick) = slow_relay(&database);
    let is_kept = |conn: &mut PgConnection, sent: usize| {
        eventually("a part to be kept", Duration::from_secs(10), || {
            (count(conn, &format!("outbox_slot WHERE sent_events > {sent}")) == 1).then_some(())
        });
    };
    is_kept(conn, 0);
    // And again, still in the same pass.
    is_kept(conn, 50);
    lock_is_kept(conn);
    assert_eq!(count(conn, "outbox_slot WHERE sent_events > 0"), 1, "the pass has ended");
    is_quick.store(true, Ordering::Relaxed);
    eventually("all to be sent", PATIENCE, || {
        (count(conn, "outbox_slot WHERE sent_events = 0 AND commit_lsn IS NULL") == 1).then_some(())
    });
    tokio::runtime::Runtime::new().unwrap().block_on(relay.stop()).unwrap();
}

#[test]
fn the_relay_keeps_its_lock_while_a_slow_broker_takes_what_it_polls() {
    let database = migrated();
    let conn = &mut database.connect();
    emit_many(conn);
    wal(&database, "setup");
    let (relay, is_quick) = slow_relay(&database);
    lock_is_kept(conn);
    // A pass marks what it has sent only when it ends.
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), MANY, "the pass has ended");
    is_quick.store(true, Ordering::Relaxed);
    eventually("all to be sent", PATIENCE, || {
        (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    tokio::runtime::Runtime::new().unwrap().block_on(relay.stop()).unwrap();
}

/// Makes the slot as somebody would who finds it missing.
fn make_slot_by_hand(database: &Database<'_>) {
    let make = format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", database.name());
    database.connect().batch_execute(&make).unwrap();
}

fn copy_of_table(from: &Database<'_>, to: &Database<'_>, table: &str) {
    let read = format!("(SELECT coalesce(json_agg(t), '[]')::text FROM {table} AS t)");
    let rows: String =
        diesel::select(diesel::dsl::sql::<Text>(&read)).get_result(&mut from.connect()).unwrap();
    let conn = &mut to.connect();
    conn.batch_execute(&format!("DELETE FROM {table}")).unwrap();
    diesel::sql_query(format!(
        "INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, $1::json)"
    ))
    .bind::<Text, _>(rows)
    .execute(conn)
    .unwrap();
}

/// Moves the tables' contents as a dump would.
fn move_to(from: &Database<'_>, to: &Database<'_>) {
    for table in ["outbox", "outbox_shard", "outbox_slot"] {
        copy_of_table(from, to, table);
    }
    let rename = format!("UPDATE outbox_slot SET slot = '{}'", to.name());
    let go_on = "SELECT setval('outbox_seq_seq', (SELECT max(seq) FROM outbox))";
    to.connect().batch_execute(&format!("{rename}; {go_on}")).unwrap();
    let publication = "CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert')";
    to.connect().batch_execute(publication).unwrap();
}

/// Runs the binary, and returns what it printed and whether it succeeded.
fn outbox(database: &Database<'_>, arguments: &[&str]) -> (String, bool) {
    let mut outbox = Command::new(workspace_binary("outbox"));
    let output = outbox.args(arguments).env("OUTBOX_DATABASE_URL", database.url()).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (String::from_utf8(printed).unwrap(), output.status.success())
}

/// Returns the first command between backticks in an error, without the name of the binary.
#[track_caller]
fn command_in(error: &str) -> Vec<&str> {
    let command = error.split('`').find_map(|part| part.strip_prefix("outbox "));
    command.unwrap_or_else(|| panic!("no command in: {error}")).split(' ').collect()
}

/// Runs this command. While that fails, runs the command in the error instead. Returns the last command that it ran.
fn follow(database: &Database<'_>, arguments: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    for _ in 0..3 {
        let (printed, has_succeeded) = outbox(database, &arguments.iter().map(|a| &**a).collect::<Vec<_>>());
        if has_succeeded {
            return arguments;
        }
        arguments = command_in(&printed).into_iter().map(str::to_owned).collect();
    }
    panic!("still refused: outbox {}", arguments.join(" "));
}

fn all_arrive(relay: &Process, topic: &str, committed: &BTreeSet<String>) {
    let arrived = || -> BTreeSet<String> {
        let received = Kafka::shared().read_all(topic);
        received.iter().map(|event| event.header("id").unwrap().to_owned()).collect()
    };
    eventually("all events", PATIENCE, || committed.is_subset(&arrived()).then_some(()));
    stop(relay);
}

/// Waits until a relay refuses to work, and returns its error.
fn refusal(relay: &Process, reason: &str) -> String {
    let advice = relay.wait_for_line("why it refuses", PATIENCE, |line| line.contains(reason));
    assert_eq!(relay.wait(PATIENCE).code(), Some(1));
    advice
}

/// Follows the advice of a relay that refuses to work, and checks that all of these events arrive.
fn is_refused_and_all_arrives_after(database: &Database<'_>, reason: &str, committed: &BTreeSet<String>) {
    let topic = new_topic("advised");
    let advice = refusal(&wal_relay(database, &topic), reason);
    follow(database, &command_in(&advice));
    all_arrive(&wal_relay(database, &topic), &topic, committed);
}

/// Has a relay send some events, then writes others that wait in the table. Returns the latter.
fn sent_and_unsent(database: &Database<'_>) -> BTreeSet<String> {
    let topic = new_topic("before");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    let relay = wal_relay(database, &topic);
    write(conn, 0, 1, 10, 50);
    eventually("the first events", PATIENCE, || (counter.count() >= 50).then_some(()));
    stop(&relay);
    write(conn, 0, 1, 10, 20)
}

#[test]
fn a_position_beyond_the_end_of_the_wal_is_refused_with_advice_that_loses_nothing() {
    let (source, target) = (migrated(), Postgres::start(15));
    source
        .connect()
        .batch_execute("SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()")
        .unwrap();
    source
        .connect()
        .batch_execute("SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()")
        .unwrap();
    wal(&source, "setup");
    let mut committed = sent_and_unsent(&source);
    let target = migrated_on(&target);
    move_to(&source, &target);
    make_slot_by_hand(&target);
    committed.extend(write(&mut target.connect(), 0, 1, 10, 10));
    is_refused_and_all_arrives_after(&target, "beyond the end", &committed);
}

#[test]
fn a_position_of_another_server_is_refused_with_advice_that_loses_nothing() {
    let (source, target) = (Postgres::start(15), Postgres::shared());
    let (source, target) = (migrated_on(&source), migrated_on(target));
    wal(&source, "setup");
    let mut committed = sent_and_unsent(&source);
    move_to(&source, &target);
    eventually("the WAL to be longer", PATIENCE, || {
        let longer = "SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()";
        target.connect().batch_execute(longer).unwrap();
        let is_longer = "outbox_slot WHERE start_lsn < pg_current_wal_lsn()";
        (count(&mut target.connect(), is_longer) == 1).then_some(())
    });
    make_slot_by_hand(&target);
    committed.extend(write(&mut target.connect(), 0, 1, 10, 10));
    is_refused_and_all_arrives_after(&target, "another server", &committed);
}

#[test]
fn a_slot_that_somebody_made_again_by_hand_is_refused_with_advice_that_loses_nothing() {
    let database = migrated();
    wal(&database, "setup");
    let mut committed = sent_and_unsent(&database);
    let drop = format!("SELECT pg_drop_replication_slot('{}')", database.name());
    database.connect().batch_execute(&drop).unwrap();
    make_slot_by_hand(&database);
    committed.extend(write(&mut database.connect(), 0, 1, 10, 10));
    is_refused_and_all_arrives_after(&database, "somebody has recreated it", &committed);
}

#[test]
fn a_slot_of_another_name_can_replace_one_that_is_gone_and_nothing_is_lost() {
    let database = migrated();
    wal(&database, "setup");
    let mut committed = sent_and_unsent(&database);
    let drop = format!("SELECT pg_drop_replication_slot('{}')", database.name());
    database.connect().batch_execute(&drop).unwrap();
    let slot = format!("{}_next", database.name());
    follow(&database, &["wal", "setup", "--slot", &slot]);
    committed.extend(write(&mut database.connect(), 0, 1, 10, 10));
    let topic = new_topic("next");
    all_arrive(&relay(&database, &topic, &["--source", "wal", "--slot", &slot]), &topic, &committed);
    follow(&database, &["wal", "drop"]);
}

/// A slot belongs to one database, but its name is unique on the server. A copy of the database has the original's slot name in
/// its table. The tests use the default name, as users do.
struct Original<'a> {
    database: Database<'a>,
    topic: String,
    committed: BTreeSet<String>,
    sent: usize,
}

const SENT: usize = 50;

impl<'a> Original<'a> {
    fn new(postgres: &'a Postgres) -> Self {
        let database = migrated_on(postgres);
        let topic = new_topic("original");
        let counter = Kafka::shared().counter(&topic);
        assert_eq!(follow(&database, &["wal", "setup"]), ["wal", "setup"]);
        let conn = &mut database.connect();
        let relay = relay(&database, &topic, &["--source", "wal"]);
        write(conn, 0, 1, 10, SENT);
        eventually("the first events", PATIENCE, || (counter.count() >= SENT).then_some(()));
        stop(&relay);
        wait_for_the_relays_end(conn);
        let committed = write(conn, 0, 1, 10, 20);
        Self { database, topic, committed, sent: SENT }
    }

    /// A copy of the database, with the events that are unsent there.
    fn copy(&self) -> (Database<'a>, BTreeSet<String>) {
        let copy = self.database.copy();
        let mut committed = self.committed.clone();
        committed.extend(write(&mut copy.connect(), 0, 1, 10, 10));
        (copy, committed)
    }

    /// The original's relay continues, and sends each event once.
    fn goes_on(mut self) {
        let relay = relay(&self.database, &self.topic, &["--source", "wal"]);
        self.committed.extend(write(&mut self.database.connect(), 0, 1, 10, 10));
        let events = self.sent + self.committed.len();
        all_arrive(&relay, &self.topic, &self.committed);
        assert_eq!(Kafka::shared().read_all(&self.topic).len(), events);
    }
}

#[test]
fn on_a_copy_on_the_same_server_each_errors_advice_leads_to_a_slot_of_its_own() {
    let postgres = Postgres::start(15);
    let original = Original::new(&postgres);
    for first in [None, Some("wal setup"), Some("wal setup --slot another")] {
        let (copy, mut committed) = original.copy();
        let topic = new_topic("copy");
        let refused = first.is_none().then(|| relay(&copy, &topic, &["--source", "wal"]));
        let refused = refused.map(|refused| refusal(&refused, "belongs to another database"));
        let first = first.unwrap_or_else(|| refused.as_deref().unwrap());
        let first = if refused.is_some() { command_in(first) } else { first.split(' ').collect() };
        let done = follow(&copy, &first);
        let [_, "setup", "--slot", slot] = done.iter().map(|a| &**a).collect::<Vec<_>>()[..] else {
            panic!("{done:?}");
        };
        committed.extend(write(&mut copy.connect(), 0, 1, 10, 10));
        all_arrive(&relay(&copy, &topic, &["--source", "wal", "--slot", slot]), &topic, &committed);
        // By now the relay knows that the copied name is wrong.
        let refused = relay(&copy, &topic, &["--source", "wal"]);
        assert!(refusal(&refused, "is read from").contains(&format!("`--slot {slot}`")));
        assert_eq!(follow(&copy, &["wal", "drop"]), ["wal", "drop", "--slot", slot]);
    }
    original.goes_on();
}

#[test]
fn on_a_copy_on_the_same_server_each_errors_advice_leads_to_polling() {
    let postgres = Postgres::start(15);
    let original = Original::new(&postgres);
    for first in ["wal drop", "wal drop --slot another"] {
        let (copy, mut committed) = original.copy();
        follow(&copy, &first.split(' ').collect::<Vec<_>>());
        committed.extend(write(&mut copy.connect(), 0, 1, 10, 10));
        let topic = new_topic("copy");
        all_arrive(&relay(&copy, &topic, &[]), &topic, &committed);
        let refused = outbox(&copy, &["wal", "drop"]);
        assert!(refused.0.contains("there is nothing to drop") && !refused.1, "{refused:?}");
    }
    original.goes_on();
}
