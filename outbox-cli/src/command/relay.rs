//! `outbox relay`

mod build;
mod probes;

use std::time::Duration;

use diesel_outbox_relay::{Relay, RelayError, RelayHandle};
use tracing::info;

pub(super) use self::build::topics;
use self::probes::Probes;
use super::database::OutboxDatabase;
use super::failure::{Failure, in_one_line};
use super::layers::property_key;
use super::origin::Origins;
use super::settings::{ReadFrom, RelaySettings};
use super::signals::{StopSignal, StopSignals};

/// Runs the relay until a signal stops it.
pub(crate) fn run(settings: &RelaySettings, origins: &Origins) -> Result<(), Failure> {
    let databases = OutboxDatabase::chosen(&settings.common.database, origins)?;
    if settings.source.source == ReadFrom::Wal && databases.len() > 1 {
        return Err(origins
            .of("source")
            .wrong(
                "the WAL is read for one database at a time, because its slot has a name that no other has: start a process for each \
                 database, or poll the tables",
            )
            .into());
    }
    let relays: Vec<Relay> = databases
        .iter()
        .map(|database| build::relay(settings, origins, database, databases.len() > 1))
        .collect::<Result<_, _>>()?;
    let brokers = settings.kafka.connection.cluster.list()?;
    // Outside the runtime, in which its client would refuse to work
    #[cfg(feature = "opentelemetry")]
    let _traces = super::traces::Traces::start()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Signals)?;
    let ended = runtime.block_on(async {
        let mut signals = StopSignals::new().map_err(Failure::Signals)?;
        // The relay's metrics must find their recorder.
        let probes = Probes::new(settings, origins).await?;
        let relays: Vec<RelayHandle> = relays
            .into_iter()
            .map(|relay| relay.spawn().map_err(|error| failure(settings, origins, error)))
            .collect::<Result<_, _>>()?;
        info!(
            version = env!("CARGO_PKG_VERSION"),
            database = shown(&databases),
            brokers,
            topics = settings.kafka.topics.topic.text,
            workers = build::workers(settings, origins, &databases),
            "the relay has started",
        );
        if let Some(probes) = probes {
            probes.serve(&databases, &relays, settings.probes.ready_timeout.0);
        }
        if let Some(signal) = signal_or_end(&mut signals, &relays).await {
            info!(signal = signal.name, "the relay is stopping; a second signal ends it at once");
            tokio::spawn(async move { std::process::exit(signals.next().await.exit_code) });
        }
        stop(relays).await.map_err(|error| failure(settings, origins, error))
    });
    // The status page may be waiting for a database that does not answer.
    runtime.shutdown_background();
    if ended.is_ok() {
        info!("the relay has stopped");
    }
    ended
}

fn shown(databases: &[OutboxDatabase]) -> String {
    databases.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// How often to look whether a relay has ended by itself.
const SLICE: Duration = Duration::from_millis(200);

/// Waits for a signal, or until all relays have ended by themselves. If one cannot go on, it has logged why, and the others go on.
async fn signal_or_end(signals: &mut StopSignals, relays: &[RelayHandle]) -> Option<StopSignal> {
    while !relays.iter().all(RelayHandle::is_finished) {
        if let Ok(signal) = tokio::time::timeout(SLICE, signals.next()).await {
            return Some(signal);
        }
    }
    None
}

/// Stops all of them at the same time, and returns why one of them failed.
async fn stop(relays: Vec<RelayHandle>) -> Result<(), RelayError> {
    let stopping: Vec<_> = relays.into_iter().map(|relay| tokio::spawn(relay.stop())).collect();
    let mut ended = Ok(());
    for relay in stopping {
        let one = relay.await.unwrap_or_else(|panic| Err(RelayError::Panicked(panic.to_string())));
        ended = ended.and(one);
    }
    ended
}

/// Names the place of a setting that the relay refuses.
fn failure(settings: &RelaySettings, origins: &Origins, error: RelayError) -> Failure {
    match error {
        RelayError::Setting { setting, ref value, range } => match origins.given(setting) {
            Some(origin) => origin.wrong(format!("`{value}` is wrong: it must be {range}")).into(),
            None => error.into(),
        },
        RelayError::Broker(error) => broker_failure(settings, origins, &in_one_line(&error)),
        error => error.into(),
    }
}

/// Names the place of the property that the text is about.
fn broker_failure(settings: &RelaySettings, origins: &Origins, text: &str) -> Failure {
    match settings
        .kafka
        .connection
        .properties
        .iter()
        .find(|property| text.contains(&format!("`{}`", property.name)))
    {
        Some(property) => origins.of(&property_key(&property.name)).wrong(text).into(),
        None => Failure::Broker(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::invocation::given;

    #[test]
    fn the_error_of_a_property_that_is_refused_says_where_it_was_given() {
        let (settings, origins) = given(&["--kafka", "ssl.key.pen=s3cret", "--kafka", "a=b"], &[]);
        let failure = |text: &str| broker_failure(&settings, &origins, text).to_string();
        let text = "the Kafka property `ssl.key.pen` is refused: no such property";
        assert_eq!(failure(text), format!("--kafka ssl.key.pen: {text}"));
        assert_eq!(failure("TLS is not built in"), "TLS is not built in");
    }
}
