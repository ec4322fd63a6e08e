mod deliveries;
#[allow(missing_docs)]
pub mod examined;
pub(crate) mod gate;
pub(crate) mod murmur2;
mod partitioner;
mod producer;
#[cfg(not(fuzzing))]
mod progress;
#[cfg(fuzzing)]
#[allow(missing_docs)]
pub mod progress;
pub(crate) mod settings;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_outbox_core::__private::unix_ms;
use diesel_outbox_core::{Acknowledgement, Broker, Lane, PublishError, Publisher, Record, Refusal, wire};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::types::RDKafkaErrorCode;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use self::deliveries::Deliveries;
use self::gate::{Gate, NotTaken, Wait};
use self::producer::Producer;
use self::topics::RefusedTopics;
use self::transactions::Transactions;
use crate::error::{refusal, refusal_of_property};
use crate::log::Errors;

/// Kafka as the relay's broker.
///
/// The producer is idempotent and waits for all in-sync replicas. It chooses partitions as Java clients and Debezium
/// do. It never lets a message time out by itself, because that would leave a gap in an aggregate's order: if Kafka
/// is away the relay notices, and still has the rows. The producer sends at once (`linger.ms` 0), and holds up to 100,000 records
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
    event_headers: bool,
    exactly_once_prefix: String,
    /// What its producers have logged, whichever had the error.
    errors: Arc<Errors>,
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
            (QUEUE_KBYTES, "65536"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            settings: settings.into(),
            event_headers: true,
            exactly_once_prefix: "outbox.progress".to_owned(),
            errors: Arc::default(),
        }
    }

    /// Sets a [property of librdkafka](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), in place of
    /// this crate's own value.
    ///
    /// If librdkafka refuses the property, the relay does not start. Nor does it with another value than this crate's for the
    /// properties on which order and durability depend: `enable.idempotence`,
    /// `enable.gapless.guarantee`, `acks`, `message.timeout.ms`, `retries`, `partitioner`, `queuing.strategy`,
    /// `delivery.report.only.error`, `transactional.id`, `test.mock.num.brokers`, more than 5
    /// `max.in.flight.requests.per.connection`, more than 500 `linger.ms`, and their aliases.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        settings::set(&mut self.settings, name.into(), value.into());
        self
    }

    /// Sets whether an event's own headers are sent, after `id` and `eventType`; `eventVersion` is one of them. Default: true.
    ///
    /// Without them a record is byte for byte what Debezium's Outbox Event Router makes of it, which cannot send them.
    #[must_use]
    pub fn event_headers(mut self, sent: bool) -> Self {
        self.event_headers = sent;
        self
    }

    /// Sets the prefix for a relay that sends exactly once. Default: `outbox.progress`.
    ///
    /// It precedes the name of the outbox, such as `outbox.progress.shop.public`, in the `transactional.id`s and in the name of the topic
    /// that has the ids of what was sent last. Two outboxes of the same name that send to one Kafka, such as those of two servers, need
    /// different prefixes. With the same, only the first one sends, if they are on PostgreSQL; on other databases they keep each other from
    /// sending, and may send twice. If you change it, stop the relays first and let none be killed, because a relay looks for what was sent under the new name only.
    #[must_use]
    pub fn exactly_once_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.exactly_once_prefix = prefix.into();
        self
    }

    /// Returns those of the settings that say how to connect.
    pub(crate) fn connection(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in settings::of_connection(&self.settings) {
            config.set(name, value);
        }
        config
    }

    /// Returns how many bytes of payloads librdkafka's queue takes.
    fn queue_size(&self) -> usize {
        let kbytes =
            settings::get(&self.settings, QUEUE_KBYTES).and_then(|kbytes| kbytes.parse::<usize>().ok());
        kbytes.map_or(usize::MAX, |kbytes| kbytes.saturating_mul(1024))
    }

    fn producer(&self, batching: Batching, transactional_id: Option<&str>) -> Result<Producer, PublishError> {
        let mut config = ClientConfig::new();
        for (name, value) in &self.settings {
            // What times out in a transaction leaves no gap, because nothing of the transaction is committed.
            if transactional_id.is_none() || settings::canonical(name) != "message.timeout.ms" {
                config.set(name, value);
            }
        }
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
        }
        match batching {
            Batching::Many => {}
            Batching::Small => {
                let own = settings::get(&self.settings, BATCH_SIZE).and_then(|bytes| bytes.parse().ok());
                config.set(BATCH_SIZE, SMALL_BATCH.min(own.unwrap_or(SMALL_BATCH)).to_string());
            }
            Batching::Single => {
                config.set("batch.num.messages", "1");
            }
        }
        match Producer::start(&config, Deliveries::new(batching, self.errors.clone())) {
            Ok(Ok(producer)) => Ok(producer),
            Ok(Err(error)) => {
                Err(PublishError::new(format!("the Kafka producer's thread could not be started: {error}"))
                    .with_source(error))
            }
            Err(KafkaError::ClientConfig(_, reason, name, value)) => Err(PublishError::new(format!(
                "the Kafka property `{name}` is refused: {}",
                refusal_of_property(&name, &value, &reason)
            ))),
            Err(error) => Err(PublishError::new(format!("the Kafka producer's settings are wrong: {error}"))
                .with_source(error)),
        }
    }
}

/// Shows the names of the settings and the brokers, not the other values: some are secrets.
impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("brokers", &settings::get(&self.settings, "bootstrap.servers"))
            .field("settings", &self.settings.keys().collect::<Vec<_>>())
            .field("event_headers", &self.event_headers)
            .finish()
    }
}

impl Broker for Kafka {
    fn publisher(&self) -> Result<Box<dyn Publisher>, PublishError> {
        settings::check(&self.settings)?;
        if let Some(problem) = transactions::problem_of_prefix(&self.exactly_once_prefix) {
            return Err(PublishError::new(format!(
                "the prefix for sending exactly once is wrong: {problem}"
            )));
        }
        let producer = Some(self.producer(Batching::Many, None)?);
        Ok(Box::new(KafkaPublisher {
            kafka: self.clone(),
            producer,
            batching: Batching::Many,
            batches_again: FEWEST_DELIVERIES / TIMES,
            gate: Gate::default(),
            topics: RefusedTopics::default(),
            transactions: None,
            in_flight: 0,
            delivered: 0,
        }))
    }
}

/// How records go into batches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Batching {
    Many,
    /// Kafka acknowledges a batch when it has all of it. On a narrow way that may take so long that the relay gives up, and would send
    /// the same again for ever. So after that they are small.
    Small,
    /// Kafka refuses a whole batch for one bad record, so after that they go one by one until the bad one is known.
    Single,
}

const QUEUE_KBYTES: &str = "queue.buffering.max.kbytes";

const BATCH_SIZE: &str = "batch.size";
/// In bytes. A larger record is a batch of its own.
const SMALL_BATCH: usize = 8 << 10;

/// How many records must have been delivered before the publisher sends large batches again. It waits for more, up to a limit, each time
/// when it has had to send small ones: what is given up is sent twice.
const FEWEST_DELIVERIES: usize = 10_000;
const MOST_DELIVERIES: usize = 1_000_000;
const TIMES: usize = 4;

/// How long a producer that failed may take to say what became of the last records.
const LAST_WORDS: Duration = Duration::from_millis(100);

struct KafkaPublisher {
    kafka: Kafka,
    /// None after it was abandoned.
    producer: Option<Producer>,
    gate: Gate,
    batching: Batching,
    /// After how many deliveries it sends large batches again.
    batches_again: usize,
    topics: RefusedTopics,
    /// Set if the relay sends exactly once.
    transactions: Option<Transactions>,
    in_flight: usize,
    /// How many, since records go as they go now.
    delivered: usize,
}

// A ticket travels through librdkafka in a pointer.
const _: () = assert!(usize::BITS >= u64::BITS, "the publisher needs a machine with pointers of 64 bits");

impl KafkaPublisher {
    /// Returns the producer, which is made if there is none, what it has on its way, and what is known of topics.
    fn producer(&mut self) -> Result<(&Producer, &mut Gate, &mut RefusedTopics), PublishError> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            none => {
                let name = self.transactions.as_ref().map(|transactions| &*transactions.name);
                none.insert(self.kafka.producer(self.batching, name)?)
            }
        };
        Ok((producer, &mut self.gate, &mut self.topics))
    }

    /// Opens a transaction for this record, if the relay sends exactly once.
    fn open(&mut self, id: Uuid) -> Result<(), Refusal> {
        let Some(transactions) = &mut self.transactions else { return Ok(()) };
        if let Some(reason) = transactions.refusal(id) {
            return Err(Refusal::Rejected { reason });
        }
        let opened = match &self.producer {
            Some(producer) => transactions.open(producer),
            None => Err(PublishError::new("the relay has not taken the outbox over")),
        };
        opened.map_err(|error| Refusal::Retry { reason: error.to_string() })
    }

    /// Hands one record to the producer.
    fn take(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal> {
        self.open(record.id())?;
        let in_flight = self.in_flight;
        let event_headers = if self.kafka.event_headers { record.headers() } else { &[] };
        let (producer, gate, topics) =
            self.producer().map_err(|error| Refusal::Retry { reason: error.to_string() })?;
        if let Some(reason) = topics.refusal(topic, producer.client()) {
            return Err(Refusal::Rejected { reason });
        }
        let send = || {
            let message = message(ticket, topic, record, event_headers);
            producer.base().send(message).map_err(|(error, _)| NotTaken {
                is_unknown_partition: error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition),
                error,
            })
        };
        let passed =
            gate.pass(Instant::now(), in_flight, ticket, topic, record.aggregate_id().as_bytes(), send);
        let passed = passed.map_err(|wait| match wait {
            Wait::Behind(ticket) => Refusal::Behind { ticket },
            Wait::All => Refusal::Full,
        });
        match passed? {
            Ok(()) => {
                self.in_flight += 1;
                if let Some(transactions) = &mut self.transactions {
                    transactions.sent(ticket, record.id());
                }
                Ok(())
            }
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {
                // With nothing in flight too: librdkafka frees what was acknowledged a moment later.
                let size = record.payload().map_or(0, <[u8]>::len);
                Err(if size > self.kafka.queue_size() {
                    Refusal::Rejected {
                        reason: "the record does not even fit into the producer's empty queue: raise \
                                 `queue.buffering.max.kbytes` above `message.max.bytes`, then requeue"
                            .to_owned(),
                    }
                } else {
                    Refusal::Full
                })
            }
            Err(error) => Err(match refusal(&error, topic) {
                Some(reason) => Refusal::Rejected { reason },
                None => Refusal::Retry { reason: error.to_string() },
            }),
        }
    }

    /// Forgets the producers, and returns them.
    fn let_go(&mut self) -> impl Iterator<Item = Producer> {
        let others = self.transactions.as_mut().map(Transactions::abandon).unwrap_or_default();
        self.producer.take().into_iter().chain(others.into_iter().map(|(producer, _)| producer))
    }

    /// Sends batches again if enough records have gone one by one since the last bad one.
    fn may_batch_again(&mut self) {
        let enough = match self.batching {
            Batching::Many => return,
            Batching::Small => self.batches_again,
            Batching::Single => FEWEST_DELIVERIES,
        };
        if self.in_flight == 0 && self.delivered >= enough {
            self.batching = Batching::Many;
            self.abandon();
        }
    }
}

impl Publisher for KafkaPublisher {
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal> {
        let taken = self.take(ticket, topic, record);
        if let (Err(Refusal::Rejected { reason }), Some(transactions)) = (&taken, &mut self.transactions) {
            transactions.refuse(record.id(), reason);
        }
        taken
    }

    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        let (known, in_flight) = (acknowledgements.len(), self.in_flight);
        let (producer, gate, _) = self.producer()?;
        producer.deliveries().wait(wait, in_flight, acknowledgements);
        let fatal_error = producer.client().fatal_error();
        if fatal_error.is_some() && acknowledgements.len() == known && in_flight > 0 {
            producer.deliveries().wait(LAST_WORDS, in_flight, acknowledgements);
        }
        let new = acknowledgements.len() - known;
        gate.learn(Instant::now(), &acknowledgements[known..]);
        let batch_was_refused = producer.deliveries().batch_was_refused();
        if let Some(transactions) = &mut self.transactions {
            transactions.learn(&mut acknowledgements[known..]);
        }
        if batch_was_refused {
            self.batching = Batching::Single;
            self.delivered = 0;
        }
        self.in_flight = self.in_flight.saturating_sub(new);
        self.delivered += new;
        match fatal_error {
            // What became known before it failed comes first.
            Some((code, message)) if new == 0 => {
                Err(PublishError::new(format!("the Kafka producer failed permanently ({code}): {message}")))
            }
            Some(_) => Ok(()),
            None => {
                if self.transactions.is_none() {
                    self.may_batch_again();
                }
                Ok(())
            }
        }
    }

    fn abandon(&mut self) {
        if self.in_flight > 0 && self.batching == Batching::Many {
            self.batching = Batching::Small;
            self.batches_again = (self.batches_again * TIMES).min(MOST_DELIVERIES);
        }
        drop(self.let_go());
        self.gate = Gate::default();
        self.in_flight = 0;
        self.delivered = 0;
    }

    fn ready(&mut self, wait: Duration) -> Result<(), PublishError> {
        let (producer, _, topics) = self.producer()?;
        if producer.client().fetch_cluster_id(wait).is_none() {
            return Err(PublishError::new(format!("Kafka does not answer within {wait:?}")));
        }
        topics.look_for_cause(producer.client(), wait);
        Ok(())
    }

    fn begin(&mut self, lane: &Lane<'_>, wait: Duration) -> Result<Option<Vec<Uuid>>, PublishError> {
        let name = transactions::name(&self.kafka.exactly_once_prefix, lane.outbox);
        if self.transactions.as_ref().is_none_or(|transactions| transactions.name != name) {
            self.abandon();
            self.transactions = Some(Transactions::new(name));
        }
        if let Some(transactions) = &mut self.transactions
            && transactions.is_owner
        {
            transactions.begin_pass(lane.undoable_passes);
            return Ok(None);
        }
        let until = Instant::now() + wait;
        self.producer()?;
        let config = self.kafka.connection();
        let (Some(transactions), Some(producer)) = (&mut self.transactions, &self.producer) else {
            return Ok(None);
        };
        let others = transactions.other_ids().map(|id| self.kafka.producer(self.batching, Some(&id)));
        let others = others.collect::<Result<_, _>>()?;
        transactions.take_over(producer, others, lane, config, until).map(Some)
    }

    fn commit_ahead(&mut self, wait: Duration) -> Result<(), PublishError> {
        if let (Some(transactions), Some(producer)) = (&mut self.transactions, &mut self.producer) {
            transactions.commit_ahead(producer, &mut self.gate, wait)?;
        }
        Ok(())
    }

    fn commit(&mut self, wait: Duration) -> Result<(), PublishError> {
        if let (Some(transactions), Some(producer)) = (&mut self.transactions, &mut self.producer) {
            transactions.commit(producer, &mut self.gate, wait)?;
            self.may_batch_again();
        }
        Ok(())
    }
}

/// A relay that has stopped must not be connected any more.
impl Drop for KafkaPublisher {
    fn drop(&mut self) {
        producer::close(self.let_go());
    }
}

fn message<'a>(
    ticket: u64,
    topic: &'a str,
    record: &'a Record,
    event_headers: &[(String, String)],
) -> BaseRecord<'a, str, [u8], usize> {
    let mut id = [0; Hyphenated::LENGTH];
    let id: &str = record.id().as_hyphenated().encode_lower(&mut id);
    let mut headers = OwnedHeaders::new_with_capacity(event_headers.len() + 2)
        .insert(Header { key: wire::ID_HEADER, value: Some(id) })
        .insert(Header { key: wire::EVENT_TYPE_HEADER, value: Some(record.event_type()) });
    for (key, value) in event_headers {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    let mut message =
        BaseRecord::with_opaque_to(topic, ticket as usize).key(record.aggregate_id()).headers(headers);
    message.payload = record.payload();
    message.timestamp = record.created_at().map(unix_ms);
    message
}
