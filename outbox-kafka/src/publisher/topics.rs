use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::types::RDKafkaErrorCode;

use crate::error::{is_unknown_topic, rejection};

/// Topics that Kafka does not have, or does not let us write to. librdkafka waits for such a topic for a long time and
/// reports nothing meanwhile, so the publisher asks Kafka when a pass got stuck.
#[derive(Default)]
pub(super) struct RefusedTopics {
    in_use: BTreeSet<String>,
    missing: Missing,
    refused: BTreeMap<String, Refused>,
    /// When there is time to ask for a refused topic again.
    next_question: Option<Instant>,
}

struct Refused {
    reason: String,
    asked: Instant,
}

/// How long an answer holds at most, however many topics are refused. The topic may have been made since, or opened to the relay.
const VALIDITY: Duration = Duration::from_secs(10);
/// The shortest time between two questions about refused topics, and which part of its time the publisher spends on them at most: a
/// record becomes a dead letter by an answer that is as new as that allows.
const INTERVAL: Duration = Duration::from_millis(100);
const PART: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// When Kafka said first and last that it does not have a topic. It also says so while it makes the topic, and when it
/// has just started itself: the topic is missing if it says so again.
#[derive(Default)]
struct Missing(BTreeMap<String, (Instant, Instant)>);

/// How long a topic must have been missing.
const MAKING: Duration = Duration::from_secs(1);
/// How long ago it may have said so last. The publisher asks a few times a minute while a pass is stuck.
const RECENT: Duration = Duration::from_secs(600);

impl Missing {
    /// Notes that Kafka says so, and returns whether the topic is missing.
    fn said(&mut self, topic: &str, now: Instant) -> bool {
        let (first, last) = self.0.entry(topic.to_owned()).or_insert((now, now));
        if now.duration_since(*last) >= RECENT {
            *first = now;
        }
        *last = now;
        now.duration_since(*first) >= MAKING
    }

    fn found(&mut self, topic: &str) {
        self.0.remove(topic);
    }
}

impl RefusedTopics {
    /// Notes that the topic is in use, or returns why it cannot be.
    pub(super) fn refusal<C: ClientContext>(&mut self, topic: &str, client: &Client<C>) -> Option<String> {
        if !self.in_use.contains(topic) {
            self.in_use.insert(topic.to_owned());
        }
        let (refused, now) = (self.refused.get(topic)?, Instant::now());
        if self.next_question.is_none_or(|next| next <= now) || now.duration_since(refused.asked) >= VALIDITY
        {
            self.ask(topic, client, PATIENCE);
            self.next_question = Some(Instant::now() + INTERVAL.max(now.elapsed() * PART));
        }
        self.refused.get(topic).map(|refused| refused.reason.clone())
    }

    /// Asks for those that were in use when a pass got stuck, for no longer than `wait`.
    pub(super) fn look_for_cause<C: ClientContext>(&mut self, client: &Client<C>, wait: Duration) {
        let until = Instant::now() + wait;
        // What there is no time for now is asked next time.
        while let left = until.saturating_duration_since(Instant::now())
            && !left.is_zero()
            && let Some(topic) = self.in_use.pop_first()
        {
            self.ask(&topic, client, left);
        }
    }

    fn ask<C: ClientContext>(&mut self, topic: &str, client: &Client<C>, wait: Duration) {
        let was_refused = self.refused.remove(topic).is_some();
        // No answer says nothing about the topic.
        let Ok(metadata) = client.fetch_metadata(Some(topic), wait) else { return };
        let code = metadata.topics().first().and_then(|found| found.error()).map(RDKafkaErrorCode::from);
        let Some((code, reason)) = code.and_then(|code| Some((code, rejection(code, topic)?))) else {
            self.missing.found(topic);
            return;
        };
        let asked = Instant::now();
        if is_unknown_topic(code) && !was_refused && !self.missing.said(topic, asked) {
            return;
        }
        self.refused.insert(topic.to_owned(), Refused { reason, asked });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_missing_when_kafka_says_so_twice_and_not_an_hour_apart() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        let mut said = |seconds| missing.said("events", now + Duration::from_secs(seconds));
        assert!(!said(0));
        assert!(!said(0));
        assert!(said(15));
        assert!(!said(3_600));
        assert!(said(3_601));
    }
}
