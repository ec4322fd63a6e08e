//! The main job on real servers: what is committed arrives as it was emitted, what is rolled back does not, and a record that
//! cannot be sent does not stop the others.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, OutboxConnection, Record};
use diesel_outbox_relay::operate::{Operate, Requeue};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayHandle, TopicNaming};
use outbox_tests::load::migrated;
use outbox_tests::{Folder, Kafka, ReadRecord, Tables, eventually, on_postgres_and_mariadb};

const PATIENCE: Duration = Duration::from_secs(60);

on_postgres_and_mariadb!(
    committed_events_arrive_with_their_exact_bytes_and_others_never_do,
    events_arrive_on_kafka_exactly_as_emitted,
    an_event_that_commits_late_is_sent,
    an_unrelated_open_transaction_delays_nothing,
    a_record_that_does_not_fit_into_the_queue_becomes_a_dead_letter,
    a_graceful_stop_in_the_middle_sends_nothing_twice,
);

/// A relay for the database whose topics all begin with this test's prefix.
fn relay(tables: &impl Tables, prefix: &str) -> Relay {
    let topics: TopicNaming = format!("{prefix}.{{aggregatetype}}").parse().unwrap();
    tables.relay().broker(Broker::new(Kafka::shared().brokers())).topic_naming(topics)
}

fn stop(relay: RelayHandle) {
    relay.stop_blocking().unwrap();
}

fn emit<C: OutboxConnection>(conn: &mut C, record: &Record) {
    conn.transaction(|c| c.emit(record)).unwrap();
}

fn record(aggregate: impl ToString, event_type: impl ToString) -> Record {
    Record::new("order", aggregate.to_string(), event_type.to_string()).with_payload(*b"{}")
}

/// The event types in the order of their first arrival. If Kafka refuses a batch, other records of it may be sent again.
fn first_event_types(received: &[ReadRecord]) -> Vec<&str> {
    let mut names = event_types(received);
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

fn event_types(received: &[ReadRecord]) -> Vec<&str> {
    received.iter().map(|received| received.header("eventType").unwrap()).collect()
}

fn odd_records() -> [Record; 4] {
    [
        Record::new("order", "a b/ü", "Plåced")
            .version(3)
            .header("z", "\"quoted\" \\ ü\n")
            .header("a", "")
            .with_payload((0..=255).collect::<Vec<u8>>()),
        Record::new("order", "tombstone", "Deleted"),
        Record::new("order", "empty", "Emptied").with_payload(Vec::new()),
        Record::new("order", "json", "Odd").with_payload(*b" { \"b\":1,\"a\" : 1.0 }\n"),
    ]
}

fn assert_arrived_as_emitted(topic: &str, emitted: &[Record]) {
    let received = Kafka::shared().read_at_least(topic, emitted.len(), PATIENCE);
    assert_eq!(received.len(), emitted.len());
    for record in emitted {
        let id = record.id().to_string();
        let received = received.iter().find(|received| received.header("id") == Some(&id)).unwrap();
        let mut headers =
            vec![("id".to_owned(), id), ("eventType".to_owned(), record.event_type().to_owned())];
        headers.extend_from_slice(record.headers());
        let headers: Vec<(String, Option<Vec<u8>>)> =
            headers.into_iter().map(|(name, value)| (name, Some(value.into_bytes()))).collect();
        assert_eq!(received.headers, headers);
        assert_eq!(received.key.as_deref(), Some(record.aggregate_id().as_bytes()));
        assert_eq!(received.payload.as_deref(), record.payload());
        let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64 - received.timestamp.unwrap();
        assert!((-1_000..120_000).contains(&age), "the timestamp is {age} ms old");
    }
}

fn committed_events_arrive_with_their_exact_bytes_and_others_never_do(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("bytes");
    let relay = relay(tables, &prefix).spawn().unwrap();
    let conn = &mut tables.connect();
    let rolled_back: QueryResult<()> = conn.transaction(|c| {
        c.emit(&record(1, "RolledBack"))?;
        Err(diesel::result::Error::RollbackTransaction)
    });
    assert!(rolled_back.is_err());
    conn.transaction(|c| {
        let savepoint: QueryResult<()> = c.transaction(|c| {
            c.emit(&record(1, "RolledBackToSavepoint"))?;
            Err(diesel::result::Error::RollbackTransaction)
        });
        assert!(savepoint.is_err());
        c.emit_all(odd_records())
    })
    .map(drop)
    .unwrap();
    let mut panicking = tables.connect();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        panicking.transaction(|c| -> QueryResult<()> {
            c.emit(&record(1, "Panicked"))?;
            panic!("on purpose");
        })
    }));
    drop(panicking);
    assert!(panicked.is_err());
    let odd = odd_records();
    conn.transaction(|c| c.emit_all(&odd)).unwrap();
    // When a record has arrived, everything that was emitted before it for the same aggregate has arrived too.
    let last = record(1, "Last");
    emit(conn, &last);
    let topic = format!("{prefix}.order");
    let received = Kafka::shared().read_at_least(&topic, 9, PATIENCE);
    assert_eq!(received.len(), 9, "{:?}", event_types(&received));
    assert!(event_types(&received).iter().all(|name| !name.contains("RolledBack") && *name != "Panicked"));
    stop(relay);
}

fn events_arrive_on_kafka_exactly_as_emitted(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("exact");
    let relay = relay(tables, &prefix).spawn().unwrap();
    let odd = odd_records();
    tables.connect().transaction(|c| c.emit_all(&odd)).unwrap();
    assert_arrived_as_emitted(&format!("{prefix}.order"), &odd);
    stop(relay);
}

#[test]
fn events_arrive_on_kafka_exactly_as_emitted_on_sqlite() {
    let folder = Folder::new("delivery");
    let path = folder.path().join("outbox.db").display().to_string();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    Migrations::new().run(conn).unwrap();
    let topic = Kafka::shared().unique("sqlite");
    let start = || {
        Relay::sqlite(&path)
            .broker(Broker::new(Kafka::shared().brokers()))
            .topic_naming(topic.parse().unwrap())
            .spawn()
            .unwrap()
    };
    // A second relay waits for its turn.
    let (first, second) = (start(), start());
    let odd = odd_records();
    conn.transaction(|c| c.emit_all(&odd)).unwrap();
    assert_arrived_as_emitted(&topic, &odd);
    stop(first);
    let more: Vec<Record> = (0..100).map(|n| record(n, "Later")).collect();
    conn.transaction(|c| c.emit_all(&more)).unwrap();
    let received = Kafka::shared().read_at_least(&topic, 104, PATIENCE);
    assert_eq!(received.len(), 104);
    stop(second);
}

#[test]
fn tables_in_a_schema_of_their_own_are_relayed() {
    let database = migrated();
    let conn = &mut database.connect();
    let schema = "billing \"quoted\"";
    database.migrate_in(schema);
    conn.batch_execute("SET search_path TO \"billing \"\"quoted\"\"\"").unwrap();
    let prefix = Kafka::shared().unique("schema");
    let relay = relay(&database, &prefix).schema(schema).spawn().unwrap();
    emit(conn, &record(1, "InSchema"));
    let received = Kafka::shared().read_at_least(&format!("{prefix}.order"), 1, PATIENCE);
    assert_eq!(event_types(&received), ["InSchema"]);
    assert_eq!(database.count("public.outbox"), 0);
    stop(relay);
}

/// A transaction that took a low `seq` commits after higher ones were sent and the lower bounds have moved on.
fn an_event_that_commits_late_is_sent(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("late");
    let topic = format!("{prefix}.order");
    let relay = relay(tables, &prefix).max_pass_duration(Duration::from_millis(50)).spawn().unwrap();
    let conn = &mut tables.connect();
    let late = &mut tables.connect();
    let late_record = record("late", "Late");
    late.transaction(|c| -> QueryResult<()> {
        c.emit(&late_record)?;
        let mut sent = 0;
        for round in 0..4 {
            let many: Vec<Record> = (0..5_000).map(|n| record(n % 100, format!("Early{round}"))).collect();
            conn.transaction(|c| c.emit_all(&many)).unwrap();
            sent += many.len();
            Kafka::shared().read_at_least(&topic, sent, PATIENCE);
        }
        Ok(())
    })
    .unwrap();
    let received = Kafka::shared().read_at_least(&topic, 20_001, PATIENCE);
    assert_eq!(received.len(), 20_001);
    assert_eq!(event_types(&received).iter().filter(|name| **name == "Late").count(), 1);
    // As soon as no transaction can commit late any more, the lower bounds move.
    eventually("the lower bounds to move", PATIENCE, || {
        emit(conn, &record("after", "After"));
        (tables.number("SELECT max(sent_through) FROM outbox_shard") > 15_000).then_some(())
    });
    stop(relay);
}

fn an_unrelated_open_transaction_delays_nothing(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("unrelated");
    let topic = format!("{prefix}.order");
    let unrelated = &mut tables.connect();
    unrelated
        .batch_execute("CREATE TABLE bystander (n int)")
        .and_then(|()| unrelated.batch_execute("BEGIN"))
        .unwrap();
    // MariaDB refuses, because its transactions are of this kind if nothing else is said.
    let _ = unrelated.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    unrelated
        .batch_execute("INSERT INTO bystander VALUES (1)")
        .and_then(|()| unrelated.batch_execute("SELECT count(*) FROM outbox"))
        .unwrap();
    let relay = relay(tables, &prefix).spawn().unwrap();
    let conn = &mut tables.connect();
    let many: Vec<Record> = (0..20_000).map(|n| record(n % 100, n)).collect();
    conn.transaction(|c| c.emit_all(&many)).unwrap();
    assert_eq!(Kafka::shared().read_at_least(&topic, 20_000, PATIENCE).len(), 20_000);
    eventually("the lower bounds to move beside the open transaction", PATIENCE, || {
        emit(conn, &record("after", "After"));
        (tables.number("SELECT max(sent_through) FROM outbox_shard") > 15_000).then_some(())
    });
    unrelated.batch_execute("COMMIT").unwrap();
    stop(relay);
}

/// This broker does not make topics by itself.
#[test]
fn a_topic_that_does_not_exist_makes_dead_letters_and_stops_nobody() {
    let kafka = Kafka::start_with(&[("auto.create.topics.enable", "false")]);
    let database = migrated();
    let prefix = kafka.unique("missing");
    kafka.create_topic(&format!("{prefix}.order"), 3);
    let topics: TopicNaming = format!("{prefix}.{{aggregatetype}}").parse().unwrap();
    let relay = Relay::postgres(database.url())
        .broker(Broker::new(kafka.brokers()))
        .topic_naming(topics)
        .stall_timeout(Duration::from_secs(1))
        .spawn()
        .unwrap();
    let conn = &mut database.connect();
    let lost = Record::new("lost", "1", "NoTopic").with_payload(*b"{}");
    conn.transaction(|c| c.emit_all([record(1, "Before"), lost, record(1, "After")])).unwrap();
    assert_eq!(
        first_event_types(&kafka.read_at_least(&format!("{prefix}.order"), 2, PATIENCE)),
        ["Before", "After"]
    );
    let letter = eventually("the dead letter", PATIENCE, || conn.dead_letters(9).unwrap().pop());
    assert!(
        letter.reason.contains(&format!("the topic `{prefix}.lost` does not exist")),
        "{}",
        letter.reason
    );
    kafka.create_topic(&format!("{prefix}.lost"), 1);
    eventually("the requeued letter on Kafka", PATIENCE, || {
        conn.requeue(&Requeue::All).unwrap();
        (!kafka.read_all(&format!("{prefix}.lost")).is_empty()).then_some(())
    });
    stop(relay);
}

/// The producer's queue is smaller than the record.
fn a_record_that_does_not_fit_into_the_queue_becomes_a_dead_letter(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("queue");
    let broker = Broker::new(Kafka::shared().brokers())
        .set("queue.buffering.max.kbytes", "100")
        .set("message.max.bytes", "1000000");
    let relay = relay(tables, &prefix).broker(broker).spawn().unwrap();
    let conn = &mut tables.connect();
    let large = record(1, "Large").with_payload(vec![b'x'; 500_000]);
    conn.transaction(|c| c.emit_all([record(1, "Before"), large, record(1, "After")])).unwrap();
    let received = Kafka::shared().read_at_least(&format!("{prefix}.order"), 2, PATIENCE);
    assert_eq!(event_types(&received), ["Before", "After"]);
    let mut operator = tables.operate();
    let letter = eventually("the dead letter", PATIENCE, || operator.dead_letters(9).unwrap().pop());
    assert!(letter.reason.contains("queue.buffering.max.kbytes"), "{}", letter.reason);
    stop(relay);
}

/// The partitions that Java's default partitioner chooses. The hashes come from Kafka's own test of its murmur2
/// (`org.apache.kafka.common.utils.UtilsTest`).
#[test]
fn partitions_are_those_that_java_clients_choose() {
    let database = migrated();
    let topic = Kafka::shared().unique("partitions");
    Kafka::shared().create_topic(&topic, 7);
    let relay = relay(&database, &topic).topic_naming(topic.parse().unwrap()).spawn().unwrap();
    let keys: [(&str, i32); 4] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
    ];
    database.connect().transaction(|c| c.emit_all(keys.map(|(key, _)| record(key, "Keyed")))).unwrap();
    for received in Kafka::shared().read_at_least(&topic, keys.len(), PATIENCE) {
        let (key, hash) = keys.iter().find(|(key, _)| received.key_text() == Some(key)).unwrap();
        assert_eq!(received.partition, (hash & i32::MAX) % 7, "{key}");
    }
    stop(relay);
}

fn a_graceful_stop_in_the_middle_sends_nothing_twice(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("stop");
    let topic = format!("{prefix}.order");
    Kafka::shared().create_topic(&topic, 3);
    let many: Vec<Record> = (0..60_000).map(|n| record(n % 100, n)).collect();
    tables.connect().transaction(|c| c.emit_all(&many)).unwrap();
    let counter = Kafka::shared().counter(&topic);
    let mut stopped_in_the_middle = 0;
    for stop_at in [1, 15_000, 30_000] {
        let relay = relay(tables, &prefix).workers(2).spawn().unwrap();
        eventually("some records", PATIENCE, || (counter.count() >= stop_at).then_some(()));
        stop(relay);
        stopped_in_the_middle += usize::from(counter.count() < many.len());
        let sent = tables.count("outbox WHERE sent_at IS NOT NULL");
        assert_eq!(sent, counter.count(), "what is on Kafka is settled, and nothing else");
    }
    assert!(stopped_in_the_middle > 0, "every stop came after the end");
    let relay = relay(tables, &prefix).spawn().unwrap();
    let received = Kafka::shared().read_at_least(&topic, many.len(), PATIENCE);
    stop(relay);
    assert_eq!(counter.count(), many.len());
    assert_in_order(&received, 100);
}

/// Checks that the numbers of each aggregate's events grow.
fn assert_in_order(received: &[ReadRecord], aggregates: usize) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for received in received {
        let number = received.header("eventType").unwrap().parse().unwrap();
        let aggregate = received.key_text().unwrap();
        let before = last.insert(aggregate, number);
        assert!(before.is_none_or(|before| before < number), "{aggregate}: {number} came after {before:?}");
    }
    assert_eq!(last.len(), aggregates);
}
