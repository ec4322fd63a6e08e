use rdkafka::config::RDKafkaLogLevel as Level;
use tracing::{debug, error, info, warn};

/// Passes on what librdkafka logs, at its level.
pub(crate) fn log(level: Level, facility: &str, message: &str) {
    match level {
        // Among these is that the producer of dead letters has no use for the settings of consumers, and that the gapless
        // guarantee is experimental: the tests are what it is trusted for.
        _ if facility == "CONFWARN" => debug!(facility, "{message}"),
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => error!(facility, "{message}"),
        Level::Warning => warn!(facility, "{message}"),
        Level::Notice | Level::Info => info!(facility, "{message}"),
        Level::Debug => debug!(facility, "{message}"),
    }
}
