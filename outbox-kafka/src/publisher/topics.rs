use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;

use crate::error::rejection;

/// Topics that Kafka does not have, or does not let us write to. librdkafka waits for such a topic for a long time and
/// tells nothing meanwhile, so Kafka is asked when a pass got stuck.
#[derive(Default)]
pub(super) struct Topics {
    in_use: BTreeSet<String>,
    /// When Kafka said first that it does not have them. It says so too of a topic that it begins to make.
    missing: BTreeMap<String, Instant>,
    refused: BTreeMap<String, Refused>,
}

struct Refused {
    reason: String,
    asked: Instant,
}

/// How long an answer holds. After that the topic may have been made.
const VALIDITY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a topic must have been missing.
const MAKING: Duration = Duration::from_secs(1);

impl Topics {
    /// Notes that the topic is in use, or tells why it cannot be.
    pub(super) fn refusal<C: ClientContext>(&mut self, topic: &str, client: &Client<C>) -> Option<String> {
        if !self.in_use.contains(topic) {
            self.in_use.insert(topic.to_owned());
        }
        if self.refused.get(topic)?.asked.elapsed() >= VALIDITY {
            self.ask(topic, client, PATIENCE);
        }
        self.refused.get(topic).map(|refused| refused.reason.clone())
    }

    /// Asks for all that were in use when a pass got stuck.
    pub(super) fn look_for_cause<C: ClientContext>(&mut self, client: &Client<C>, wait: Duration) {
        for topic in std::mem::take(&mut self.in_use) {
            self.ask(&topic, client, wait);
        }
    }

    fn ask<C: ClientContext>(&mut self, topic: &str, client: &Client<C>, wait: Duration) {
        let was_refused = self.refused.remove(topic).is_some();
        // No answer says nothing about the topic.
        let Ok(metadata) = client.fetch_metadata(Some(topic), wait) else { return };
        let code = metadata.topics().first().and_then(|found| found.error()).map(RDKafkaErrorCode::from);
        let Some((code, reason)) = code.and_then(|code| Some((code, rejection(code, topic)?))) else {
            self.missing.remove(topic);
            return;
        };
        let asked = Instant::now();
        let is_missing =
            matches!(code, RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition);
        if is_missing && !was_refused {
            let since = *self.missing.entry(topic.to_owned()).or_insert(asked);
            if asked.duration_since(since) < MAKING {
                return;
            }
        }
        self.refused.insert(topic.to_owned(), Refused { reason, asked });
    }
}
