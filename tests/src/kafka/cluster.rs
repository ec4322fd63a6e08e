//! Several brokers that replicate their records.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Kafka, PATIENCE, local};
use crate::docker;
use crate::host::{Host, Local, free_port, wait_until_ready};
use crate::java;
use crate::wait::eventually_ok;

/// Three brokers. The first one is also the controller, and leads every partition. The others can be stopped.
pub struct Cluster {
    /// All three.
    kafka: Kafka,
    followers: Vec<(Local, AtomicBool)>,
}

const FOLLOWERS: usize = 2;

impl Cluster {
    /// Starts three brokers for one test.
    #[track_caller]
    pub fn start() -> Self {
        assert!(
            docker::engine().is_none(),
            "a cluster is only started from local programs: set DOCKER_HOST to `none://` for this test"
        );
        let address = "127.0.0.1";
        let ports: Vec<u16> = (0..=FOLLOWERS).map(|_| free_port()).collect();
        let controller = free_port();
        let mut servers = ports.iter().enumerate().map(|(at, port)| {
            let id = (at + 1).to_string();
            let listener = format!("PLAINTEXT://{address}:{port}");
            let own: &[(&str, &str)] = match at {
                0 => &[],
                _ => &[("process.roles", "broker"), ("node.id", &id), ("listeners", &listener)],
            };
            local::install(local::properties(address, address, *port, controller, own), &java::QUICK)
        });
        let leader = servers.next().expect("the first broker");
        let followers: Vec<_> = servers.map(|server| (server, AtomicBool::new(false))).collect();
        let brokers: Vec<String> = ports.iter().map(|port| format!("{address}:{port}")).collect();
        leader.start();
        let kafka = Kafka { host: Box::new(leader), brokers: brokers.join(",") };
        let cluster = Self { kafka, followers };
        cluster.start_followers();
        cluster
    }

    /// Returns the brokers for reading.
    pub fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// Makes a topic whose partitions the first broker leads. At least two brokers must have a record before it is
    /// acknowledged.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: usize) {
        let admin: AdminClient<DefaultClientContext> = self.kafka.client().create().expect("an admin client");
        let replicas = vec![&[1, 2, 3][..]; partitions];
        let topic = NewTopic::new(name, partitions as i32, TopicReplication::Variable(&replicas))
            .set("min.insync.replicas", "2");
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let created = block_on(admin.create_topics([&topic], &options)).expect("ask for a topic");
        created[0].as_ref().unwrap_or_else(|(name, error)| panic!("the topic {name} was not made: {error}"));
    }

    /// Shuts the other brokers down. The first one then refuses records, because two brokers must have them.
    pub fn stop_followers(&self) {
        for (follower, runs) in &self.followers {
            if runs.swap(false, Ordering::Relaxed) {
                follower.stop();
            }
        }
    }

    /// Starts the other brokers, and waits until the cluster knows them.
    #[track_caller]
    pub fn start_followers(&self) {
        for (follower, runs) in &self.followers {
            if !runs.swap(true, Ordering::Relaxed) {
                follower.start();
            }
        }
        let consumer: BaseConsumer = self.kafka.client().create().expect("a consumer");
        for (follower, _) in &self.followers {
            wait_until_ready(follower, "Kafka", || {
                let metadata = consumer.fetch_metadata(None, Duration::from_secs(5));
                match metadata.map_err(|error| error.to_string())?.brokers().len() {
                    known if known > FOLLOWERS => Ok(()),
                    known => Err(format!("{known} brokers are known")),
                }
            });
        }
    }

    /// Waits until this many brokers replicate every partition of a topic.
    #[track_caller]
    pub fn wait_for_replicas(&self, topic: &str, replicas: usize) {
        let consumer: BaseConsumer = self.kafka.client().create().expect("a consumer");
        eventually_ok(&format!("{replicas} replicas of {topic}"), PATIENCE, || {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5));
            let metadata = metadata.map_err(|error| error.to_string())?;
            let partitions = metadata.topics().first().ok_or("no answer for the topic")?.partitions();
            let in_sync: Vec<usize> = partitions.iter().map(|partition| partition.isr().len()).collect();
            match !in_sync.is_empty() && in_sync.iter().all(|found| *found == replicas) {
                true => Ok(()),
                false => Err(format!("in sync are {in_sync:?}")),
            }
        });
    }
}
