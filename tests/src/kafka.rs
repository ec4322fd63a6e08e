//! Apache Kafka brokers and topics for tests.

mod administer;
mod cluster;
mod count;
mod local;
mod raw;
mod read;
mod tls;

use std::env;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::artifacts;
use crate::docker;
use crate::host::{Elsewhere, Host, free_port, wait_until_ready};
use crate::java;
use crate::wait::eventually_ok;

pub use cluster::Cluster;
pub use count::Counter;
pub use raw::{Packing, RawRecord};
pub use read::ReadRecord;
pub use tls::TlsKafka;

const ADDRESS: &str = "OUTBOX_TEST_KAFKA_BROKERS";
const PATIENCE: Duration = Duration::from_secs(30);

/// A running broker. It makes a topic of 3 partitions at the first write to it.
pub struct Kafka {
    host: Box<dyn Host>,
    brokers: String,
}

impl Kafka {
    /// Returns the broker that the tests of this process share. It starts on first use.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| match env::var(ADDRESS) {
            Ok(brokers) => Self::at(&brokers),
            Err(_) => Self::start(),
        })
    }

    /// Starts a broker for one test, which may stop it.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a broker with server properties of its own, such as `("message.max.bytes", "2000")`.
    pub fn start_with(properties: &[(&str, &str)]) -> Self {
        Self::launch(properties, &java::QUICK)
    }

    /// Starts a broker for measurements. With [`Kafka::start`] a broker starts sooner, with this it is faster once it is warm.
    /// In a container it is always like this.
    pub fn start_for_benchmark(properties: &[(&str, &str)]) -> Self {
        Self::launch(properties, &java::FAST)
    }

    fn launch(properties: &[(&str, &str)], java_options: &[&str]) -> Self {
        let (port, controller) = (free_port(), free_port());
        let (host, address): (Box<dyn Host>, _) = match docker::engine() {
            Some(address) => {
                let properties = local::properties(address, "0.0.0.0", port, controller, properties);
                (Box::new(docker::kafka(artifacts::KAFKA, port, &properties)), address)
            }
            None => {
                let address = "127.0.0.1";
                let properties = local::properties(address, address, port, controller, properties);
                (Box::new(local::install(properties, java_options)), address)
            }
        };
        let kafka = Self { host, brokers: format!("{address}:{port}") };
        kafka.host.start();
        kafka.wait_until_ready();
        kafka
    }

    /// Returns brokers that somebody else has started, such as mock brokers.
    pub fn at(brokers: &str) -> Self {
        let kafka = Self { host: Box::new(Elsewhere { variable: ADDRESS }), brokers: brokers.to_owned() };
        kafka.wait_until_ready();
        kafka
    }

    fn wait_until_ready(&self) {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        wait_until_ready(&*self.host, "Kafka", || {
            let metadata = consumer.fetch_metadata(Some("outbox-test-ready"), Duration::from_millis(500));
            let metadata = metadata.map_err(|error| error.to_string())?;
            (!metadata.brokers().is_empty())
                .then_some(())
                .ok_or_else(|| "no broker has registered".to_owned())
        });
    }

    /// Returns the addresses of its brokers for `bootstrap.servers`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Returns the beginning of a client's configuration: the addresses, and short waits between attempts to connect.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("reconnect.backoff.ms", "10").set("reconnect.backoff.max.ms", "100");
        config
    }

    /// Returns `name` with an ending that no other test has, for a topic, a topic prefix or a consumer group.
    pub fn unique(&self, name: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let started = std::time::UNIX_EPOCH.elapsed().expect("a clock past 1970").as_millis();
        format!("{name}-{}-{started}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a topic, and waits until it can be written to.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]);
    }

    /// Makes a topic with settings of its own, such as `("max.message.bytes", "1000")`.
    #[track_caller]
    pub fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        self.create(&[name], partitions, settings);
    }

    /// Makes many topics at once, and waits until each can be written to.
    #[track_caller]
    pub fn create_topics(&self, names: &[&str], partitions: i32) {
        self.create(names, partitions, &[]);
    }

    #[track_caller]
    fn create(&self, names: &[&str], partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let topic = |name| {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
            settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        };
        let topics: Vec<NewTopic<'_>> = names.iter().copied().map(topic).collect();
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for created in block_on(admin.create_topics(&topics, &options)).expect("ask for topics") {
            created.unwrap_or_else(|(name, error)| panic!("the topic {name} was not made: {error}"));
        }
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        for name in names {
            eventually_ok(&format!("the topic {name}"), PATIENCE, || {
                match read::partitions(&consumer, name)?.len() {
                    found if found == partitions as usize => Ok(()),
                    found => Err(format!("{found} partitions have a leader")),
                }
            });
        }
    }

    /// Shuts the broker down.
    pub fn stop(&self) {
        self.host.stop();
    }

    /// Kills the broker.
    pub fn crash(&self) {
        self.host.crash();
    }

    /// Returns whether the broker has ended without being asked to.
    pub fn has_ended(&self) -> bool {
        self.host.failure().is_some()
    }

    /// Starts the broker again on the same port with its data. If it runs, it is stopped first.
    pub fn restart(&self) {
        self.host.stop();
        self.host.start();
        self.wait_until_ready();
    }

    /// Freezes the broker. Connections stay open, but it answers nothing.
    pub fn pause(&self) {
        self.host.pause();
    }

    /// Resumes a frozen broker.
    pub fn resume(&self) {
        self.host.resume();
    }
}
