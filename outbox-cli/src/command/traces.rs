//! The relay's spans, sent by OTLP. The variables of OpenTelemetry's specification say where to.

use std::env;

use opentelemetry::global;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::failure::Failure;

const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const RESOURCE: &str = "OTEL_RESOURCE_ATTRIBUTES";

const PLACES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// What sends spans. It sends the last ones when it is dropped.
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins to send spans, if a variable says where to, and none that nothing is to be sent.
    pub(super) fn start() -> Result<Option<Self>, Failure> {
        if !is_wanted(|name| env::var(name).ok()) {
            return Ok(None);
        }
        if let Some(name) = PLACES.into_iter().find(|name| is_https(env::var(name).ok().as_deref())) {
            let problem = format!(
                "{name} is an https:// URL: name a collector near the relay with http://, which sends them on"
            );
            return Err(Failure::Traces(problem));
        }
        let exporter = SpanExporter::builder().with_http().build();
        let exporter = exporter.map_err(|error| Failure::Traces(error.to_string()))?;
        let is_named = env::var(SERVICE_NAME).is_ok_and(|name| !name.is_empty())
            || env::var(RESOURCE).is_ok_and(|attributes| attributes.contains("service.name="));
        let resource = Resource::builder();
        let resource = if is_named { resource } else { resource.with_service_name("outbox-relay") };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Some(Self(provider)))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, value: &str| variable(name).is_some_and(|of| of.eq_ignore_ascii_case(value));
    let names_a_place = |name: &str| variable(name).is_some_and(|place| !place.is_empty());
    !is("OTEL_SDK_DISABLED", "true")
        && !is("OTEL_TRACES_EXPORTER", "none")
        && (is("OTEL_TRACES_EXPORTER", "otlp") || PLACES.into_iter().any(names_a_place))
}

fn is_https(place: Option<&str>) -> bool {
    place.is_some_and(|place| place.trim().to_ascii_lowercase().starts_with("https://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_sent_only_if_a_variable_says_where_to() {
        let wanted = |variables: &[(&str, &str)]| {
            is_wanted(|name| {
                variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let place = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert!(wanted(&[place]));
        assert!(wanted(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")]));
        assert!(wanted(&[("OTEL_TRACES_EXPORTER", "otlp")]));
        assert!(!wanted(&[]) && !wanted(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(!wanted(&[place, ("OTEL_TRACES_EXPORTER", "none")]));
        assert!(!wanted(&[place, ("OTEL_SDK_DISABLED", "true")]));
        assert!(is_https(Some("HTTPS://collector")) && !is_https(Some(place.1)) && !is_https(None));
    }
}
