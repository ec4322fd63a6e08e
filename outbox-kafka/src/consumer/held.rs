use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use rdkafka::Message;
use rdkafka::message::OwnedMessage;

use super::headers;
use super::received::{Received, identity};

/// A topic and the number of one of its partitions.
pub(super) type TopicPartition = (String, i32);

/// A record on its way through the consumer.
pub(super) struct Item {
    pub(super) task: Task,
    /// How often something was tried with it, for the back-off.
    pub(super) attempts: u32,
    /// How many of those its handler failed.
    pub(super) failures: u32,
}

/// What is to be done with a record.
pub(super) enum Task {
    Handle(Received),
    /// It goes to the dead letters. `readable` is whether its headers can be read.
    DeadLetter {
        message: OwnedMessage,
        readable: bool,
        reason: String,
    },
}

impl Item {
    pub(super) fn new(message: OwnedMessage) -> Self {
        let task = match headers::check(&message) {
            Ok(()) => match identity(&message) {
                Ok(identity) => Task::Handle(Received::new(message, identity)),
                Err(reason) => Task::DeadLetter { message, readable: true, reason },
            },
            Err(reason) => Task::DeadLetter { message, readable: false, reason },
        };
        Self { task, attempts: 0, failures: 0 }
    }

    pub(super) fn message(&self) -> &OwnedMessage {
        match &self.task {
            Task::Handle(received) => received.message(),
            Task::DeadLetter { message, .. } => message,
        }
    }

    /// Returns the same record, to be sent to the dead letters for this reason.
    pub(super) fn into_dead_letter(self, reason: String) -> Self {
        let (message, readable) = match self.task {
            Task::Handle(received) => (received.into_message(), true),
            Task::DeadLetter { message, readable, .. } => (message, readable),
        };
        Self { task: Task::DeadLetter { message, readable, reason }, attempts: 0, failures: self.failures }
    }

    pub(super) fn partition(&self) -> TopicPartition {
        (self.message().topic().to_owned(), self.message().partition())
    }
}

/// The partitions that wait for a record to be tried again. Each has that record first, and behind it, in their order,
/// those that arrived all the same.
pub(super) struct Held<T = Item> {
    partitions: HashMap<TopicPartition, Queue<T>>,
}

struct Queue<T> {
    due: Instant,
    items: VecDeque<T>,
}

impl<T> Held<T> {
    pub(super) fn new() -> Self {
        Self { partitions: HashMap::new() }
    }

    /// Holds the partition until `due`, with this item first. Returns whether the partition was not held before.
    pub(super) fn hold(&mut self, partition: TopicPartition, item: T, due: Instant) -> bool {
        let held = self.partitions.contains_key(&partition);
        let queue = self.partitions.entry(partition).or_insert(Queue { due, items: VecDeque::new() });
        queue.due = due;
        queue.items.push_front(item);
        !held
    }

    /// Puts the item behind those of its partition, or gives it back if the partition is not held.
    pub(super) fn push_behind(&mut self, partition: &TopicPartition, item: T) -> Option<T> {
        match self.partitions.get_mut(partition) {
            Some(queue) => {
                queue.items.push_back(item);
                None
            }
            None => Some(item),
        }
    }

    /// Returns when the next partition is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.partitions.values().map(|queue| queue.due).min()
    }

    /// Takes the first item of the partition that has been due longest. The partition stays held until [`Self::hold`] or
    /// [`Self::release`] says what became of the item.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<T> {
        let queue =
            self.partitions.values_mut().filter(|queue| queue.due <= now).min_by_key(|queue| queue.due)?;
        queue.items.pop_front()
    }

    /// Makes the next item of the partition due, because one is done with. Returns whether there was none, so that the
    /// partition is no longer held.
    pub(super) fn release(&mut self, partition: &TopicPartition) -> bool {
        let emptied = self.partitions.get(partition).is_some_and(|queue| queue.items.is_empty());
        if emptied {
            self.partitions.remove(partition);
        }
        emptied
    }

    /// Forgets a partition that is no longer ours.
    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        self.partitions.remove(partition);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_held_partition_keeps_its_order_and_others_do_not_wait() {
        let (first, second) = (("t".to_owned(), 0), ("t".to_owned(), 1));
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut held = Held::new();
        assert!(held.hold(first.clone(), 1, later));
        assert_eq!(held.push_behind(&first, 2), None);
        assert_eq!(held.push_behind(&second, 7), Some(7));
        assert_eq!((held.next_due(), held.take_due(now)), (Some(later), None));

        assert_eq!(held.take_due(later), Some(1));
        assert!(!held.hold(first.clone(), 1, later), "it was held already");
        assert_eq!(held.take_due(later), Some(1));
        assert!(!held.release(&first), "the second one waits");
        assert_eq!(held.take_due(later), Some(2));
        assert_eq!(held.push_behind(&first, 3), None, "the second one is not done with");
        assert!(!held.release(&first));
        assert_eq!(held.take_due(later), Some(3));
        assert!(held.release(&first));
        assert_eq!((held.next_due(), held.push_behind(&first, 4)), (None, Some(4)));
    }

    #[test]
    fn a_partition_that_is_no_longer_ours_is_forgotten() {
        let partition = ("t".to_owned(), 0);
        let now = Instant::now();
        let mut held = Held::new();
        held.hold(partition.clone(), 1, now);
        held.forget(&partition);
        assert_eq!((held.take_due(now), held.release(&partition)), (None, false));
    }
}
