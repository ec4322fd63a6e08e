//! The spans `send {topic}` of OpenTelemetry: one for each batch and topic, with links to the spans in which the records were created.
//! Without the feature `opentelemetry` this does nothing. If no tracer is set, it asks for one at the first record of each batch, and does
//! nothing for the others.

use diesel_outbox_core::{Outcome, Record, Refusal};

#[cfg(feature = "opentelemetry")]
pub(super) use self::traced::Spans;

/// Nothing.
#[cfg(not(feature = "opentelemetry"))]
#[derive(Default)]
pub(super) struct Spans;

#[cfg(not(feature = "opentelemetry"))]
impl Spans {
    #[inline]
    pub(super) fn next_batch(&mut self) {}

    #[inline]
    pub(super) fn handed_over(&mut self, _: u64, _: &str, _: &Record, _: &Result<(), Refusal>) {}

    #[inline]
    pub(super) fn acknowledged(&mut self, _: u64, _: &Outcome) {}
}

#[cfg(feature = "opentelemetry")]
mod traced {
    use std::collections::HashMap;
    use std::time::SystemTime;

    use diesel_outbox_core::__private::spans::{
        TRACEPARENT_HEADER, TRACESTATE_HEADER, attributes, remote_context, tracer,
    };
    use opentelemetry::global::{BoxedSpan, BoxedTracer};
    use opentelemetry::trace::{Span, SpanContext, SpanKind, Status, Tracer};
    use opentelemetry::{Context, KeyValue};

    use super::{Outcome, Record, Refusal};

    /// How many links a span gets at most. It is the default limit of OpenTelemetry's SDKs, which drop those beyond it.
    const MOST_LINKS: usize = 128;

    /// The spans of a pass that have not ended.
    #[derive(Default)]
    pub(crate) struct Spans {
        tracer: Option<BoxedTracer>,
        /// Set for the rest of a batch if the tracer does nothing.
        is_off: bool,
        /// The spans of the batch that is being handed over, by topic. `None` for one that is not recorded.
        open: HashMap<String, Option<usize>>,
        spans: HashMap<usize, SendSpan>,
        begun: usize,
        /// Which span a record that is in flight belongs to.
        of_ticket: HashMap<u64, usize>,
    }

    struct SendSpan {
        span: BoxedSpan,
        /// Whether more records of its batch may come.
        is_open: bool,
        records: i64,
        in_flight: usize,
        links: usize,
        last: SystemTime,
        failed: bool,
    }

    impl Spans {
        /// Notes that what is handed over from now on belongs to another batch.
        pub(crate) fn next_batch(&mut self) {
            self.is_off = false;
            self.tracer = None;
            for index in self.open.drain().filter_map(|(_, index)| index) {
                if let Some(send) = self.spans.get_mut(&index) {
                    send.is_open = false;
                }
                end_if_done(&mut self.spans, index);
            }
        }

        /// Adds a record to the span of its topic, if the publisher has taken it, or never will.
        pub(crate) fn handed_over(
            &mut self,
            ticket: u64,
            topic: &str,
            record: &Record,
            taken: &Result<(), Refusal>,
        ) {
            if self.is_off || !matches!(taken, Ok(()) | Err(Refusal::Rejected { .. })) {
                return;
            }
            let index = match self.open.get(topic) {
                Some(index) => *index,
                None => self.begin(topic),
            };
            let Some((index, send)) = index.and_then(|index| Some((index, self.spans.get_mut(&index)?)))
            else {
                return;
            };
            send.records += 1;
            if send.links < MOST_LINKS
                && let Some(context) = context_of(record)
            {
                send.links += 1;
                send.span.add_link(context, vec![attributes::message_id(record.id())]);
            }
            if taken.is_ok() {
                send.in_flight += 1;
                self.of_ticket.insert(ticket, index);
            } else {
                send.fail("rejected");
            }
        }

        /// Notes what became of a record.
        pub(crate) fn acknowledged(&mut self, ticket: u64, outcome: &Outcome) {
            let Some(index) = self.of_ticket.remove(&ticket) else { return };
            let Some(send) = self.spans.get_mut(&index) else { return };
            send.in_flight -= 1;
            send.last = SystemTime::now();
            match outcome {
                Outcome::Durable => {}
                Outcome::Rejected { .. } => send.fail("rejected"),
                _ => send.fail("not_acknowledged"),
            }
            end_if_done(&mut self.spans, index);
        }

        /// Begins the span of a topic, unless nobody would see it.
        fn begin(&mut self, topic: &str) -> Option<usize> {
            let tracer = self.tracer.get_or_insert_with(tracer);
            let span = tracer
                .span_builder(format!("send {topic}"))
                .with_kind(SpanKind::Client)
                .with_attributes(attributes::of_operation("send", "send", topic.to_owned()))
                // The records of a batch have many parents, so it has none.
                .start_with_context(tracer, &Context::new());
            if !span.span_context().is_valid() {
                self.is_off = true;
                return None;
            }
            let index = span.is_recording().then_some(self.begun);
            if let Some(index) = index {
                self.begun += 1;
                let last = SystemTime::now();
                let send =
                    SendSpan { span, is_open: true, records: 0, in_flight: 0, links: 0, last, failed: false };
                self.spans.insert(index, send);
            }
            self.open.insert(topic.to_owned(), index);
            index
        }
    }

    /// The pass ends. Nobody knows whether the broker has what is in flight.
    impl Drop for Spans {
        fn drop(&mut self) {
            for (_, mut send) in self.spans.drain() {
                if send.in_flight > 0 {
                    send.last = SystemTime::now();
                    send.fail("not_acknowledged");
                }
                send.end();
            }
        }
    }

    impl SendSpan {
        fn fail(&mut self, error_type: &'static str) {
            // The first failure is the cause of others.
            if !std::mem::replace(&mut self.failed, true) {
                self.span.set_attribute(attributes::error_type(error_type));
                self.span.set_status(Status::error("not all records of the batch were sent"));
            }
        }

        fn end(mut self) {
            self.span.set_attribute(KeyValue::new("messaging.batch.message_count", self.records));
            self.span.end_with_timestamp(self.last);
        }
    }

    fn end_if_done(spans: &mut HashMap<usize, SendSpan>, index: usize) {
        if spans.get(&index).is_some_and(|send| send.in_flight == 0 && !send.is_open)
            && let Some(send) = spans.remove(&index)
        {
            send.end();
        }
    }

    fn context_of(record: &Record) -> Option<SpanContext> {
        let header = |name: &str| {
            let found = record.headers().iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.as_str())
        };
        remote_context(header(TRACEPARENT_HEADER), header(TRACESTATE_HEADER))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn without_a_tracer_nothing_is_kept_for_a_record() {
            let mut spans = Spans::default();
            let record = Record::new("order", "7", "Placed");
            for batch in 0..3 {
                spans.next_batch();
                for ticket in 0..10 {
                    spans.handed_over(10 * batch + ticket, "outbox.event.order", &record, &Ok(()));
                    assert!(spans.is_off);
                }
                assert!(spans.open.is_empty() && spans.spans.is_empty() && spans.of_ticket.is_empty());
            }
        }
    }
}
