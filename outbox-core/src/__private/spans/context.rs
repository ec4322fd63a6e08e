use opentelemetry::InstrumentationScope;
use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId};

/// The headers of the W3C's Trace Context, by which a trace goes on in whoever reads the record.
pub const TRACEPARENT_HEADER: &str = "traceparent";
pub const TRACESTATE_HEADER: &str = "tracestate";

/// Returns the tracer of the program, which does nothing if none was set.
pub fn tracer() -> BoxedTracer {
    let scope = InstrumentationScope::builder("diesel-outbox").with_version(env!("CARGO_PKG_VERSION"));
    global::tracer_with_scope(scope.build())
}

/// Returns a span's context as the value of the header.
pub fn traceparent(context: &SpanContext) -> String {
    let (trace, span) = (context.trace_id(), context.span_id());
    format!("00-{trace}-{span}-{:02x}", context.trace_flags() & TraceFlags::SAMPLED)
}

/// Returns the span that the headers name, or `None` if they name none. A `tracestate` that cannot be read is left out.
pub fn remote_context(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent?.trim().split('-');
    let mut part = |digits: usize| {
        parts.next().filter(|part| {
            part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    // A later version may have more behind it.
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let state = tracestate.and_then(|state| state.parse().ok()).unwrap_or_default();
    let context =
        SpanContext::new(TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags, true, state);
    context.is_valid().then_some(context)
}

/// The attributes of OpenTelemetry's conventions for messaging.
pub mod attributes {
    use opentelemetry::KeyValue;
    use uuid::Uuid;

    pub fn of_operation(name: &'static str, operation_type: &'static str, topic: String) -> [KeyValue; 4] {
        [
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.name", name),
            KeyValue::new("messaging.operation.type", operation_type),
            KeyValue::new("messaging.destination.name", topic),
        ]
    }

    pub fn message_id(id: Uuid) -> KeyValue {
        KeyValue::new("messaging.message.id", id.to_string())
    }

    pub fn message_key(key: String) -> KeyValue {
        KeyValue::new("messaging.kafka.message.key", key)
    }

    pub fn error_type(error: impl Into<opentelemetry::Value>) -> KeyValue {
        KeyValue::new("error.type", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0cc902b7-01";

    #[test]
    fn a_context_is_written_as_it_is_read() {
        let context = remote_context(Some(PARENT), Some("a=1,b=2")).unwrap();
        assert!(context.is_remote() && context.is_sampled());
        assert_eq!(
            (traceparent(&context), context.trace_state().header()),
            (PARENT.to_owned(), "a=1,b=2".to_owned())
        );
        let unsampled = PARENT.replace("-01", "-00");
        assert_eq!(traceparent(&remote_context(Some(&unsampled), None).unwrap()), unsampled);
    }

    #[test]
    fn what_is_no_context_is_none() {
        let zero_trace = PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_span = PARENT.replace("00f067aa0cc902b7", &"0".repeat(16));
        let more = format!("{PARENT}-00");
        let (unknown, upper) = (PARENT.replacen("00-", "ff-", 1), PARENT.to_uppercase());
        for bad in ["", "00", "ü", &PARENT[1..], &zero_trace, &zero_span, &more, &unknown, &upper] {
            assert!(remote_context(Some(bad), None).is_none(), "{bad}");
        }
        assert!(remote_context(None, Some("a=1")).is_none());
        // A version to come
        assert!(remote_context(Some(&PARENT.replacen("00-", "cc-", 1)), None).is_some());
        assert!(remote_context(Some(&more.replacen("00-", "cc-", 1)), None).is_some());
        // Only the state is lost.
        assert!(remote_context(Some(PARENT), Some("no state")).is_some());
    }
}
