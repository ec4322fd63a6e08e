//! The span `process {topic}` of OpenTelemetry, which is active while a handler works. Without the feature `opentelemetry` this does
//! nothing.

use super::Received;

/// The span of a record that a handler works on, until it is dropped.
pub(super) struct Processing {
    #[cfg(feature = "opentelemetry")]
    context: opentelemetry::Context,
    #[cfg(feature = "opentelemetry")]
    _active: opentelemetry::ContextGuard,
}

#[cfg(not(feature = "opentelemetry"))]
impl Processing {
    #[inline]
    pub(super) fn begin(_: &str, _: &Received) -> Self {
        Self {}
    }

    #[inline]
    pub(super) fn failed(&self, _: &'static str) {}
}

#[cfg(feature = "opentelemetry")]
mod traced {
    use diesel_outbox_core::__private::spans::{
        TRACEPARENT_HEADER, TRACESTATE_HEADER, attributes, remote_context, tracer,
    };
    use opentelemetry::trace::{Link, Span, SpanKind, Status, TraceContextExt, Tracer};
    use opentelemetry::{Context, KeyValue};

    use super::{Processing, Received};

    impl Processing {
        /// Begins the span of a record, as a child of the one in which it was created, to which it is linked too.
        pub(in crate::consumer) fn begin(group: &str, received: &Received) -> Self {
            let created =
                remote_context(received.header(TRACEPARENT_HEADER), received.header(TRACESTATE_HEADER));
            let parent = match &created {
                Some(created) => Context::new().with_remote_span_context(created.clone()),
                None => Context::new(),
            };
            let topic = received.topic().to_owned();
            let tracer = tracer();
            let mut span = tracer
                .span_builder(format!("process {topic}"))
                .with_kind(SpanKind::Consumer)
                .with_attributes(attributes::of_operation("process", "process", topic))
                .with_links(created.map(Link::with_context).into_iter().collect())
                .start_with_context(&tracer, &parent);
            if span.is_recording() {
                span.set_attributes([
                    attributes::message_id(received.id()),
                    KeyValue::new("messaging.consumer.group.name", group.to_owned()),
                    KeyValue::new("messaging.destination.partition.id", received.partition().to_string()),
                    KeyValue::new("messaging.kafka.offset", received.offset()),
                ]);
                if let Some(key) = received.key().and_then(|key| str::from_utf8(key).ok()) {
                    span.set_attribute(attributes::message_key(key.to_owned()));
                }
                if received.payload().is_none() {
                    span.set_attribute(KeyValue::new("messaging.kafka.message.tombstone", true));
                }
            }
            let context = parent.with_span(span);
            Self { _active: context.clone().attach(), context }
        }

        /// Notes that the record is not done with, and why.
        pub(in crate::consumer) fn failed(&self, error_type: &'static str) {
            self.context.span().set_attribute(attributes::error_type(error_type));
            self.context.span().set_status(Status::error("the record was not handled"));
        }
    }
}
