//! What Kafka says of itself and of topics, for whoever examines an outbox.

use std::time::Duration;

use diesel_outbox_core::PublishError;
use futures_executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::types::RDKafkaErrorCode;

use super::Kafka;
use super::settings;
use crate::error::rejection;

const PATIENCE: Duration = Duration::from_secs(5);

/// A cluster.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cluster {
    pub brokers: usize,
    /// Whether it makes a topic as soon as somebody writes to it, as far as the relay may see that.
    pub makes_topics: bool,
    pub topics: Vec<Topic>,
}

/// A topic, with the numbers of its worst partition.
#[derive(Debug)]
#[non_exhaustive]
pub struct Topic {
    pub name: String,
    /// Whether Kafka has it, and shows it to the relay.
    pub is_there: bool,
    /// Why the relay cannot write to it, as far as Kafka says.
    pub problem: Option<String>,
    pub partitions: usize,
    pub replicas: usize,
    pub in_sync: usize,
    /// If the relay may see the topic's settings.
    pub min_in_sync: Option<usize>,
}

impl Topic {
    pub fn new(
        name: &str,
        partitions: usize,
        replicas: usize,
        in_sync: usize,
        min_in_sync: Option<usize>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            is_there: true,
            problem: None,
            partitions,
            replicas,
            in_sync,
            min_in_sync,
        }
    }

    fn missing(name: &str) -> Self {
        Self { is_there: false, ..Self::new(name, 0, 0, 0, None) }
    }

    fn of(found: &MetadataTopic, min_in_sync: Option<usize>) -> Self {
        let partitions = found.partitions();
        let least =
            |count: fn(&MetadataPartition) -> usize| partitions.iter().map(count).min().unwrap_or_default();
        let (replicas, in_sync) = (least(|p| p.replicas().len()), least(|p| p.isr().len()));
        let mut topic = Self::new(found.name(), partitions.len(), replicas, in_sync, min_in_sync);
        topic.problem = found.error().map(|code| {
            let code = RDKafkaErrorCode::from(code);
            rejection(code, found.name()).unwrap_or_else(|| format!("the topic `{}`: {code}", found.name()))
        });
        topic
    }
}

/// Asks Kafka, with the relay's settings.
///
/// # Errors
/// An error if Kafka does not answer, or if a setting is wrong.
pub fn look(kafka: &Kafka, topics: &[String]) -> Result<Cluster, PublishError> {
    settings::check(&kafka.settings)?;
    let mut config = ClientConfig::new();
    for (name, value) in &kafka.settings {
        if !OF_PRODUCERS.contains(&name.as_str()) {
            config.set(name, value);
        }
    }
    let failed = |error: rdkafka::error::KafkaError| PublishError::new(error.to_string()).with_source(error);
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(failed)?;
    // To ask for one topic would make it, if the brokers make topics by themselves.
    let cluster = admin.inner().fetch_metadata(None, PATIENCE).map_err(failed)?;
    let makes_topics = cluster.brokers().first().and_then(|broker| {
        let setting = setting(&admin, &ResourceSpecifier::Broker(broker.id()), "auto.create.topics.enable")?;
        Some(setting == "true")
    });
    let topic = |name: &String| match cluster.topics().iter().find(|found| found.name() == name) {
        Some(found) => {
            let least = setting(&admin, &ResourceSpecifier::Topic(name), "min.insync.replicas");
            Topic::of(found, least.and_then(|least| least.parse().ok()))
        }
        None => Topic::missing(name),
    };
    Ok(Cluster {
        brokers: cluster.brokers().len(),
        makes_topics: makes_topics.unwrap_or_default(),
        topics: topics.iter().map(topic).collect(),
    })
}

/// Properties that only a producer has, so that librdkafka warns of them.
const OF_PRODUCERS: [&str; 9] = [
    "enable.idempotence",
    "enable.gapless.guarantee",
    "acks",
    "partitioner",
    "message.timeout.ms",
    "linger.ms",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "compression.type",
];

/// `None` if the relay may not see it.
fn setting(
    admin: &AdminClient<DefaultClientContext>,
    of: &ResourceSpecifier<'_>,
    name: &str,
) -> Option<String> {
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let described = block_on(admin.describe_configs([of], &options)).ok()?;
    described.into_iter().next()?.ok()?.get(name)?.value.clone()
}
