mod deliveries;
mod topics;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Acknowledgement, Broker, Publisher, PublisherError, Record, Refusal, wire};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use uuid::fmt::Hyphenated;

use self::deliveries::Deliveries;
use self::topics::Topics;
use crate::error::{refusal_of_property, rejection};

/// Kafka as the relay's broker.
///
/// The producer is idempotent and waits for all in-sync replicas; partitions are chosen as Java clients and Debezium
/// choose them. It never lets a message time out by itself, as that would leave a gap in an aggregate's order: when Kafka
/// is away the relay notices, and still has the rows. It sends at once (`linger.ms` 0), and holds up to 100,000 records
/// and 64 MiB (`queue.buffering.max.messages`, `queue.buffering.max.kbytes`) that are not acknowledged.
///
/// ```
/// use diesel_outbox_kafka::Kafka;
///
/// let kafka = Kafka::new("broker-1:9092,broker-2:9092")
///     .set("compression.type", "lz4")
///     .set("linger.ms", "5");
/// ```
#[derive(Clone)]
pub struct Kafka {
    settings: BTreeMap<String, String>,
    own_headers: bool,
}

impl Kafka {
    /// Kafka at these addresses, `host:port` with commas between them.
    pub fn new(brokers: impl Into<String>) -> Self {
        let settings = [
            ("bootstrap.servers", brokers.into().as_str()),
            ("client.id", "outbox-relay"),
            ("enable.idempotence", "true"),
            // A refused batch stops the producer: nothing that came after it overtakes it.
            ("enable.gapless.guarantee", "true"),
            ("acks", "all"),
            ("partitioner", "murmur2_random"),
            ("message.timeout.ms", "0"),
            ("linger.ms", "0"),
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "65536"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { settings: settings.into(), own_headers: true }
    }

    /// Sets any [property of librdkafka](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md),
    /// replacing what this crate chose. Order and durability depend on `enable.idempotence`, `acks` and
    /// `message.timeout.ms`: leave those as they are. A property that librdkafka refuses is an error where the relay
    /// begins.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Whether an event's own headers are sent, after `id` and `eventType`; `eventVersion` is one of them. Without them a
    /// record is byte for byte what Debezium's Outbox Event Router makes of it, as that cannot send them. Default: true.
    #[must_use]
    pub fn own_headers(mut self, sent: bool) -> Self {
        self.own_headers = sent;
        self
    }

    fn producer(&self, batching: Batching) -> Result<BaseProducer<Deliveries>, PublisherError> {
        let mut config = ClientConfig::new();
        for (name, value) in &self.settings {
            config.set(name, value);
        }
        if batching == Batching::Single {
            config.set("batch.num.messages", "1");
        }
        config.create_with_context(Deliveries::new(batching)).map_err(|error| match error {
            KafkaError::ClientConfig(_, reason, name, value) => PublisherError::new(format!(
                "the Kafka property `{name}` is refused: {}",
                refusal_of_property(&name, &value, &reason)
            )),
            error => {
                PublisherError::because(format!("the Kafka producer's settings are wrong: {error}"), error)
            }
        })
    }
}

/// Shows the names of the settings and the brokers, not the other values: some are secrets.
impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("brokers", &self.settings.get("bootstrap.servers"))
            .field("settings", &self.settings.keys().collect::<Vec<_>>())
            .field("own_headers", &self.own_headers)
            .finish()
    }
}

impl Broker for Kafka {
    fn publisher(&self) -> Result<Box<dyn Publisher>, PublisherError> {
        let producer = Some(self.producer(Batching::Many)?);
        Ok(Box::new(KafkaPublisher {
            kafka: self.clone(),
            producer,
            batching: Batching::Many,
            topics: Topics::default(),
            in_flight: 0,
            delivered: 0,
        }))
    }
}

/// How records go into batches. Kafka refuses a whole batch for one bad record, so after that they go one by one until the
/// bad one is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Batching {
    Many,
    Single,
}

/// How many records must have been delivered one by one before they go in batches again.
const SINGLE_DELIVERIES: usize = 10_000;

/// librdkafka counts in milliseconds.
const SHORTEST_POLL: Duration = Duration::from_millis(1);

struct KafkaPublisher {
    kafka: Kafka,
    /// Nothing after it was abandoned.
    producer: Option<BaseProducer<Deliveries>>,
    batching: Batching,
    topics: Topics,
    in_flight: usize,
    /// Since records go as they go now.
    delivered: usize,
}

// A ticket travels through librdkafka in a pointer.
const _: () = assert!(usize::BITS >= u64::BITS, "the publisher needs a machine with pointers of 64 bits");

impl KafkaPublisher {
    /// The producer, which is made where there is none, and what is known of topics.
    fn producer(&mut self) -> Result<(&BaseProducer<Deliveries>, &mut Topics), PublisherError> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            none => none.insert(self.kafka.producer(self.batching)?),
        };
        Ok((producer, &mut self.topics))
    }
}

impl Publisher for KafkaPublisher {
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal> {
        let in_flight = self.in_flight;
        let own_headers = if self.kafka.own_headers { record.headers() } else { &[] };
        let (producer, topics) =
            self.producer().map_err(|error| Refusal::Retry { reason: error.to_string() })?;
        if let Some(reason) = topics.refusal(topic, producer.client()) {
            return Err(Refusal::Rejected { reason });
        }
        let mut id = [0; Hyphenated::LENGTH];
        let id: &str = record.id().as_hyphenated().encode_lower(&mut id);
        let mut headers = OwnedHeaders::new_with_capacity(own_headers.len() + 2)
            .insert(Header { key: wire::ID_HEADER, value: Some(id) })
            .insert(Header { key: wire::EVENT_TYPE_HEADER, value: Some(record.event_type()) });
        for (key, value) in own_headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut message = BaseRecord::<str, [u8], usize>::with_opaque_to(topic, ticket as usize)
            .key(record.aggregate_id())
            .headers(headers);
        message.payload = record.payload();
        message.timestamp = record.created_at_ms();
        match producer.send(message) {
            Ok(()) => {
                self.in_flight += 1;
                Ok(())
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if in_flight > 0 => {
                Err(Refusal::Full)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Err(Refusal::Rejected {
                reason: "the record does not even fit into the producer's empty queue: raise \
                         `queue.buffering.max.kbytes` above `message.max.bytes`, then requeue"
                    .to_owned(),
            }),
            Err((error, _)) => {
                Err(match error.rdkafka_error_code().and_then(|code| rejection(code, topic)) {
                    Some(reason) => Refusal::Rejected { reason },
                    None => Refusal::Retry { reason: error.to_string() },
                })
            }
        }
    }

    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublisherError> {
        let (producer, _) = self.producer()?;
        // A poll serves what has arrived, and always lasts as long as it is told to: in short ones the first to arrive is
        // told at once.
        let began = Instant::now();
        producer.poll(Duration::ZERO);
        while producer.context().is_empty() && began.elapsed() < wait {
            producer.poll(SHORTEST_POLL);
        }
        let known = acknowledgements.len();
        producer.context().drain(acknowledgements);
        let new = acknowledgements.len() - known;
        let fatal_error = producer.client().fatal_error();
        if producer.context().batch_was_refused() {
            self.batching = Batching::Single;
            self.delivered = 0;
        }
        self.in_flight = self.in_flight.saturating_sub(new);
        self.delivered += new;
        match fatal_error {
            // What became known before it failed is told first.
            Some((code, message)) if new == 0 => {
                Err(PublisherError::new(format!("the Kafka producer failed for good ({code}): {message}")))
            }
            Some(_) => Ok(()),
            None => {
                if self.batching == Batching::Single
                    && self.in_flight == 0
                    && self.delivered >= SINGLE_DELIVERIES
                {
                    self.batching = Batching::Many;
                    self.abandon();
                }
                Ok(())
            }
        }
    }

    fn abandon(&mut self) {
        // Dropping it purges what is queued and in flight.
        self.producer = None;
        self.in_flight = 0;
        self.delivered = 0;
    }

    fn ready(&mut self, wait: Duration) -> Result<(), PublisherError> {
        let (producer, topics) = self.producer()?;
        if producer.client().fetch_cluster_id(wait).is_none() {
            return Err(PublisherError::new(format!("Kafka does not answer within {wait:?}")));
        }
        topics.look_for_cause(producer.client(), wait);
        Ok(())
    }
}
