//! What a relay serves by HTTP: its status page, its metrics for Prometheus, and whether it lives and is ready.

mod connections;
mod status;

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use diesel_outbox_relay::{Health, RelayHandle};
use diesel_outbox_status::StatusPage;
use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use tokio::net::TcpListener;
use tracing::{error, info};

use self::connections::Connections;
use crate::command::database::OutboxDatabase;
use crate::command::failure::Failure;
use crate::command::origin::Origins;
use crate::command::settings::RelaySettings;

/// The recorder keeps all that a histogram is given until somebody reads the metrics, or this is over.
const DRAIN_INTERVAL: Duration = Duration::from_secs(5);

/// A gauge that nobody has set for so long is not shown any more. The relay that leads measures the lag, and one that has led before must
/// not show for ever what it measured last. To count millions of events may take minutes.
const FORGET_GAUGES_AFTER: Duration = Duration::from_secs(5 * 60);

/// Those in milliseconds by which the relay counts latencies, in seconds.
const SECONDS: [f64; 17] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3_600.0];
const RECORDS: [f64; 7] = [0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0];

/// A server that has its address, and a recorder of metrics.
pub(super) struct Probes {
    listener: TcpListener,
    metrics: PrometheusHandle,
    page: Option<StatusPage>,
}

impl Probes {
    /// Takes the address and installs the recorder, if the settings name an address.
    pub(super) async fn new(settings: &RelaySettings, origins: &Origins) -> Result<Option<Self>, Failure> {
        let Some(address) = &settings.probes.listen else { return Ok(None) };
        let listener = TcpListener::bind(address).await.map_err(|source| Failure::Listen {
            setting: origins.of("listen").to_string(),
            address: address.clone(),
            source,
        })?;
        let page = status::page(&settings.probes, origins, &listener)?;
        let buckets = |builder: PrometheusBuilder, name: &str, buckets: &[f64]| {
            builder.set_buckets_for_metric(Matcher::Suffix(name.to_owned()), buckets)
        };
        let forget_after = FORGET_GAUGES_AFTER.max(settings.work.lag_interval.0 * 3);
        let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(forget_after));
        let recorder = buckets(builder, "_seconds", &SECONDS)
            .and_then(|builder| buckets(builder, "_records", &RECORDS))
            .map(|builder| builder.build_recorder());
        let recorder = recorder.map_err(|error| Failure::Metrics(error.to_string()))?;
        let metrics = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| Failure::Metrics(error.to_string()))?;
        describe_gauge!("outbox_build_info", "1, with the version of the relay as a label");
        say_version();
        Ok(Some(Self { listener, metrics, page }))
    }

    /// Serves from now on, until the process ends: a relay that stops is asked too.
    pub(super) fn serve(self, databases: &[OutboxDatabase], relays: &[RelayHandle], patience: Duration) {
        let address = self.listener.local_addr().map_or_else(|error| error.to_string(), |at| at.to_string());
        info!(address, status_page = self.page.is_some(), "serving /metrics, /healthz and /readyz");
        let names = databases.iter().map(ToString::to_string);
        let healths = names.zip(relays.iter().map(RelayHandle::health)).collect();
        let mut router = router(self.metrics.clone(), Readiness { relays: healths, patience });
        if let Some(page) = self.page {
            router = router.merge(status::of(page, databases, relays).router());
        }
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(DRAIN_INTERVAL).await;
                say_version();
                self.metrics.run_upkeep();
            }
        });
        tokio::spawn(async move {
            if let Err(error) = axum::serve(Connections::new(self.listener), router).await {
                error!(%error, "metrics and probes are not served any more");
            }
        });
    }
}

fn say_version() {
    gauge!("outbox_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Whether all relays of the process make progress.
#[derive(Debug, Clone)]
struct Readiness {
    /// Each with the name of its database.
    relays: Vec<(String, Health)>,
    patience: Duration,
}

impl Readiness {
    fn answer(&self) -> (StatusCode, String) {
        let problems = self.relays.iter().filter_map(|(database, health)| {
            let problem = health.problem(self.patience)?;
            Some(format!("not ready: {database}: {problem}\n"))
        });
        let problems: String = problems.collect();
        if problems.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, problems)
        }
    }
}

fn router(metrics: PrometheusHandle, readiness: Readiness) -> Router {
    let rendered = move || async move {
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
    };
    Router::new()
        .route("/metrics", get(rendered))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(move || async move { readiness.answer() }))
}
