//! What the relay reports about itself: metrics through the `metrics` facade, and log lines through `tracing`.

use std::cell::RefCell;
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use diesel_outbox_core::Lag;
use metrics::{
    SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use tracing::{error, info, warn};

use crate::History;

mod latencies;

pub(crate) use self::latencies::Latencies;

/// A worker's metrics. Their label `outbox` distinguishes several outboxes of one process.
pub(crate) struct Metrics {
    /// The outbox at hand.
    outbox: RefCell<SharedString>,
    /// Where records were last settled, and when.
    progress: RefCell<Option<(SharedString, f64)>>,
    /// What the relay's workers note together.
    history: Option<History>,
}

/// Set once the metrics are described. A recorder is installed before the first relay starts.
static DESCRIBED: Once = Once::new();

impl Metrics {
    pub(crate) fn new() -> Self {
        DESCRIBED.call_once(describe);
        Self { outbox: RefCell::default(), progress: RefCell::default(), history: None }
    }

    /// Notes in this history, too, what was sent and what waits.
    pub(crate) fn noting(self, history: History) -> Self {
        Self { history: Some(history), ..self }
    }

    /// Names the outbox at hand, if the source knows which it is.
    pub(crate) fn name(&self, outbox: Option<&str>) {
        let outbox = outbox.unwrap_or_default();
        let mut named = self.outbox.borrow_mut();
        if **named != *outbox {
            *named = Arc::<str>::from(outbox).into();
        }
    }

    fn outbox(&self) -> SharedString {
        self.outbox.borrow().clone()
    }

    pub(crate) fn published(&self, count: usize, latencies: &mut Latencies) {
        counter!("outbox_published_total", "outbox" => self.outbox()).increment(count as u64);
        if count > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *self.progress.borrow_mut() = Some((self.outbox(), now.as_secs_f64()));
            self.progress();
            if let Some(history) = &self.history {
                history.published(count as u64, latencies.counted());
            }
            latencies.hand_to(&histogram!("outbox_latency_seconds", "outbox" => self.outbox()));
        }
    }

    /// Says again when records were last settled: a recorder may forget what is not said for a while, so that a relay that no longer leads
    /// shows no old lag.
    pub(crate) fn progress(&self) {
        if let Some((outbox, at)) = &*self.progress.borrow() {
            gauge!("outbox_last_progress_timestamp_seconds", "outbox" => outbox.clone()).set(*at);
        }
    }

    pub(crate) fn dead_lettered(&self, topic: &str, aggregate_type: &str, id: &str, reason: &str) {
        counter!("outbox_dead_letters_total", "outbox" => self.outbox()).increment(1);
        warn!(outbox = &*self.outbox(), id, aggregate_type, topic, reason, "a record became a dead letter");
    }

    pub(crate) fn passed(&self, count: usize, took: Duration) {
        histogram!("outbox_pass_duration_seconds", "outbox" => self.outbox()).record(took.as_secs_f64());
        histogram!("outbox_pass_records", "outbox" => self.outbox()).record(count as f64);
    }

    pub(crate) fn took_over(&self, committed: usize) {
        counter!("outbox_takeovers_total", "outbox" => self.outbox()).increment(1);
        info!(
            outbox = &*self.outbox(),
            committed, "this relay has taken the outbox over: no other one can commit to Kafka any more"
        );
    }

    pub(crate) fn committed(&self, took: Duration) {
        histogram!("outbox_commit_duration_seconds", "outbox" => self.outbox()).record(took.as_secs_f64());
    }

    pub(crate) fn lag(&self, lag: Lag) {
        let set = |name: &'static str, value: f64| gauge!(name, "outbox" => self.outbox()).set(value);
        self.set_lag(&lag);
        if let Some(history) = &self.history {
            history.measured(&Arc::from(&*self.outbox()), &lag);
        }
        let (outbox, oldest) = (self.outbox(), lag.oldest.as_secs_f64());
        let Some(wal) = lag.wal else {
            return info!(outbox = &*outbox, unsent = lag.unsent, oldest_seconds = oldest, "outbox lag");
        };
        set("outbox_wal_lag_bytes", wal.bytes as f64);
        if let Some(time) = wal.time {
            set("outbox_wal_lag_seconds", time.as_secs_f64());
        }
        set("outbox_wal_retained_bytes", wal.retained_bytes as f64);
        for status in ["reserved", "extended", "unreserved", "lost"] {
            let is_it = f64::from(u8::from(status == wal.status));
            gauge!("outbox_wal_slot_status", "outbox" => self.outbox(), "status" => status).set(is_it);
        }
        info!(
            outbox = &*outbox,
            unsent = lag.unsent,
            oldest_seconds = oldest,
            wal_bytes = wal.bytes,
            wal_seconds = wal.time.map(|time| time.as_secs_f64()),
            retained_bytes = wal.retained_bytes,
            slot_status = wal.status,
            "outbox lag"
        );
    }

    fn set_lag(&self, lag: &Lag) {
        let set = |name: &'static str, value: f64| gauge!(name, "outbox" => self.outbox()).set(value);
        set("outbox_unsent", lag.unsent as f64);
        set("outbox_oldest_unsent_seconds", lag.oldest.as_secs_f64());
        set("outbox_oldest_writer_seconds", lag.oldest_writer.as_secs_f64());
        set("outbox_dead_letters_stored", lag.dead_letters as f64);
        set("outbox_blocked_aggregates", lag.blocked_aggregates as f64);
        set("outbox_scheduled", lag.scheduled as f64);
        set("outbox_oldest_overdue_seconds", lag.overdue.as_secs_f64());
    }

    pub(crate) fn gave_up(&self, error: &dyn std::error::Error) {
        let outbox = self.outbox();
        let outbox = (!outbox.is_empty()).then_some(&*outbox);
        counter!("outbox_failures_total", "outbox" => self.outbox(), "component" => "database", "kind" => "permanent")
            .increment(1);
        error!(outbox, error = %error, "the relay cannot go on and has stopped");
    }

    pub(crate) fn failed(
        &self,
        component: &'static str,
        error: &dyn std::error::Error,
        is_misconfigured: bool,
        retry_in: Duration,
    ) {
        let kind = if is_misconfigured { "misconfigured" } else { "temporary" };
        counter!("outbox_failures_total", "outbox" => self.outbox(), "component" => component, "kind" => kind)
            .increment(1);
        let (outbox, retry_in_ms) = (self.outbox(), retry_in.as_millis() as u64);
        let outbox = (!outbox.is_empty()).then_some(&*outbox);
        if is_misconfigured {
            error!(
                outbox,
                error = %error,
                retry_in_ms,
                "nothing is sent until somebody fixes the {component}; trying again"
            );
        } else {
            warn!(outbox, error = %error, retry_in_ms, "the {component} failed; trying again");
        }
    }
}

/// Reports the lag of one of several outboxes.
#[cfg(feature = "postgres")]
pub(crate) fn lag_of(outbox: &Arc<str>, lag: Lag, history: Option<&History>) {
    of(outbox, history).lag(lag);
}

/// Reports that one of several outboxes has no lag. Only the metrics have it, because idle outboxes may be many.
#[cfg(feature = "postgres")]
pub(crate) fn no_lag_of(outbox: &Arc<str>, history: Option<&History>) {
    of(outbox, history).set_lag(&Lag::default());
    if let Some(history) = history {
        history.measured(outbox, &Lag::default());
    }
}

#[cfg(feature = "postgres")]
fn of(outbox: &Arc<str>, history: Option<&History>) -> Metrics {
    let outbox = RefCell::new(outbox.clone().into());
    Metrics { outbox, progress: RefCell::default(), history: history.cloned() }
}

#[cfg(feature = "postgres")]
pub(crate) fn recovered_in(outbox: &str) {
    info!(outbox, "the outbox works again");
}

pub(crate) fn stopped(published: usize) {
    info!(published, "a relay worker stopped");
}

pub(crate) fn recovered(component: &'static str) {
    info!("the {component} works again");
}

fn describe() {
    describe_gauge!(
        "outbox_unsent",
        Unit::Count,
        "Records that wait to be sent; if the WAL is read, those that the relay has received"
    );
    describe_gauge!(
        "outbox_oldest_unsent_seconds",
        Unit::Seconds,
        "Age of the oldest record that waits to be sent"
    );
    describe_gauge!(
        "outbox_oldest_writer_seconds",
        Unit::Seconds,
        "How long the oldest transaction that may have emitted has been open or prepared"
    );
    describe_gauge!("outbox_scheduled", Unit::Count, "Events that are scheduled for later");
    describe_gauge!(
        "outbox_oldest_overdue_seconds",
        Unit::Seconds,
        "How long the scheduled event has been due that was due first"
    );
    describe_gauge!("outbox_dead_letters_stored", Unit::Count, "Dead letters that nobody has requeued");
    describe_gauge!(
        "outbox_blocked_aggregates",
        Unit::Count,
        "Aggregates of which records are held back behind a dead letter"
    );
    describe_gauge!(
        "outbox_last_progress_timestamp_seconds",
        Unit::Seconds,
        "When the relay last settled a record, as a Unix time"
    );
    describe_histogram!(
        "outbox_latency_seconds",
        Unit::Seconds,
        "How long records take from emit to the broker's acknowledgement"
    );
    describe_gauge!(
        "outbox_wal_lag_bytes",
        Unit::Bytes,
        "How many bytes the confirmed position is behind the end of the WAL"
    );
    describe_gauge!(
        "outbox_wal_lag_seconds",
        Unit::Seconds,
        "How long ago the WAL ended at the confirmed position"
    );
    describe_gauge!("outbox_wal_retained_bytes", Unit::Bytes, "How much WAL the server keeps for the slot");
    describe_gauge!("outbox_wal_slot_status", Unit::Count, "1 for the slot's status, 0 for the others");
    describe_counter!("outbox_published_total", Unit::Count, "Records that were published and settled");
    describe_counter!("outbox_dead_letters_total", Unit::Count, "Records that became dead letters");
    describe_counter!(
        "outbox_failures_total",
        Unit::Count,
        "Failed passes, by the component that failed and the kind of failure"
    );
    describe_counter!(
        "outbox_takeovers_total",
        Unit::Count,
        "How often a relay that sends exactly once has taken the outbox over"
    );
    describe_histogram!(
        "outbox_commit_duration_seconds",
        Unit::Seconds,
        "How long Kafka takes to commit a pass, if records are sent exactly once"
    );
    describe_histogram!("outbox_pass_duration_seconds", Unit::Seconds, "How long passes take");
    describe_histogram!("outbox_pass_records", Unit::Count, "How many records passes publish");
}
