use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::OwnedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaErrorCode as Code;
use tracing::{debug, info, warn};

use super::ConsumerError;
use super::held::TopicPartition;
use super::stalls::{Stalls, is_unreadable};
use crate::log::{Errors, log};

const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const COMMIT_RECORDS: u32 = 1_000;

/// This consumer's membership of its group. Leaves the group when dropped.
pub(super) struct Group {
    consumer: BaseConsumer<Membership>,
    committed_at: Instant,
    uncommitted: u32,
}

impl Group {
    pub(super) fn join(config: &ClientConfig, topics: &[String]) -> KafkaResult<Self> {
        let consumer: BaseConsumer<Membership> = config.create_with_context(Membership::default())?;
        consumer.subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self { consumer, committed_at: Instant::now(), uncommitted: 0 })
    }

    /// Returns the next record, and waits up to `wait` for one.
    pub(super) fn poll(&self, wait: Duration) -> Result<Option<OwnedMessage>, ConsumerError> {
        match self.consumer.poll(wait) {
            Some(Ok(message)) => Ok(Some(message.detach())),
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                Err(ConsumerError::Kafka(error.into()))
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => Ok(None),
            Some(Err(error)) => {
                let context = self.consumer.context();
                if let Some(code) = error.rdkafka_error_code().filter(|code| is_unreadable(*code)) {
                    context.stalls().note(code);
                }
                context.errors.report(&error, "it could not be read; the consumer tries again");
                Ok(None)
            }
        }
    }

    /// Returns the partitions that were taken away since the last call.
    pub(super) fn revoked(&self) -> Vec<TopicPartition> {
        std::mem::take(&mut *self.consumer.context().revoked())
    }

    /// Stops the partition's flow. Its next record will be the one after the last that [`Self::poll`] gave.
    pub(super) fn pause(&self, (topic, partition): &TopicPartition) {
        // A partition that flows on costs memory, because its records are held, and not its order.
        match self.consumer.pause(&list([(topic.as_str(), *partition)])) {
            Ok(()) => {
                self.consumer.context().paused().insert((topic.clone(), *partition));
            }
            Err(error) => warn!(%error, topic, partition, "the partition could not be paused"),
        }
    }

    pub(super) fn resume(&self, partition: &TopicPartition) {
        // librdkafka loses what it has buffered for a partition that is resumed without having been paused.
        if self.consumer.context().paused().remove(partition)
            && let Err(error) = self.consumer.resume(&list([(partition.0.as_str(), partition.1)]))
        {
            warn!(%error, topic = partition.0, partition = partition.1, "the partition could not be resumed");
        }
    }

    /// Notes that everything up to this record is done: the next commit has its offset.
    pub(super) fn done(&mut self, (topic, partition): &TopicPartition, offset: i64) {
        self.uncommitted += 1;
        if let Err(error) = self.consumer.store_offset(topic, *partition, offset) {
            debug!(%error, topic, partition, offset, "the offset is not ours to commit any more");
        }
    }

    /// Commits what is done, if a commit is due, and does not wait for it. If one is lost, records are delivered
    /// again, and the inbox knows them.
    pub(super) fn commit_if_due(&mut self) {
        if self.uncommitted >= COMMIT_RECORDS || self.committed_at.elapsed() >= COMMIT_INTERVAL {
            self.uncommitted = 0;
            self.committed_at = Instant::now();
            committed(self.consumer.commit_consumer_state(CommitMode::Async));
        }
    }

    /// Returns how long [`Self::poll`] may wait at most.
    pub(super) fn longest_wait(&self) -> Duration {
        COMMIT_INTERVAL.saturating_sub(self.committed_at.elapsed())
    }

    /// Commits what is done, waits for that, and leaves the group.
    pub(super) fn leave(self) {
        committed(self.consumer.commit_consumer_state(CommitMode::Sync));
    }
}

fn committed(outcome: KafkaResult<()>) {
    match outcome {
        Ok(()) | Err(KafkaError::ConsumerCommit(Code::NoOffset)) => {}
        Err(error) => warn!(%error, "offsets were not committed: their records may be delivered again"),
    }
}

fn list<'a>(partitions: impl IntoIterator<Item = (&'a str, i32)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition(topic, partition);
    }
    list
}

/// What librdkafka reports of the group, on the consumer's own thread, while it polls.
#[derive(Default)]
struct Membership {
    paused: Mutex<HashSet<TopicPartition>>,
    revoked: Mutex<Vec<TopicPartition>>,
    errors: Errors,
    stalls: Mutex<Stalls>,
}

impl Membership {
    fn paused(&self) -> MutexGuard<'_, HashSet<TopicPartition>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn revoked(&self) -> MutexGuard<'_, Vec<TopicPartition>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stalls(&self) -> MutexGuard<'_, Stalls> {
        self.stalls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Membership {
    fn error(&self, error: KafkaError, reason: &str) {
        self.errors.report(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.stalls().look(&statistics, &self.paused());
    }
}

impl ConsumerContext for Membership {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                info!(partitions = %names(partitions), "partitions were assigned")
            }
            Rebalance::Revoke(partitions) => {
                info!(partitions = %names(partitions), "partitions are revoked");
                committed(consumer.commit_consumer_state(CommitMode::Sync));
                let elements = partitions.elements();
                let revoked =
                    elements.iter().map(|element| (element.topic().to_owned(), element.partition()));
                for partition in revoked {
                    // The pause would outlast the revocation.
                    if self.paused().remove(&partition)
                        && let Err(error) = consumer.resume(&list([(partition.0.as_str(), partition.1)]))
                    {
                        warn!(%error, topic = partition.0, partition = partition.1, "the pause could not be ended");
                    }
                    self.revoked().push(partition);
                }
            }
            Rebalance::Error(error) => warn!(%error, "the group could not be rebalanced"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        committed(result);
    }
}

fn names(partitions: &TopicPartitionList) -> String {
    let names =
        partitions.elements().iter().map(|p| format!("{}[{}]", p.topic(), p.partition())).collect::<Vec<_>>();
    names.join(", ")
}
