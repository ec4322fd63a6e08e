//! What SeaORM emits carries the trace that is active, and an embedded relay links to it.

use std::time::Duration;

use diesel_outbox_relay::{Kafka as Broker, Relay};
use opentelemetry::trace::{FutureExt, TraceContextExt, Tracer};
use opentelemetry::{Context, global};
use outbox_tests::{Collector, Kafka, ReceivedSpan};
use outbox_tests_seaorm::Ground;
use sea_orm::TransactionTrait;
use sea_orm_outbox::{Emit, Record};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn events_that_seaorm_emits_are_children_of_the_active_span_and_the_embedded_relay_links_to_them() {
    let collector = Collector::shared();
    collector.receive_from_this_process("shop");
    let ground = Ground::empty_postgres().await.migrated().await;
    let kafka = Kafka::shared();
    let aggregate_type = kafka.unique("order");
    let topic = format!("outbox.event.{aggregate_type}");
    kafka.create_topic(&topic, 1);
    let record = |number: u32| Record::new(&aggregate_type, number.to_string(), "OrderPlaced");

    let tracer = global::tracer("shop");
    let request = Context::new().with_span(tracer.start_with_context("POST /orders", &Context::new()));
    let of_request = request.span().span_context().clone();
    let placed = async {
        let txn = ground.db.begin().await.unwrap();
        txn.emit(&record(1)).await.unwrap();
        txn.emit_all([record(2), record(3)]).await.unwrap();
        // Under one id, which the table of scheduled events refuses the second time.
        let later = record(4);
        txn.emit_after(&later, Duration::from_secs(3_600)).await.unwrap();
        txn.commit().await.unwrap();
        let txn = ground.db.begin().await.unwrap();
        txn.emit_after(&later, Duration::from_secs(3_600)).await.unwrap_err();
        txn.rollback().await.unwrap();
    };
    placed.with_context(request).await;
    let relay = Relay::postgres(ground.url()).broker(Broker::new(kafka.brokers())).spawn().unwrap();
    let records = kafka.read_at_least(&topic, 3, PATIENCE);
    relay.stop().await.unwrap();

    let named = |spans: &[ReceivedSpan], name: String| -> Vec<ReceivedSpan> {
        spans.iter().filter(|span| span.name() == name).cloned().collect()
    };
    let (created, send) = collector.wait_for("the spans of all events", |spans| {
        let created = named(spans, format!("create {topic}"));
        let send = named(spans, format!("send {topic}"));
        (created.len() == 5 && send.len() == 1).then_some((created, send))
    });
    for span in &created {
        assert_eq!(span.kind(), "PRODUCER");
        assert_eq!(span.trace(), of_request.trace_id().to_string());
        assert_eq!(span.parent(), of_request.span_id().to_string());
    }
    let failed: Vec<_> = created.iter().filter(|span| span.is_error()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].attribute("error.type").as_deref(), Some("UniqueViolation"));
    for record in &records {
        let (_, parent) = record.header("traceparent").unwrap().split_at(36);
        let span = created.iter().find(|span| parent.starts_with(span.id())).unwrap();
        assert_eq!(span.attribute("messaging.message.id").as_deref(), record.header("id"));
        assert!(send[0].links().contains(&span.id()));
    }
    assert_eq!((send[0].kind(), send[0].links().len()), ("CLIENT", 3));
}
