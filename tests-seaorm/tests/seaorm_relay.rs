//! A relay brings what SeaORM has emitted to Kafka, with the bytes that every consumer expects, and SeaORM's inbox handles it once.

use std::time::Duration;

use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::{Kafka, ReadRecord};
use outbox_tests_seaorm::Ground;
use rdkafka::Message;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Headers;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, TransactionTrait};
use sea_orm_outbox::{Emit, EncodedEvent, Inbox, InboxEvent, Once, Outbox, OutboxEvent};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const COUNT: u64 = 300;

#[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
#[outbox(aggregate = "order", id(order_id), version = 2)]
enum OrderEvent {
    Placed {
        order_id: u64,
        total_cents: u64,
    },
    #[outbox(tombstone)]
    Forgotten {
        order_id: u64,
    },
}

fn placed(order_id: u64) -> OrderEvent {
    OrderEvent::Placed { order_id, total_cents: 100 + order_id }
}

async fn emit(ground: &Ground) -> Vec<Uuid> {
    let outbox = Outbox::new().header("tenant", "acme");
    let mut ids = Vec::new();
    for order_id in 0..COUNT {
        let txn = ground.db.begin().await.unwrap();
        ids.push(outbox.emit(&txn, &placed(order_id % 10)).await.unwrap());
        txn.commit().await.unwrap();
    }
    let txn = ground.db.begin().await.unwrap();
    ids.extend(txn.emit_all((0..COUNT).map(|order_id| placed(order_id % 10))).await.unwrap());
    ids.push(txn.emit(&OrderEvent::Forgotten { order_id: 3 }).await.unwrap());
    txn.commit().await.unwrap();
    ids
}

fn id(record: &ReadRecord) -> Uuid {
    record.header("id").unwrap().parse().unwrap()
}

async fn reaches_kafka(ground: &Ground, relay: impl FnOnce(&str) -> Relay) {
    let kafka = Kafka::shared();
    let topic = kafka.unique("seaorm");
    kafka.create_topic(&topic, 1);
    let relay = relay(ground.url()).broker(Broker::new(kafka.brokers())).topic_naming(topic.parse().unwrap());
    let relay = relay.spawn().unwrap();
    let ids = emit(ground).await;
    let records = kafka.read_at_least(&topic, ids.len(), PATIENCE);
    relay.stop().await.unwrap();

    let mut of_each = vec![Vec::new(); 10];
    for record in &records {
        of_each[record.key_text().unwrap().parse::<usize>().unwrap()].push(id(record));
    }
    let expected = |order: usize| -> Vec<Uuid> {
        let placed = ids[..2 * COUNT as usize].iter().enumerate().filter(|(n, _)| n % 10 == order);
        let forgotten = ids.last().filter(|_| order == 3);
        placed.map(|(_, id)| *id).chain(forgotten.copied()).collect()
    };
    for (order, found) in of_each.iter().enumerate() {
        assert_eq!(*found, expected(order), "the events of order {order} in the order of their commits");
    }
    let first = records.iter().find(|record| id(record) == ids[0]).unwrap();
    assert_eq!(first.text(), Some(r#"{"order_id":0,"total_cents":100}"#));
    let headers: Vec<(&str, &str)> =
        first.headers.iter().map(|(name, _)| (name.as_str(), first.header(name).unwrap())).collect();
    let event_id = ids[0].to_string();
    assert_eq!(
        headers,
        [("id", event_id.as_str()), ("eventType", "Placed"), ("eventVersion", "2"), ("tenant", "acme")]
    );
    let last = records.iter().find(|record| Some(&id(record)) == ids.last()).unwrap();
    assert_eq!((last.header("eventType"), &last.payload), (Some("Forgotten"), &None));

    // Twice from the beginning: each event takes effect once.
    ground.run("CREATE TABLE invoice (order_id bigint, total_cents bigint)").await;
    for group in ["first", "second"] {
        consume(ground, &topic, group, records.len()).await;
    }
    assert_eq!(ground.count("invoice").await, 2 * COUNT as i64);
}

/// The loop of the crate's documentation, for so many records.
async fn consume(ground: &Ground, topic: &str, group: &str, count: usize) {
    let mut config = Kafka::shared().client();
    config.set("group.id", format!("{topic}-{group}")).set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config.set("enable.auto.offset.store", "false").create().unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let inbox = Inbox::new("billing");
    for _ in 0..count {
        let message = consumer.recv().await.unwrap();
        let headers =
            message.headers().into_iter().flat_map(Headers::iter).map(|header| (header.key, header.value));
        let (event_id, encoded) = EncodedEvent::received(message.key(), message.payload(), headers).unwrap();
        let event = OrderEvent::decode(&encoded).unwrap();
        let once = inbox.once(&ground.db, event_id, async |txn| invoice(txn, &event).await).await.unwrap();
        assert_eq!(once == Once::Duplicate, group == "second");
        consumer.store_offset_from_message(&message).unwrap();
    }
}

async fn invoice(txn: &DatabaseTransaction, event: &OrderEvent) -> Result<(), DbErr> {
    match event {
        OrderEvent::Placed { order_id, total_cents } => {
            let insert = format!("INSERT INTO invoice VALUES ({order_id}, {total_cents})");
            txn.execute_unprepared(&insert).await.map(drop)
        }
        OrderEvent::Forgotten { .. } => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_postgres_every_event_reaches_kafka_in_order_and_takes_effect_once() {
    let ground = Ground::empty_postgres().await.migrated().await;
    reaches_kafka(&ground, |url| Relay::postgres(url)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_mariadb_every_event_reaches_kafka_in_order_and_takes_effect_once() {
    let ground = Ground::empty_mariadb().await.migrated().await;
    reaches_kafka(&ground, |url| Relay::mysql(url)).await;
}
