//! The spans of events that are emitted, and what the crates share of OpenTelemetry. Without the feature `opentelemetry`, [`Created`] holds
//! only records, and its methods do nothing.

#[cfg(feature = "opentelemetry")]
mod context;

#[cfg(feature = "opentelemetry")]
use opentelemetry::global::BoxedSpan;
#[cfg(feature = "opentelemetry")]
use opentelemetry::trace::{Link, Span, SpanKind, Status, Tracer};

#[cfg(feature = "opentelemetry")]
pub use self::context::{
    TRACEPARENT_HEADER, TRACESTATE_HEADER, attributes, remote_context, traceparent, tracer,
};
use crate::Record;
#[cfg(feature = "opentelemetry")]
use crate::wire::TopicNaming;

/// Records that were checked and are about to be stored. With the feature `opentelemetry` each has a span `create {topic}`, which ends
/// when this is dropped, and whose context is in the record's headers.
pub struct Created<T> {
    pub records: T,
    #[cfg(feature = "opentelemetry")]
    spans: Vec<BoxedSpan>,
}

/// Shows no record, because an event's headers and payload may be confidential.
impl<T> std::fmt::Debug for Created<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Created")
    }
}

#[cfg(not(feature = "opentelemetry"))]
impl Created<Record> {
    pub fn one(record: Record) -> Self {
        Self { records: record }
    }
}

#[cfg(not(feature = "opentelemetry"))]
impl Created<Vec<Record>> {
    pub fn all(records: Vec<Record>) -> Self {
        Self { records }
    }
}

#[cfg(not(feature = "opentelemetry"))]
impl<T> Created<T> {
    /// Returns what became of storing them.
    pub fn stored<V, E>(&mut self, outcome: Result<V, E>, _: fn(&E) -> String) -> Result<V, E> {
        outcome
    }
}

#[cfg(feature = "opentelemetry")]
impl Created<Record> {
    pub fn one(record: Record) -> Self {
        let (record, span) = create(&tracer(), record);
        Self { records: record, spans: vec![span] }
    }
}

#[cfg(feature = "opentelemetry")]
impl Created<Vec<Record>> {
    pub fn all(records: Vec<Record>) -> Self {
        let tracer = tracer();
        let (records, spans) = records.into_iter().map(|record| create(&tracer, record)).unzip();
        Self { records, spans }
    }
}

#[cfg(feature = "opentelemetry")]
impl<T> Created<T> {
    /// Notes in the spans what became of storing them, and returns it.
    pub fn stored<V, E>(&mut self, outcome: Result<V, E>, error_type: fn(&E) -> String) -> Result<V, E> {
        outcome.inspect_err(|error| {
            let error_type = error_type(error);
            for span in self.spans.iter_mut().filter(|span| span.is_recording()) {
                span.set_attribute(attributes::error_type(error_type.clone()));
                span.set_status(Status::error("the event was not stored"));
            }
        })
    }
}

/// A longer `tracestate` is left out, because the record may become too large for its topic. The W3C wants this many bytes to be passed on.
#[cfg(feature = "opentelemetry")]
const LONGEST_STATE: usize = 512;

/// Begins the span of a record. Its context goes into the record's headers, unless the record brings one.
#[cfg(feature = "opentelemetry")]
fn create(tracer: &impl Tracer<Span = BoxedSpan>, record: Record) -> (Record, BoxedSpan) {
    let own = |name: &str| record.headers().iter().find(|(other, _)| other == name).map(|(_, value)| value);
    let (traceparent_of_event, tracestate_of_event) = (own(TRACEPARENT_HEADER), own(TRACESTATE_HEADER));
    let topic = TopicNaming::default().topic(record.aggregate_type());
    let topic = topic.unwrap_or_else(|_| record.aggregate_type().to_owned());
    let mut span = tracer
        .span_builder(format!("create {topic}"))
        .with_kind(SpanKind::Producer)
        .with_attributes(attributes::of_operation("create", "create", topic))
        .with_links(
            remote_context(traceparent_of_event.map(String::as_str), tracestate_of_event.map(String::as_str))
                .map(Link::with_context)
                .into_iter()
                .collect(),
        )
        .start(tracer);
    if span.is_recording() {
        span.set_attribute(attributes::message_id(record.id()));
        span.set_attribute(attributes::message_key(record.aggregate_id().to_owned()));
    }
    let context = span.span_context();
    if traceparent_of_event.is_some() || !context.is_valid() {
        return (record, span);
    }
    let state = context.trace_state().header();
    let needs_state = tracestate_of_event.is_none() && !state.is_empty() && state.len() <= LONGEST_STATE;
    let traceparent = traceparent(context);
    let record = record.header(TRACEPARENT_HEADER, traceparent);
    let record = if needs_state { record.header(TRACESTATE_HEADER, state) } else { record };
    (record, span)
}

#[cfg(all(test, feature = "opentelemetry"))]
mod tests {
    use opentelemetry::Context;
    use opentelemetry::trace::TraceContextExt;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0cc902b7-01";

    fn created(record: Record) -> Record {
        Created::one(record).records
    }

    #[test]
    fn without_a_tracer_and_a_trace_a_record_stays_as_it_is() {
        let record = Record::new("order", "7", "Placed").header("tenant", "acme");
        assert_eq!(created(record.clone()), record);
    }

    #[test]
    fn without_a_tracer_the_context_that_a_request_brought_goes_on() {
        let remote = remote_context(Some(PARENT), Some("vendor=1")).unwrap();
        let _active = Context::new().with_remote_span_context(remote).attach();
        let all = Created::all(vec![Record::new("order", "7", "Placed").header("tenant", "acme")]);
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers =
            [header("tenant", "acme"), header("traceparent", PARENT), header("tracestate", "vendor=1")];
        assert_eq!(all.records[0].headers(), headers);
        assert!(all.records[0].check().is_ok());
    }

    #[test]
    fn a_context_that_the_event_brings_is_kept() {
        let remote = remote_context(Some(PARENT), Some("vendor=1")).unwrap();
        let _active = Context::new().with_remote_span_context(remote).attach();
        for name in ["traceparent", "tracestate"] {
            let record = created(Record::new("order", "7", "Placed").header(name, "own=1"));
            assert!(record.check().is_ok(), "no header is there twice");
            assert!(record.headers().contains(&(name.to_owned(), "own=1".to_owned())));
        }
    }
}
