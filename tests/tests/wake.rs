//! No event waits for the slow fallback poll, and idle relays send the database almost no queries. PostgreSQL notifies a relay that
//! sleeps. MariaDB notifies nobody, so a relay looks less and less often, and is asleep here while it pauses.

#[path = "wake/strangers.rs"]
mod strangers;

use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayHandle};
use outbox_tests::load::migrated;
use outbox_tests::{
    Database, Kafka, MariadbDatabase, Postgres, Tables, eventually, migrated_mariadb, on_postgres_and_mariadb,
};

const PATIENCE: Duration = Duration::from_secs(30);

on_postgres_and_mariadb!(
    an_event_wakes_the_sleeping_relay,
    an_event_that_commits_after_the_relay_went_to_sleep_is_not_missed,
    the_fallback_poll_finds_an_event_without_a_notification,
);

fn record(event_type: &str) -> Record {
    Record::new("order", "1", event_type).with_payload(*b"{}")
}

fn relay(tables: &impl Tables, topic: &str) -> RelayHandle {
    // Only a wake-up can bring an event to Kafka while the test waits.
    with_intervals(tables.relay(), topic, Duration::from_secs(3_600)).spawn().unwrap()
}

fn with_intervals(relay: Relay, topic: &str, poll_interval: Duration) -> Relay {
    relay
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .poll_interval(poll_interval)
        .lag_interval(Duration::from_secs(3_600))
}

/// A database whose relays sleep.
trait Sleeps: Tables {
    fn is_asleep(&self) -> bool;
    /// Returns whether the relay is asleep and has sent no query for a while. A relay that goes to sleep looks once more.
    fn is_sound_asleep(&self) -> bool;
}

impl Sleeps for Database<'_> {
    fn is_asleep(&self) -> bool {
        self.count(
            "pg_locks WHERE locktype = 'advisory' AND classid = 1869968482 AND objid = 'outbox'::regclass::oid \
             AND mode = 'ExclusiveLock' AND granted",
        ) > 0
    }

    fn is_sound_asleep(&self) -> bool {
        self.is_asleep()
            && self.count(
                "pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database() \
                 AND state = 'idle' AND state_change < clock_timestamp() - interval '300 ms'",
            ) == 1
    }
}

/// The session of the relay that looks.
const LEADER: &str = "information_schema.processlist WHERE command = 'Sleep' \
                      AND id = IS_USED_LOCK(CONCAT('outbox_', LEFT(DATABASE(), 36), '_', CRC32(DATABASE()), '_leader'))";

impl Sleeps for MariadbDatabase<'_> {
    fn is_asleep(&self) -> bool {
        self.count(&format!("{LEADER} AND time_ms > 50")) > 0
    }

    fn is_sound_asleep(&self) -> bool {
        self.count(&format!("{LEADER} AND time_ms > 100")) > 0
    }
}

fn wait_until_asleep(tables: &impl Sleeps) {
    eventually("the relay to lie down", PATIENCE, || tables.is_sound_asleep().then_some(()));
}

fn an_event_wakes_the_sleeping_relay(tables: &impl Sleeps) {
    let topic = Kafka::shared().unique("wakes");
    let _relay = relay(tables, &topic);
    let conn = &mut tables.connect();
    for count in 1..=5 {
        wait_until_asleep(tables);
        conn.transaction(|c| c.emit(&record("Woke"))).unwrap();
        Kafka::shared().read_at_least(&topic, count, PATIENCE);
    }
}

/// The emitter sees that the relay is awake and does not notify it. It commits when the relay is asleep.
fn an_event_that_commits_after_the_relay_went_to_sleep_is_not_missed(tables: &impl Sleeps) {
    let (conn, slow) = (&mut tables.connect(), &mut tables.connect());
    let topic = Kafka::shared().unique("overlooked");
    let _relay = relay(tables, &topic);
    eventually("an emit while the relay is awake", PATIENCE, || {
        conn.transaction(|c| c.emit(&record("Waking"))).unwrap();
        eventually("the relay to wake", PATIENCE, || (!tables.is_asleep()).then_some(()));
        AnsiTransactionManager::begin_transaction(slow).unwrap();
        slow.emit(&record("Slow")).unwrap();
        if !tables.is_asleep() {
            return Some(());
        }
        AnsiTransactionManager::rollback_transaction(slow).unwrap();
        None
    });
    wait_until_asleep(tables);
    AnsiTransactionManager::commit_transaction(slow).unwrap();
    eventually("the slow event", PATIENCE, || {
        let received = Kafka::shared().read_all(&topic);
        received.iter().any(|received| received.header("eventType") == Some("Slow")).then_some(())
    });
}

/// A row that is not inserted by `emit` notifies nobody. The fallback poll finds it.
fn the_fallback_poll_finds_an_event_without_a_notification(tables: &impl Sleeps) {
    let topic = Kafka::shared().unique("fallback");
    let _relay = with_intervals(tables.relay(), &topic, Duration::from_secs(1)).spawn().unwrap();
    wait_until_asleep(tables);
    tables.insert(1, "0", None);
    assert_eq!(Kafka::shared().read_at_least(&topic, 1, PATIENCE).len(), 1);
}

/// Ten idle relays send the database almost no queries: one listens, the others stand by.
#[test]
fn idle_relays_send_almost_no_queries_to_postgres() {
    let database = migrated();
    let topic = Kafka::shared().unique("idle");
    let _relays: Vec<RelayHandle> = (0..10).map(|_| relay(&database, &topic)).collect();
    let idle = "pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database() \
                AND state = 'idle' AND state_change < clock_timestamp() - interval '1 s'";
    eventually("ten relays to be idle for a second", PATIENCE, || (database.count(idle) == 10).then_some(()));
    assert!(database.is_asleep());
}

/// One looks, in pauses that grow, and the others ask now and then whether it is gone.
#[test]
fn idle_relays_send_almost_no_queries_to_mariadb() {
    const FOR: Duration = Duration::from_secs(1);
    let database = migrated_mariadb();
    let topic = Kafka::shared().unique("idle");
    let role = format!("{}_idle", database.name());
    let conn = &mut database.connect();
    conn.batch_execute(&format!(
        "SET GLOBAL userstat = 1; CREATE USER {role} IDENTIFIED BY 'idle'; GRANT ALL ON {}.* TO {role}",
        database.name()
    ))
    .unwrap();
    let relays: Vec<RelayHandle> = (0..10)
        .map(|_| {
            let relay = database.relay_by(database.url_as(&role, "idle"));
            with_intervals(relay, &topic, Duration::from_secs(3_600)).spawn().unwrap()
        })
        .collect();
    eventually("all to have started", PATIENCE, || (database.relays() == 10).then_some(()));
    eventually("a pause", PATIENCE, || {
        (database.count(&format!("{LEADER} AND time_ms > 200")) == 1).then_some(())
    });
    let sent = || {
        let sent = "SELECT CAST(select_commands + update_commands + other_commands AS SIGNED) \
                    FROM information_schema.user_statistics WHERE user = ";
        database.number(&format!("{sent}'{role}'"))
    };
    let before = sent();
    std::thread::sleep(FOR);
    let sent = sent() - before;
    // Up to five looks, and two questions of each second one of the others.
    assert!((1..30).contains(&sent), "{sent} statements in {FOR:?}");
    relays.into_iter().for_each(|relay| relay.stop_blocking().unwrap());
    conn.batch_execute(&format!("DROP USER {role}")).unwrap();
}

/// PostgreSQL does not prepare a transaction that has notified. MariaDB looks all the same, for events of prepared transactions too. If transactions can be prepared, the sleeping relay checks
/// whether the sequence has given numbers.
#[test]
fn an_event_of_a_prepared_transaction_is_sent_soon_after_it_is_committed() {
    let server = Postgres::start_with(15, &[("max_prepared_transactions", "5")]);
    let database = server.database();
    let conn = &mut database.connect();
    database.migrate();
    let topic = Kafka::shared().unique("prepared");
    let _relay = relay(&database, &topic);
    wait_until_asleep(&database);
    for gid in ["first", "second"] {
        AnsiTransactionManager::begin_transaction(conn).unwrap();
        conn.batch_execute("SET LOCAL outbox.notify = 'off'").unwrap();
        conn.emit(&record(gid)).unwrap();
        conn.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).unwrap();
        conn.batch_execute(&format!("COMMIT PREPARED '{gid}'")).unwrap();
        eventually(gid, PATIENCE, || {
            let received = Kafka::shared().read_all(&topic);
            received.iter().any(|received| received.header("eventType") == Some(gid)).then_some(())
        });
        wait_until_asleep(&database);
    }
}
