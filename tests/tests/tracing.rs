//! One trace leads from a request through the outbox, the relay and Kafka to the handler. OpenTelemetry's collector receives the spans.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::routing::post;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection};
use diesel_outbox::{AsyncEmit, Emit, Record};
use diesel_outbox_kafka::consumer::{Consumer, Rejected};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{FutureExt, SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, global};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use outbox_tests::load::{migrated, stop, wal};
use outbox_tests::{Collector, Database, Kafka, Process, ReceivedSpan, workspace_binary};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

/// A service that places orders, which it announces by events.
struct Shop {
    url: String,
    aggregate_type: String,
}

impl Shop {
    fn event(&self, id: Uuid) -> Record {
        Record::new(&self.aggregate_type, "7", "OrderPlaced").with_id(id).with_payload(*b"s3cret")
    }

    fn place(&self, id: Uuid) {
        let conn = &mut PgConnection::establish(&self.url).unwrap();
        conn.transaction(|c| c.emit(&self.event(id))).unwrap();
    }

    async fn place_async(&self, id: Uuid) {
        let conn = &mut AsyncPgConnection::establish(&self.url).await.unwrap();
        conn.transaction(async |c| c.emit(&self.event(id)).await).await.unwrap();
    }
}

struct OfRequest<'a>(&'a HeaderMap);

impl Extractor for OfRequest<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

async fn place(
    State(shop): State<Arc<Shop>>,
    Path((how, id)): Path<(String, Uuid)>,
    headers: HeaderMap,
) -> &'static str {
    let tracer = global::tracer("shop");
    let caller = TraceContextPropagator::new().extract(&OfRequest(&headers));
    let span = tracer.span_builder(format!("POST /{how}")).with_kind(SpanKind::Server);
    let request = caller.with_span(span.start_with_context(&tracer, &caller));
    if how == "async" {
        shop.place_async(id).with_context(request).await;
    } else {
        let placed = tokio::task::spawn_blocking(move || {
            let _active = request.attach();
            shop.place(id);
        });
        placed.await.unwrap();
    }
    "placed"
}

async fn serve(shop: Shop) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/{how}/{id}", post(place)).with_state(Arc::new(shop));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// Sends a request that belongs to a trace, as its caller says.
async fn request(to: SocketAddr, path: &str, trace: &str, caller: &str) {
    let mut connection = TcpStream::connect(to).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: shop\r\ntraceparent: 00-{trace}-{caller}-01\r\ntracestate: shop=7\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Starts a relay that sends its spans to the collector.
fn relay(collector: &Collector, database: &Database<'_>, arguments: &[&str]) -> Process {
    let mut command = Command::new(workspace_binary("outbox"));
    command
        .args(["relay", "--brokers", Kafka::shared().brokers()])
        .args(arguments)
        .env("OUTBOX_DATABASE_URL", database.relay_url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .env("OTEL_BSP_SCHEDULE_DELAY", "50");
    Process::start(&command)
}

fn new_aggregate_type() -> (String, String) {
    let aggregate_type = Kafka::shared().unique("order");
    let topic = format!("outbox.event.{aggregate_type}");
    Kafka::shared().create_topic(&topic, 1);
    (aggregate_type, topic)
}

fn new_trace() -> String {
    Uuid::now_v7().simple().to_string()
}

fn only<'a>(spans: &'a [ReceivedSpan], trace: &str, name: &str) -> Option<&'a ReceivedSpan> {
    let mut found = spans.iter().filter(|span| span.trace() == trace && span.name() == name);
    let first = found.next()?;
    assert!(found.next().is_none(), "{name} is there twice");
    Some(first)
}

fn has(span: &ReceivedSpan, attributes: &[(&str, &str)]) {
    for (name, value) in attributes {
        assert_eq!(span.attribute(name).as_deref(), Some(*value), "{name} of {}", span.json());
    }
}

/// Checks what the collector has of a request: the request's span, the event's, its handler's, and the relay's, which is linked.
fn is_one_trace(collector: &Collector, topic: &str, trace: &str, caller: &str, id: Uuid, way: &str) {
    let (created, processed) = (format!("create {topic}"), format!("process {topic}"));
    let [request, create, process, handler, send] = collector.wait_for("all spans of the trace", |spans| {
        let of_trace = |name: &str| only(spans, trace, name).cloned();
        let create = of_trace(&created)?;
        let send = spans.iter().find(|span| span.links().contains(&create.id()) && span.kind() == "CLIENT");
        let inner = of_trace("write the invoice")?;
        Some([of_trace(way)?, create.clone(), of_trace(&processed)?, inner, send?.clone()])
    });
    assert_eq!((request.kind(), request.parent()), ("SERVER", caller));
    assert_eq!((create.kind(), create.parent()), ("PRODUCER", request.id()));
    assert_eq!((process.kind(), process.parent()), ("CONSUMER", create.id()));
    assert_eq!(process.links(), [create.id()]);
    assert_eq!((handler.kind(), handler.parent()), ("INTERNAL", process.id()));
    assert_eq!((send.name(), send.parent()), (format!("send {topic}").as_str(), ""));
    assert_ne!(send.trace(), trace, "a batch has records of many traces");
    assert_eq!((create.service.as_str(), send.service.as_str()), ("shop", "outbox-relay"));

    let id = id.to_string();
    for (span, name) in [(&create, "create"), (&send, "send"), (&process, "process")] {
        has(span, &[("messaging.system", "kafka"), ("messaging.destination.name", topic)]);
        has(span, &[("messaging.operation.name", name), ("messaging.operation.type", name)]);
        assert!(!span.is_error() && span.attribute("error.type").is_none());
        assert!(!span.json().contains("s3cret"), "a span has the payload");
    }
    let message = [("messaging.message.id", id.as_str()), ("messaging.kafka.message.key", "7")];
    has(&create, &message);
    has(&process, &message);
    has(&process, &[("messaging.consumer.group.name", topic)]);
    assert!(process.attribute("messaging.kafka.offset").is_some());
    assert!(send.attribute("messaging.batch.message_count").is_some());
}

const CALLER: &str = "00f067aa0cc902b7";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_up_to_the_handler_whether_its_event_is_polled_or_read_from_the_wal() {
    let collector = Collector::shared();
    collector.receive_from_this_process("shop");
    let database = migrated();
    let (aggregate_type, topic) = new_aggregate_type();
    let address = serve(Shop { url: database.url().to_owned(), aggregate_type }).await;
    let consumer = Consumer::<PgConnection>::new(Kafka::shared().brokers(), &topic)
        .database_url(database.consumer_url())
        .topics([&topic])
        .on_other(|_, _| global::tracer("shop").in_span("write the invoice", |_| Ok(())));
    let consumer = consumer.spawn().unwrap();
    for arguments in [&[][..], &["--source", "wal", "--slot", database.name()]] {
        if !arguments.is_empty() {
            wal(&database, "setup");
        }
        let relay = relay(collector, &database, arguments);
        for how in ["sync", "async"] {
            let (trace, id) = (new_trace(), Uuid::now_v7());
            request(address, &format!("/{how}/{id}"), &trace, CALLER).await;
            is_one_trace(collector, &topic, &trace, CALLER, id, &format!("POST /{how}"));
        }
        stop(&relay);
    }
    consumer.stop().await.unwrap();
    let records = Kafka::shared().read_all(&topic);
    assert_eq!(records.len(), 4);
    for record in records {
        assert_eq!(record.header("tracestate"), Some("shop=7"));
        let names: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["id", "eventType", "traceparent", "tracestate"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_async_handler_works_in_the_trace_and_a_failure_is_an_error_of_its_span() {
    let collector = Collector::shared();
    collector.receive_from_this_process("shop");
    let database = migrated();
    let (aggregate_type, topic) = new_aggregate_type();
    let consumer = Consumer::<AsyncPgConnection>::new_async(Kafka::shared().brokers(), &topic)
        .database_url(database.consumer_url())
        .topics([&topic])
        .backoff(Duration::from_millis(1), Duration::from_millis(1))
        .on("OrderPlaced", async |_, _| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            global::tracer("shop").in_span("write the invoice", |_| Ok(()))
        })
        .on("OrderLost", async |_, _| Err(Rejected::new("it is lost").into()));
    let consumer = consumer.spawn().unwrap();
    let relay = relay(collector, &database, &[]);
    let (trace, id) = (new_trace(), Uuid::now_v7());
    let shop = Shop { url: database.url().to_owned(), aggregate_type: aggregate_type.clone() };
    let address = serve(shop).await;
    request(address, &format!("/async/{id}"), &trace, CALLER).await;
    is_one_trace(collector, &topic, &trace, CALLER, id, "POST /async");

    // Outside any trace, and twice under one id, which the table of scheduled events refuses.
    let lost = Record::new(&aggregate_type, "7", "OrderLost");
    let conn = &mut database.connect();
    conn.transaction(|c| c.emit(&lost)).unwrap();
    let later = Duration::from_secs(3_600);
    conn.transaction(|c| c.emit_after(&lost, later)).unwrap();
    conn.transaction(|c| c.emit_after(&lost, later)).unwrap_err();
    let id = lost.id().to_string();
    let of_event = |spans: &[ReceivedSpan], kind: &str| -> Vec<ReceivedSpan> {
        let is = |span: &&ReceivedSpan| {
            span.kind() == kind && span.attribute("messaging.message.id").as_ref() == Some(&id)
        };
        spans.iter().filter(is).cloned().collect()
    };
    let (created, processed) = collector.wait_for("the spans of the lost event", |spans| {
        let (created, processed) = (of_event(spans, "PRODUCER"), of_event(spans, "CONSUMER"));
        (created.len() == 3 && processed.len() == 1).then_some((created, processed))
    });
    assert!(created.iter().all(|span| span.parent().is_empty()), "each begins a trace");
    let failed: Vec<_> = created.iter().filter(|span| span.is_error()).collect();
    assert_eq!(failed.len(), 1);
    has(failed[0], &[("error.type", "UniqueViolation")]);
    assert!(processed[0].is_error() && created.iter().any(|span| span.id() == processed[0].parent()));
    has(&processed[0], &[("error.type", "rejected")]);
    stop(&relay);
    consumer.stop().await.unwrap();
}

/// The events of a batch have links, a bounded number of them, and the relay changes no event's own context.
#[test]
fn a_batch_has_one_span_for_each_topic_and_keeps_what_an_event_brings() {
    let collector = Collector::shared();
    collector.receive_from_this_process("shop");
    let database = migrated();
    let ((many, topic_of_many), (few, topic_of_few)) = (new_aggregate_type(), new_aggregate_type());
    let own = format!("00-{}-{CALLER}-00", new_trace());
    let of_few = Record::new(&few, "1", "Own").header("traceparent", &own);
    let records = (0..300).map(|number| Record::new(&many, number.to_string(), "Many")).chain([of_few]);
    database.connect().transaction(|c| c.emit_all(records)).unwrap();
    let relay = relay(collector, &database, &[]);
    let of = |spans: &[ReceivedSpan], topic: &str| -> Vec<ReceivedSpan> {
        let name = format!("send {topic}");
        spans.iter().filter(|span| span.name() == name).cloned().collect()
    };
    let records_of = |span: &ReceivedSpan| -> usize {
        span.attribute("messaging.batch.message_count").unwrap().parse().unwrap()
    };
    let (of_many, of_few) = collector.wait_for("the spans of both topics", |spans| {
        let (of_many, of_few) = (of(spans, &topic_of_many), of(spans, &topic_of_few));
        (of_many.iter().map(records_of).sum::<usize>() == 300 && of_few.len() == 1)
            .then_some((of_many, of_few))
    });
    stop(&relay);
    assert!(of_many.len() <= 3, "the relay has read them in {} batches", of_many.len());
    assert!(of_many.iter().all(|span| span.links().len() == records_of(span).min(128)));
    assert!(of_many.iter().any(|span| span.links().len() == 128));
    has(&of_few[0], &[("messaging.batch.message_count", "1")]);
    assert_eq!(of_few[0].links(), [CALLER]);
    let record = &Kafka::shared().read_at_least(&topic_of_few, 1, PATIENCE)[0];
    assert_eq!(record.header("traceparent"), Some(own.as_str()));
}

/// Kafka refuses a record that is too large.
#[test]
fn a_batch_that_kafka_does_not_take_as_a_whole_is_an_error() {
    let collector = Collector::shared();
    collector.receive_from_this_process("shop");
    let database = migrated();
    let (aggregate_type, topic) = new_aggregate_type();
    let tracer = global::tracer("shop");
    let trace = tracer.in_span("a batch job", |context: Context| {
        let large = Record::new(&aggregate_type, "1", "Large").with_payload(vec![b'x'; 2_000_000]);
        database
            .connect()
            .transaction(|c| c.emit_all([Record::new(&aggregate_type, "1", "Small"), large]))
            .unwrap();
        context.span().span_context().trace_id().to_string()
    });
    let relay = relay(collector, &database, &[]);
    let name = format!("send {topic}");
    let failed = collector.wait_for("the span that failed", |spans| {
        spans.iter().find(|span| span.name() == name && span.is_error()).cloned()
    });
    has(&failed, &[("error.type", "rejected")]);
    let created = collector.wait_for("the spans of both events", |spans| {
        let name = format!("create {topic}");
        let created: Vec<_> = spans.iter().filter(|span| span.name() == name).cloned().collect();
        (created.len() == 2).then_some(created)
    });
    assert!(created.iter().all(|span| span.trace() == trace && span.parent() == created[0].parent()));
    stop(&relay);
}
