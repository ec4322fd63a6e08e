//! Services that trace with the crate `tracing`, and its bridge to OpenTelemetry, are in one trace too.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::AsyncPgConnection;
use diesel_outbox::{Emit, Record};
use diesel_outbox_kafka::consumer::Consumer;
use diesel_outbox_relay::{Kafka as Broker, Relay};
use opentelemetry::global;
use outbox_tests::load::migrated;
use outbox_tests::{Collector, Kafka, ReceivedSpan};
use tracing::{Instrument, info_span};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use uuid::Uuid;

/// The spans of both handlers lie in that of the record, which log lines have too.
#[tokio::test(flavor = "multi_thread")]
async fn spans_of_the_crate_tracing_are_parents_of_events_and_children_of_records() {
    let collector = Collector::shared();
    collector.receive_from_this_process("shop");
    let layer = tracing_opentelemetry::layer().with_tracer(global::tracer("shop"));
    tracing_subscriber::registry().with(LevelFilter::INFO).with(layer).init();
    let (database, kafka) = (migrated(), Kafka::shared());
    let aggregate_type = kafka.unique("order");
    let topic = format!("outbox.event.{aggregate_type}");
    kafka.create_topic(&topic, 1);

    let url = database.consumer_url();
    let name = |kind: &str| format!("{topic}-{kind}");
    let blocking = Consumer::<PgConnection>::new(kafka.brokers(), name("blocking"))
        .database_url(&url)
        .topics([&topic])
        .on_other(|_, _| info_span!("write the invoice").in_scope(|| Ok(())));
    let asynchronous = Consumer::<AsyncPgConnection>::new_async(kafka.brokers(), name("async"))
        .database_url(&url)
        .topics([&topic])
        .on_other(async |_, _| {
            let work = async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(())
            };
            work.instrument(info_span!("write the invoice")).await
        });
    let (blocking, asynchronous) = (blocking.spawn().unwrap(), asynchronous.spawn().unwrap());
    let relay = Relay::postgres(database.relay_url()).broker(Broker::new(kafka.brokers())).spawn().unwrap();
    let event = Record::new(&aggregate_type, "7", "OrderPlaced").with_id(Uuid::now_v7());
    let request = info_span!(parent: None, "POST /orders");
    request.in_scope(|| database.connect().transaction(|c| c.emit(&event)).unwrap());
    drop(request);

    let named = |spans: &[ReceivedSpan], name: &str| -> Vec<ReceivedSpan> {
        spans.iter().filter(|span| span.name() == name).cloned().collect()
    };
    let (request, create, process, record, handler) = collector.wait_for("the spans", |spans| {
        let create = named(spans, &format!("create {topic}")).pop()?;
        let request = spans.iter().find(|span| span.id() == create.parent())?.clone();
        let process = named(spans, &format!("process {topic}"));
        let (record, handler) = (named(spans, "record"), named(spans, "write the invoice"));
        let all = process.len() == 2 && record.len() == 2 && handler.len() == 2;
        all.then_some((request, create, process, record, handler))
    });
    relay.stop().await.unwrap();
    blocking.stop().await.unwrap();
    asynchronous.stop().await.unwrap();
    assert_eq!(request.name(), "POST /orders");
    for span in process.iter().chain(&record).chain(&handler) {
        assert_eq!(span.trace(), create.trace(), "{}", span.json());
    }
    assert!(process.iter().all(|span| span.parent() == create.id()));
    for handler in &handler {
        let record = record.iter().find(|record| record.id() == handler.parent()).unwrap();
        assert!(process.iter().any(|process| process.id() == record.parent()));
    }
}
