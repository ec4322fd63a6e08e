//! OpenTelemetry's collector, which receives spans by OTLP and writes them to a file.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Once, OnceLock};
use std::thread;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use serde_json::Value;

use crate::artifacts;
use crate::host::{Host, Local, free_port, wait_until_ready};
use crate::process::Signal;
use crate::scratch::Folder;
use crate::wait::eventually;

/// A running collector. It is always a local program, which is built with Go.
pub struct Collector {
    // The server ends with it.
    _host: Local,
    endpoint: String,
    file: PathBuf,
}

/// A span that was received.
#[derive(Debug, Clone)]
pub struct ReceivedSpan {
    /// The service that sent it.
    pub service: String,
    span: Value,
}

impl Collector {
    /// Returns the collector of this test process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Collector> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let folder = Folder::new("collector");
        let (port, file) = (free_port(), folder.path().join("spans.json"));
        let settings = folder.path().join("collector.yaml");
        let text = format!(
            "receivers:\n  otlp:\n    protocols:\n      http:\n        endpoint: 127.0.0.1:{port}\n\
             exporters:\n  file:\n    path: {}\n    flush_interval: 50ms\n\
             service:\n  telemetry:\n    metrics:\n      level: none\n  pipelines:\n    traces:\n      receivers: [otlp]\n\
             \x20     exporters: [file]\n",
            file.display()
        );
        fs::write(&settings, text).expect("write the settings of the collector");
        let mut command = Command::new(artifacts::collector());
        command.arg("--config").arg(format!("file:{}", settings.display()));
        let host = Local::new(command, folder, Signal::Terminate, Signal::Kill);
        host.start();
        wait_until_ready(&host, "the collector", || {
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
        });
        Self { _host: host, endpoint: format!("http://127.0.0.1:{port}"), file }
    }

    /// Returns its address, as the variable `OTEL_EXPORTER_OTLP_ENDPOINT` wants it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Lets this process send its spans to it, as this service.
    pub fn receive_from_this_process(&self, service: &'static str) {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let endpoint = format!("{}/v1/traces", self.endpoint);
            // The exporter's client refuses to be made in a runtime.
            let exporter =
                thread::spawn(|| SpanExporter::builder().with_http().with_endpoint(endpoint).build());
            let exporter = exporter.join().expect("the thread").expect("an exporter");
            let often = BatchConfigBuilder::default().with_scheduled_delay(Duration::from_millis(50)).build();
            let processor = BatchSpanProcessor::builder(exporter).with_batch_config(often).build();
            let resource = Resource::builder().with_service_name(service).build();
            let provider =
                SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
            global::set_tracer_provider(provider);
        });
    }

    /// Returns all spans that it has received.
    pub fn spans(&self) -> Vec<ReceivedSpan> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        // The last line may be written at this moment.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let batches = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("OTLP as JSON"));
        batches.flat_map(|batch| spans_of(&batch)).collect()
    }

    /// Waits until it has received spans of which `choose` makes something, and returns that.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, choose: impl Fn(&[ReceivedSpan]) -> Option<T>) -> T {
        eventually(what, Duration::from_secs(60), || choose(&self.spans()))
    }
}

fn spans_of(batch: &Value) -> Vec<ReceivedSpan> {
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let mut spans = Vec::new();
    for resource in list(batch, "resourceSpans") {
        let service = attribute(&resource["resource"], "service.name").unwrap_or_default();
        for scope in list(&resource, "scopeSpans") {
            let of_scope = list(&scope, "spans").into_iter();
            spans.extend(of_scope.map(|span| ReceivedSpan { service: service.clone(), span }));
        }
    }
    spans
}

/// Returns the value of an attribute as text.
fn attribute(of: &Value, key: &str) -> Option<String> {
    let attributes = of["attributes"].as_array()?;
    let value = &attributes.iter().find(|attribute| attribute["key"] == key)?["value"];
    let (_, value) = value.as_object()?.iter().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

impl ReceivedSpan {
    fn text(&self, name: &str) -> &str {
        self.span[name].as_str().unwrap_or_default()
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// Returns the id of its trace.
    pub fn trace(&self) -> &str {
        self.text("traceId")
    }

    /// Returns its id.
    pub fn id(&self) -> &str {
        self.text("spanId")
    }

    /// Returns the id of its parent, which is empty if it has none.
    pub fn parent(&self) -> &str {
        self.text("parentSpanId")
    }

    /// Returns its kind.
    pub fn kind(&self) -> &'static str {
        match self.span["kind"].as_i64() {
            Some(1) => "INTERNAL",
            Some(2) => "SERVER",
            Some(3) => "CLIENT",
            Some(4) => "PRODUCER",
            Some(5) => "CONSUMER",
            _ => "UNSPECIFIED",
        }
    }

    /// Returns whether it failed.
    pub fn is_error(&self) -> bool {
        self.span["status"]["code"].as_i64() == Some(2)
    }

    /// Returns an attribute as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        attribute(&self.span, key)
    }

    /// Returns all that it says, as JSON.
    pub fn json(&self) -> String {
        self.span.to_string()
    }

    /// Returns the ids of the spans to which it is linked.
    pub fn links(&self) -> Vec<&str> {
        let links = self.span["links"].as_array().map_or(&[][..], Vec::as_slice);
        links.iter().filter_map(|link| link["spanId"].as_str()).collect()
    }
}
