//! `outbox relay`

mod build;
mod signals;

use diesel_outbox_relay::RelayError;
use tracing::info;

use self::signals::StopSignals;
use super::database::OutboxDatabase;
use super::failure::{Failure, in_one_line};
use super::layers::property_key;
use super::origin::Origins;
use super::settings::RelaySettings;

/// Runs the relay until a signal stops it.
pub(crate) fn run(settings: &RelaySettings, origins: &Origins) -> Result<(), Failure> {
    let database = OutboxDatabase::chosen(&settings.common.database, origins)?;
    let relay = build::relay(settings, origins, &database)?;
    let brokers = settings.kafka.cluster.list()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Signals)?;
    let ended = runtime.block_on(async {
        let mut signals = StopSignals::new().map_err(Failure::Signals)?;
        // The relay polls this for the first time after it has checked its settings.
        let shutdown = async {
            info!(
                version = env!("CARGO_PKG_VERSION"),
                %database,
                brokers,
                topics = settings.kafka.topics.topic.text,
                workers = settings.work.workers,
                "the relay has started",
            );
            let signal = signals.next().await;
            info!(signal = signal.name, "the relay is stopping; a second signal ends it at once");
            tokio::spawn(async move { std::process::exit(signals.next().await.exit_code) });
        };
        relay.run(shutdown).await.map_err(|error| failure(settings, origins, error))
    });
    if ended.is_ok() {
        info!("the relay has stopped");
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
    match settings.kafka.properties.iter().find(|property| text.contains(&format!("`{}`", property.name))) {
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
