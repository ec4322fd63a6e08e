//! What the relay tells of itself: metrics through the `metrics` facade, and log lines through `tracing`.

use std::time::Duration;

use diesel_outbox_core::Lag;
use metrics::{counter, gauge, histogram};
use tracing::{error, info, warn};

pub(crate) fn published(count: usize) {
    counter!("outbox_published_total").increment(count as u64);
}

pub(crate) fn dead_lettered(topic: &str, aggregate_type: &str, id: &str, reason: &str) {
    counter!("outbox_dead_letters_total").increment(1);
    warn!(id, aggregate_type, topic, reason, "a record became a dead letter");
}

pub(crate) fn passed(count: usize, took: Duration) {
    histogram!("outbox_pass_seconds").record(took.as_secs_f64());
    histogram!("outbox_pass_records").record(count as f64);
}

pub(crate) fn lag(lag: Lag) {
    gauge!("outbox_unsent").set(lag.unsent as f64);
    gauge!("outbox_oldest_unsent_seconds").set(lag.oldest.as_secs_f64());
    gauge!("outbox_oldest_writer_seconds").set(lag.oldest_writer.as_secs_f64());
    let oldest = lag.oldest.as_secs_f64();
    let Some(log) = lag.log else {
        return info!(unsent = lag.unsent, oldest_seconds = oldest, "outbox lag");
    };
    gauge!("outbox_log_lag_bytes").set(log.bytes as f64);
    if let Some(time) = log.time {
        gauge!("outbox_log_lag_seconds").set(time.as_secs_f64());
    }
    gauge!("outbox_slot_retained_bytes").set(log.retained_bytes as f64);
    for status in ["reserved", "extended", "unreserved", "lost"] {
        gauge!("outbox_slot_status", "status" => status).set(f64::from(u8::from(status == log.status)));
    }
    info!(
        unsent = lag.unsent,
        oldest_seconds = oldest,
        log_bytes = log.bytes,
        log_seconds = log.time.map(|time| time.as_secs_f64()),
        retained_bytes = log.retained_bytes,
        slot_status = log.status,
        "outbox lag"
    );
}

pub(crate) fn stopped(published: usize) {
    info!(published, "a relay worker stopped");
}

pub(crate) fn failed(failure: &'static str, error: &dyn std::error::Error, retry_in: Duration) {
    counter!("outbox_failures_total", "in" => failure).increment(1);
    warn!(error = %error, retry_in_ms = retry_in.as_millis() as u64, "the {failure} failed; trying again");
}

pub(crate) fn gave_up(error: &dyn std::error::Error) {
    error!(error = %error, "the relay cannot go on and has stopped");
}

pub(crate) fn recovered(failure: &'static str) {
    info!("the {failure} works again");
}
