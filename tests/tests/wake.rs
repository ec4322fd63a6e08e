//! The gated notification: no event waits for the slow fallback poll, and idle relays send the database almost no queries.

use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayHandle};
use outbox_tests::{Database, Kafka, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

fn record(event_type: &str) -> Record {
    Record::new("order", "1", event_type).with_payload(*b"{}")
}

fn relay(database: &Database<'_>, topic: &str) -> RelayHandle {
    Relay::postgres(database.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        // Only a wake-up can bring an event to Kafka while the test waits.
        .poll_interval(Duration::from_secs(3_600))
        .lag_interval(Duration::from_secs(3_600))
        .spawn()
        .unwrap()
}

fn is_asleep(conn: &mut PgConnection) -> bool {
    diesel::dsl::sql::<Bool>(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 1869968482 \
         AND objid = 'outbox'::regclass::oid AND mode = 'ExclusiveLock' AND granted)",
    )
    .get_result(conn)
    .unwrap()
}

/// Waits until a relay sleeps and has sent no query for a while. A relay that goes to sleep looks once more.
fn wait_until_asleep(conn: &mut PgConnection) {
    let quiet = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
                 AND datname = current_database() AND state = 'idle' \
                 AND state_change < clock_timestamp() - interval '300 ms'";
    eventually("the relay to lie down", PATIENCE, || {
        (is_asleep(conn) && number(conn, quiet) == 1).then_some(())
    });
}

fn number(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

#[test]
fn an_event_wakes_the_sleeping_relay() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let topic = Kafka::shared().unique("wakes");
    let _relay = relay(&database, &topic);
    for count in 1..=5 {
        wait_until_asleep(conn);
        conn.transaction(|c| c.emit(&record("Woke"))).unwrap();
        Kafka::shared().read_at_least(&topic, count, PATIENCE);
    }
}

/// The emitter sees that the relay is awake and does not notify it. It commits when the relay is asleep.
#[test]
fn an_event_that_commits_after_the_relay_went_to_sleep_is_not_missed() {
    let database = Postgres::shared().database();
    let (conn, slow) = (&mut database.connect(), &mut database.connect());
    Migrations::new().run(conn).unwrap();
    let topic = Kafka::shared().unique("overlooked");
    let _relay = relay(&database, &topic);
    eventually("an emit while the relay is awake", PATIENCE, || {
        conn.transaction(|c| c.emit(&record("Waking"))).unwrap();
        eventually("the relay to wake", PATIENCE, || (!is_asleep(conn)).then_some(()));
        AnsiTransactionManager::begin_transaction(slow).unwrap();
        slow.emit(&record("Slow")).unwrap();
        if !is_asleep(conn) {
            return Some(());
        }
        AnsiTransactionManager::rollback_transaction(slow).unwrap();
        None
    });
    wait_until_asleep(conn);
    AnsiTransactionManager::commit_transaction(slow).unwrap();
    eventually("the slow event", PATIENCE, || {
        let received = Kafka::shared().read_all(&topic);
        received.iter().any(|received| received.header("eventType") == Some("Slow")).then_some(())
    });
}

/// Ten idle relays send the database almost no queries: one listens, the others stand by.
#[test]
fn idle_relays_send_almost_no_queries() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let topic = Kafka::shared().unique("idle");
    let _relays: Vec<RelayHandle> = (0..10).map(|_| relay(&database, &topic)).collect();
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
                AND datname = current_database() AND state = 'idle' AND state_change < clock_timestamp() - interval '1 s'";
    eventually("ten relays to be idle for a second", PATIENCE, || (number(conn, idle) == 10).then_some(()));
    assert!(is_asleep(conn));
}

/// A row that is not inserted by `emit` notifies nobody. The fallback poll finds it.
#[test]
fn the_fallback_poll_finds_an_event_without_a_notification() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let topic = Kafka::shared().unique("fallback");
    let _relay = Relay::postgres(database.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .poll_interval(Duration::from_secs(1))
        .spawn()
        .unwrap();
    wait_until_asleep(conn);
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
         VALUES (gen_random_uuid(), 'order', '1', 'Quiet', 0)",
    )
    .unwrap();
    assert_eq!(Kafka::shared().read_at_least(&topic, 1, PATIENCE).len(), 1);
}

/// PostgreSQL does not prepare a transaction that has notified. If transactions can be prepared, the sleeping relay checks
/// whether the sequence has given numbers.
#[test]
fn an_event_of_a_prepared_transaction_is_sent_soon_after_it_is_committed() {
    let server = Postgres::start_with(15, &[("max_prepared_transactions", "5")]);
    let database = server.database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let topic = Kafka::shared().unique("prepared");
    let _relay = relay(&database, &topic);
    wait_until_asleep(conn);
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
        wait_until_asleep(conn);
    }
}

/// Whoever can connect can take advisory locks. Nobody else may suffer from that.
#[test]
fn a_stranger_who_holds_the_advisory_locks_does_not_stop_the_relay() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let role = format!("{}_stranger", database.name());
    conn.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'stranger'")).unwrap();
    let mut stranger = PgConnection::establish(&database.url_as(&role, "stranger")).unwrap();
    let oid = number(conn, "SELECT 'outbox'::regclass::oid::bigint");
    for key in 1_869_968_482..1_869_968_487 {
        stranger.batch_execute(&format!("SELECT pg_advisory_lock({key}, {oid})")).unwrap();
    }
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
         VALUES (gen_random_uuid(), 'order', 'old', 'Sent', 0, now() - interval '1 day')",
    )
    .unwrap();
    let topic = Kafka::shared().unique("stranger");
    let relay = Relay::postgres(database.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .poll_interval(Duration::from_secs(3_600))
        .keep_sent(Duration::ZERO)
        .spawn()
        .unwrap();
    for count in 1..=3 {
        conn.transaction(|c| c.emit(&record("Sent"))).unwrap();
        Kafka::shared().read_at_least(&topic, count, PATIENCE);
        let quiet = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
                     AND datname = current_database() AND state = 'idle' \
                     AND state_change < clock_timestamp() - interval '150 ms'";
        eventually("the relay to be quiet", PATIENCE, || (number(conn, quiet) == 1).then_some(()));
    }
    let old = "SELECT count(*) FROM outbox WHERE aggregateid = 'old'";
    eventually("what was sent long ago to be pruned", PATIENCE, || (number(conn, old) == 0).then_some(()));
    drop(stranger);
    drop(relay);
    eventually("the role to be free", PATIENCE, || conn.batch_execute(&format!("DROP ROLE {role}")).ok());
}
