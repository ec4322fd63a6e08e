//! What librdkafka reports, on its way to the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, error, info, warn};

/// Logs what librdkafka logs, at its level unless that misleads.
pub(crate) fn log(level: Level, facility: &str, message: &str) {
    match level {
        // Among these is that the producer of dead letters has no use for the settings of consumers, and that the gapless
        // guarantee is experimental: our tests are why it is trusted.
        _ if facility == "CONFWARN" => debug!(facility, "{message}"),
        // A connection failed, and librdkafka tries again.
        Level::Error if facility == "FAIL" => warn!(facility, "{message}"),
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => error!(facility, "{message}"),
        Level::Warning => warn!(facility, "{message}"),
        Level::Notice | Level::Info => info!(facility, "{message}"),
        Level::Debug => debug!(facility, "{message}"),
    }
}

/// Logs errors that librdkafka repeats many times a second while Kafka is away, each kind once in a while.
#[derive(Default)]
pub(crate) struct Errors {
    reported: Mutex<BTreeMap<String, Instant>>,
}

/// What librdkafka's reason leaves out.
fn advice(error: &KafkaError, reason: &str) -> &'static str {
    if reason.contains("certificate verify failed") {
        ": the broker is refused. Either ssl.ca.location does not name the authority of its certificate, or the certificate is for another \
         host, or it has expired"
    } else if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
        ": if they are up, do they ask for TLS or a login (security.protocol)?"
    } else {
        ""
    }
}

const REPORT_INTERVAL: Duration = Duration::from_secs(10);

impl Errors {
    pub(crate) fn report(&self, error: &KafkaError, reason: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.retain(|_, at| at.elapsed() < REPORT_INTERVAL);
        if reported.insert(error.to_string(), Instant::now()).is_none() {
            warn!(%error, reason, "Kafka reports an error{}", advice(error, reason));
        }
    }
}
