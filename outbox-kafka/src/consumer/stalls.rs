//! Partitions that stand still though they hold records: librdkafka cannot read the next batch, asks for it again for ever, and reports
//! that without the partition's name, or not at all. Its statistics name it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::Statistics;
use rdkafka::statistics::Partition as Numbers;
use rdkafka::types::RDKafkaErrorCode as Code;
use tracing::error;

use super::held::TopicPartition;

/// How often librdkafka gives its statistics, in milliseconds, unless the user says otherwise.
pub(super) const INTERVAL: &str = "5000";
/// A partition must stand still in this many statistics in a row.
const LOOKS: u32 = 3;
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// A broker that answers at all does so within this: a fetch waits for half a second.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// What librdkafka reported may be about another partition: the log line has it, and nothing follows from it.
const ADVICE: &str = "no record arrives though the broker has some: the batch at this offset cannot be read. The partition waits, the \
    others go on, and the consumer passes over nothing. If the batch is compressed by zstd, turn on the feature `zstd` of diesel-outbox-kafka and \
    restart the consumer. If the batch is damaged, make a replica with an intact copy the leader. Or give up what it holds: \
    stop the consumers of the group, and set its offset behind the batch with kafka-consumer-groups.sh --reset-offsets. If librdkafka \
    has reported nothing, the network may only be slow to bring the batch";

/// What stood still in the last statistics.
#[derive(Default)]
pub(super) struct Stalls {
    partitions: HashMap<TopicPartition, Stall>,
    /// What librdkafka reported last of a batch.
    unreadable: Option<Code>,
}

struct Stall {
    offset: i64,
    looks: u32,
    reported: Option<Instant>,
}

/// Returns whether this is about a batch that was received and cannot be read.
pub(super) fn is_unreadable(code: Code) -> bool {
    matches!(code, Code::NotImplemented | Code::BadCompression | Code::BadMessage)
}

impl Stalls {
    pub(super) fn note(&mut self, code: Code) {
        self.unreadable = Some(code);
    }

    /// Reports the partitions that have stood still for long; those that are paused do so on purpose.
    pub(super) fn look(&mut self, statistics: &Statistics, paused: &HashSet<TopicPartition>) {
        let answering: HashSet<i32> = statistics
            .brokers
            .values()
            .filter(|broker| broker.state == "UP" && answers(broker.rxidle))
            .map(|broker| broker.nodeid)
            .collect();
        let waiting = statistics.topics.values().flat_map(|topic| {
            let of_topic = topic.partitions.values();
            of_topic
                .filter(|numbers| answering.contains(&numbers.broker) && is_waiting(numbers))
                .map(|numbers| ((topic.topic.clone(), numbers.partition), numbers.next_offset))
        });
        let waiting = waiting.filter(|(partition, _)| !paused.contains(partition)).collect();
        let due = self.due(waiting, Instant::now());
        for ((topic, partition), offset) in due {
            let reported = self.unreadable.map(|code| code.to_string());
            error!(topic, partition, offset, reported, "{ADVICE}");
        }
        if self.partitions.is_empty() {
            self.unreadable = None;
        }
    }

    /// Returns those of the waiting partitions that are to be reported, with the offset that each is to read next.
    fn due(&mut self, waiting: Vec<(TopicPartition, i64)>, now: Instant) -> Vec<(TopicPartition, i64)> {
        let mut before = std::mem::take(&mut self.partitions);
        let mut due = Vec::new();
        for (partition, offset) in waiting {
            let known = before.remove(&partition).filter(|stall| stall.offset == offset);
            let mut stall = known.unwrap_or(Stall { offset, looks: 0, reported: None });
            stall.looks += 1;
            let is_reported =
                stall.reported.is_some_and(|at| now.saturating_duration_since(at) < REPORT_INTERVAL);
            if stall.looks >= LOOKS && !is_reported {
                stall.reported = Some(now);
                due.push((partition.clone(), offset));
            }
            self.partitions.insert(partition, stall);
        }
        due
    }
}

/// Returns whether a broker answers, by the microseconds since it sent something; they are negative if it never did.
fn answers(idle: i64) -> bool {
    u64::try_from(idle).is_ok_and(|idle| Duration::from_micros(idle) < ANSWERS_WITHIN)
}

/// Returns whether the partition is being read, has not come to its end, and nothing of it is on its way to the consumer.
fn is_waiting(numbers: &Numbers) -> bool {
    // The last stable offset is where consumers that read only what is committed come to their end.
    let end = if numbers.ls_offset >= 0 { numbers.ls_offset } else { numbers.hi_offset };
    numbers.fetch_state == "active"
        && numbers.fetchq_cnt == 0
        && numbers.next_offset >= 0
        && numbers.next_offset < end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(partition: i32, offset: i64) -> (TopicPartition, i64) {
        (("t".to_owned(), partition), offset)
    }

    #[test]
    fn only_a_partition_that_does_not_move_is_reported_and_once_a_minute() {
        let mut stalls = Stalls::default();
        let began = Instant::now();
        let mut look = |after, offset| {
            stalls.due(vec![waiting(0, 7), waiting(1, offset)], began + Duration::from_secs(after))
        };
        assert_eq!(look(0, 1), []);
        assert_eq!(look(5, 2), []);
        assert_eq!(look(10, 3), [waiting(0, 7)]);
        assert_eq!(look(15, 3), []);
        assert_eq!(look(20, 3), [waiting(1, 3)]);
        assert_eq!(look(70, 4), [waiting(0, 7)]);
        assert_eq!(stalls.due(vec![], began), []);
        assert_eq!(stalls.due(vec![waiting(0, 7)], began), [], "it is another stall");
    }

    #[test]
    fn a_broker_that_is_silent_is_not_taken_for_one_whose_batch_cannot_be_read() {
        assert!(answers(1_000_000));
        assert!(!answers(5_000_000));
        assert!(!answers(-1));
    }
}
