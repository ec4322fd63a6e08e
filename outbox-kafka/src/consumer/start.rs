//! From settings to a consumer at work: what is wrong with them is reported before anything begins.

use std::time::Duration;

use diesel_outbox::Inbox;
use diesel_outbox_core::__private::LONGEST_RETENTION;
use rdkafka::ClientConfig;

use super::connection::Reconnecting;
use super::consume::ConsumerLoop;
use super::dead_letters::{DeadLetters, topic_of};
use super::group::Group;
use super::held::Held;
use super::{Consumer, ConsumerError, stalls};
use crate::publisher::settings::{canonical, problem_of_brokers};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl<C, H> Consumer<C, H> {
    /// Returns the consumer, which has not begun.
    pub(super) fn start(mut self) -> Result<ConsumerLoop<C, H>, ConsumerError> {
        self.check()?;
        let connect = self.connect.take().ok_or(ConsumerError::NoDatabase)?;
        let config = |chosen: &[(&str, &str)]| {
            let mut config = ClientConfig::new();
            config.extend(chosen.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
            config.extend(self.settings.clone());
            config
        };
        let for_dead_letters = config(&[("partitioner", "murmur2_random")]);
        let for_group = config(&[
            ("group.id", &self.name),
            ("auto.offset.reset", "earliest"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("statistics.interval.ms", stalls::INTERVAL),
        ]);
        let dead_letters = DeadLetters::new(for_dead_letters, self.dead_letter_topic, self.name.clone());
        Ok(ConsumerLoop {
            dead_letters: dead_letters.map_err(ConsumerError::settings)?,
            group: Group::join(&for_group, &self.topics).map_err(ConsumerError::settings)?,
            inbox: match self.schema {
                Some(schema) => Inbox::new(self.name).schema(schema),
                None => Inbox::new(self.name),
            },
            database: Reconnecting::new(connect, self.options.backoff),
            handlers: self.handlers,
            options: self.options,
            held: Held::new(),
            skipped: std::collections::HashSet::new(),
        })
    }

    fn check(&self) -> Result<(), ConsumerError> {
        let wrong = |setting: &str, problem: &str| {
            Err(ConsumerError::Setting { setting: setting.to_owned(), problem: problem.to_owned() })
        };
        if self.topics.is_empty() {
            return Err(ConsumerError::NoTopics);
        }
        if self.handlers.is_empty() {
            return Err(ConsumerError::NoHandlers);
        }
        if let Some(what) = self.handlers.ambiguous() {
            return wrong("handlers", &format!("has two for {what}: leave one of them out"));
        }
        if self.name.is_empty() {
            return wrong(
                "name",
                "is empty: give the consumer a name, by which its group and its inbox are known",
            );
        }
        if self.options.max_attempts == 0 {
            return wrong("max_attempts", "is 0: it must be at least 1");
        }
        if self.options.backoff.longest > DAY || self.options.backoff.first > DAY {
            return wrong("backoff", "is longer than a day: make it shorter");
        }
        if self.options.retention.is_some_and(|retention| retention > LONGEST_RETENTION) {
            return wrong(
                "inbox_retention",
                "is longer than 100 years: use `None` to keep the inbox for ever",
            );
        }
        if self.shutdown_timeout < Duration::from_millis(1) || self.shutdown_timeout > DAY {
            return wrong("shutdown_timeout", "is out of its range: it must be 1 ms to 1 day");
        }
        if self.topics.iter().any(|topic| self.topics.contains(&topic_of(&self.dead_letter_topic, topic))) {
            return wrong("dead_letter_topic", "names a topic that the consumer reads: name another one");
        }
        for (name, value) in &self.settings {
            match canonical(name) {
                "bootstrap.servers" => {
                    if let Some(problem) = problem_of_brokers(value) {
                        return wrong(name, &format!("is refused: {problem}"));
                    }
                }
                "enable.auto.commit" | "enable.auto.offset.store" => {
                    return wrong(
                        name,
                        "cannot be set: the consumer commits an offset only after the database transaction. Leave it out",
                    );
                }
                "check.crcs" if value != "false" => {
                    return wrong(
                        name,
                        "cannot be set: librdkafka passes over a batch whose checksum is wrong, and its events would be lost. \
                         Leave it out: brokers check what they store",
                    );
                }
                "acks" | "message.timeout.ms" | "delivery.report.only.error" | "transactional.id" => {
                    return wrong(
                        name,
                        "cannot be set: the consumer passes over a record only when all in-sync replicas have its dead letter. \
                         Leave it out",
                    );
                }
                _ => (),
            }
        }
        Ok(())
    }
}
