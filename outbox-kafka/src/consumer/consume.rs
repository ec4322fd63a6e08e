use std::collections::HashSet;
use std::time::{Duration, Instant};

use diesel_outbox::{Inbox, Once, Pruning};
use diesel_outbox_core::__private::Stop;
use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use tracing::{Span, debug, error, error_span, info, info_span, warn};

use super::backoff::Backoff;
use super::connection::{Attempt, Reconnecting};
use super::dead_letters::{DeadLetters, full_text};
use super::group::Group;
use super::handlers::{Handler, Handlers, UnknownTypes};
use super::held::{Held, Item, Task};
use super::spans::Processing;
use super::{ConsumerError, Received, Rejected};

/// How soon the consumer notices a stop.
const STOP_WAIT: Duration = Duration::from_millis(100);
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// The time until the next step of pruning is this many times as long as the step took: it is left for records.
const PRUNE_PAUSE: u32 = 3;
const MOST_SKIPPED: usize = 1_000;
/// The longest event type that an outbox can hold, in bytes.
const LONGEST_SKIPPED: usize = 4 * 255;

/// The consumer at work: it handles one record at a time, in the order in which each partition has them.
pub(super) struct ConsumerLoop<C, H> {
    pub(super) group: Group,
    pub(super) inbox: Inbox,
    pub(super) database: Reconnecting<C>,
    pub(super) handlers: Handlers<H>,
    pub(super) dead_letters: DeadLetters,
    pub(super) options: Options,
    pub(super) held: Held,
    /// The event types that were skipped and logged so far.
    pub(super) skipped: HashSet<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) unknown_types: UnknownTypes,
    pub(super) max_attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) retention: Option<Duration>,
}

/// What became of a record for now.
enum Handled {
    Done,
    TryAgain { wait: Duration },
    DeadLetter { reason: String },
}

impl<C, H: Handler<C>> ConsumerLoop<C, H> {
    /// Works until it is to stop. An error is one that trying again cannot correct.
    pub(super) fn run(mut self, stop: &Stop) -> Result<(), ConsumerError> {
        let span = error_span!("consumer", name = self.inbox.consumer());
        span.in_scope(|| info!("the consumer has started"));
        let ended = self.work_until(stop, &span);
        let _entered = span.enter();
        ended.inspect_err(|error| error!(%error, "the consumer cannot go on and has stopped"))?;
        self.group.leave();
        info!("the consumer has stopped");
        Ok(())
    }

    /// The span is that of the log lines. A handler is not in it, because its own spans belong to the trace of its record.
    fn work_until(&mut self, stop: &Stop, span: &Span) -> Result<(), ConsumerError> {
        let mut pruning = self.options.retention.map(Pruning::new);
        let mut prune_at = Instant::now();
        while !stop.is_set() {
            let due = span.in_scope(|| {
                self.database.begin::<H>(&self.inbox)?;
                self.group.commit_if_due();
                self.dead_letters.listen();
                if let Some(pruning) = &mut pruning
                    && prune_at <= Instant::now()
                {
                    // In steps, so that neither the group nor the records wait for an inbox of millions.
                    let began = Instant::now();
                    let more = self.database.prune::<H>(&self.inbox, pruning);
                    let pause = if more { began.elapsed() * PRUNE_PAUSE } else { PRUNE_INTERVAL };
                    prune_at = Instant::now() + pause;
                }
                Ok::<_, ConsumerError>(self.held.take_due(Instant::now()))
            })?;
            if let Some(item) = due {
                self.work_on(item, span);
            }
            // However much is held, the group must see that this member is alive.
            let message = span.in_scope(|| {
                let message = self.group.poll(self.wait())?;
                for partition in self.group.revoked() {
                    self.held.forget(&partition);
                }
                Ok::<_, ConsumerError>(message)
            })?;
            if let Some(message) = message {
                self.receive(message, span);
            }
        }
        Ok(())
    }

    fn wait(&self) -> Duration {
        let due = self.held.next_due().map(|due| due.saturating_duration_since(Instant::now()));
        due.unwrap_or(STOP_WAIT).min(STOP_WAIT).min(self.group.longest_wait())
    }

    fn receive(&mut self, message: OwnedMessage, span: &Span) {
        let item = Item::new(message);
        if let Some(item) = self.held.push_behind(&item.partition(), item) {
            self.work_on(item, span);
        }
    }

    fn work_on(&mut self, mut item: Item, span: &Span) {
        item.attempts = item.attempts.saturating_add(1);
        let outcome = match &item.task {
            Task::Handle(received) => self.handle(received, item.attempts, &mut item.failures),
            Task::DeadLetter { message, readable, reason } => {
                span.in_scope(|| self.dead_letter(message, *readable, reason, item.attempts))
            }
        };
        let _entered = span.enter();
        let partition = item.partition();
        match outcome {
            Handled::Done => {
                self.group.done(&partition, item.message().offset());
                if self.held.release(&partition) {
                    self.group.resume(&partition);
                }
            }
            Handled::TryAgain { wait } => {
                if self.held.hold(partition.clone(), item, Instant::now() + wait) {
                    self.group.pause(&partition);
                }
            }
            Handled::DeadLetter { reason } => self.work_on(item.into_dead_letter(reason), span),
        }
    }

    fn handle(&mut self, received: &Received, attempts: u32, failures: &mut u32) -> Handled {
        let (id, event_type) = (received.id(), received.event_type());
        let (topic, partition, offset) = (received.topic(), received.partition(), received.offset());
        let consumer = self.inbox.consumer();
        let span = || info_span!("record", consumer, topic, partition, offset, %id, event_type).entered();
        let Some(handler) = self.handlers.find(event_type) else {
            let _span = span();
            return match self.options.unknown_types {
                UnknownTypes::Skip => {
                    let first = self.skipped.len() < MOST_SKIPPED
                        && event_type.len() <= LONGEST_SKIPPED
                        && self.skipped.insert(event_type.to_owned());
                    if first {
                        info!(
                            "there is no handler for the event type `{event_type}`: its records are skipped"
                        );
                    }
                    Handled::Done
                }
                UnknownTypes::DeadLetter => Handled::DeadLetter {
                    reason: format!("the consumer has no handler for the event type `{event_type}`"),
                },
            };
        };
        let processing = Processing::begin(consumer, received);
        // Only now, so that whoever makes spans of OpenTelemetry of these finds that one as their parent.
        let _span = span();
        let error = match self.database.once(&self.inbox, received, handler) {
            Attempt::Done(once) => {
                debug!(duplicate = once == Once::Duplicate, "handled");
                return Handled::Done;
            }
            Attempt::Unavailable => {
                processing.failed("database_unavailable");
                let wait = self.options.backoff.after(attempts).max(self.database.wait());
                return Handled::TryAgain { wait };
            }
            Attempt::Failed(error) => error,
        };
        processing.failed(if error.is::<Rejected>() { "rejected" } else { "handler_failed" });
        *failures += 1;
        if error.is::<Rejected>() || *failures >= self.options.max_attempts {
            if error.is::<Rejected>() {
                error!(%error, "the handler rejected the record");
            } else {
                error!(%error, failures, "the handler failed for the last time");
            }
            return Handled::DeadLetter { reason: full_text(&*error) };
        }
        let wait = self.options.backoff.after(*failures);
        warn!(%error, failures, ?wait, "the handler failed; the consumer tries the record again");
        Handled::TryAgain { wait }
    }

    fn dead_letter(&self, message: &OwnedMessage, readable: bool, reason: &str, attempts: u32) -> Handled {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        match self.dead_letters.send(message, readable, reason) {
            Ok(()) => {
                error!(
                    topic,
                    partition,
                    offset,
                    to = self.dead_letters.topic(topic),
                    "the record is a dead letter"
                );
                Handled::Done
            }
            Err(error) => {
                let wait = self.options.backoff.after(attempts);
                error!(topic, partition, offset, ?wait, "{error}");
                Handled::TryAgain { wait }
            }
        }
    }
}
