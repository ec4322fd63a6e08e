//! `outbox relay`

mod build;
mod signals;

use diesel_outbox_relay::RelayError;
use tracing::info;

use self::signals::Signals;
use super::config::Config;
use super::database::Database;
use super::failure::{Failure, in_one_line};

/// Runs the relay until a signal stops it.
pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    let database = Database::chosen(config)?;
    let relay = build::relay(config, &database)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Signals)?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new().map_err(Failure::Signals)?;
        // Polled for the first time when the settings have been found good.
        let shutdown = async {
            info!(
                version = env!("CARGO_PKG_VERSION"),
                %database,
                brokers = config.list("brokers").join(","),
                topics = config.shown("topic"),
                workers = config.shown("workers"),
                "the relay has started",
            );
            let signal = signals.next().await;
            info!(signal = signal.name, "the relay stops; a second signal ends it at once");
            tokio::spawn(async move { std::process::exit(signals.next().await.exit_code) });
        };
        relay.run(shutdown).await.map_err(|error| failure(config, error))
    });
    if ended.is_ok() {
        info!("the relay stopped");
    }
    ended
}

/// Says where a setting was given that the relay refuses.
fn failure(config: &Config, error: RelayError) -> Failure {
    match error {
        RelayError::Setting { setting, ref value, range } => match config.get(setting) {
            Some(given) => given.origin.wrong(format!("`{value}` is wrong: it must be {range}")).into(),
            None => error.into(),
        },
        RelayError::Broker(error) => broker_failure(config, &in_one_line(&error)),
        error => error.into(),
    }
}

/// Says where the property was given that the text is about.
fn broker_failure(config: &Config, text: &str) -> Failure {
    match config.properties().find(|(name, _)| text.contains(&format!("`{name}`"))) {
        Some((_, value)) => value.origin.wrong(text).into(),
        None => Failure::Broker(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::args;

    #[test]
    fn a_property_that_is_refused_is_told_with_its_place() {
        let arguments = ["outbox", "relay", "--kafka", "ssl.key.pen=s3cret", "--kafka", "a=b"];
        let flags = args::parse(arguments).expect("good arguments").flags;
        let config = Config::load(&flags, std::iter::empty()).expect("good settings");
        let told = |text: &str| broker_failure(&config, text).to_string();
        let text = "the Kafka property `ssl.key.pen` is refused: no such property";
        assert_eq!(told(text), format!("--kafka ssl.key.pen: {text}"));
        assert_eq!(told("TLS is not built in"), "TLS is not built in");
    }
}
