//! Several brokers that replicate their records.

use std::slice::SliceIndex;
use std::sync::Arc;
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

/// Three brokers that can be stopped.
pub struct Cluster {
    /// All three.
    kafka: Kafka,
    members: Arc<Members>,
}

/// The brokers, and whether each runs.
struct Members(Vec<(Local, AtomicBool)>);

const BROKERS: usize = 3;

impl Cluster {
    /// Starts three brokers for one test. The first one is also the controller, so it must not be stopped. The others may be, even both.
    #[track_caller]
    pub fn start() -> Self {
        Self::launch(1)
    }

    /// Starts three brokers that are all controllers too, so that any one of them may be stopped.
    #[track_caller]
    pub fn start_with_quorum() -> Self {
        Self::launch(BROKERS)
    }

    #[track_caller]
    fn launch(controllers: usize) -> Self {
        assert!(
            docker::engine().is_none(),
            "a cluster is only started from local programs: set DOCKER_HOST to `none://` for this test"
        );
        let address = "127.0.0.1";
        let ports: Vec<u16> = (0..BROKERS).map(|_| free_port()).collect();
        let quorum: Vec<u16> = (0..controllers).map(|_| free_port()).collect();
        let voters: Vec<String> =
            (1..).zip(&quorum).map(|(id, port)| format!("{id}@{address}:{port}")).collect();
        let voters = voters.join(",");
        let members = ports.iter().enumerate().map(|(at, port)| {
            let id = (at + 1).to_string();
            let listener = format!("PLAINTEXT://{address}:{port}");
            let mut own = vec![("node.id", &*id), ("controller.quorum.voters", &*voters)];
            if at >= controllers {
                own.extend([("process.roles", "broker"), ("listeners", &*listener)]);
            }
            let controller = quorum.get(at).copied().unwrap_or_default();
            let properties = local::properties(address, address, *port, controller, &own);
            (local::install(properties, &java::QUICK), AtomicBool::new(false))
        });
        let members = Arc::new(Members(members.collect()));
        let brokers: Vec<String> = ports.iter().map(|port| format!("{address}:{port}")).collect();
        let kafka = Kafka { host: Box::new(members.clone()), brokers: brokers.join(",") };
        let cluster = Self { kafka, members };
        cluster.start_missing();
        cluster
    }

    /// Returns all brokers, to be read, or to be stopped and started together.
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
        self.members.end(1.., Local::stop);
    }

    /// Kills the broker with this number: 1, 2 or 3.
    pub fn crash(&self, number: usize) {
        self.members.end(number - 1..number, Local::crash);
    }

    /// Starts the brokers that do not run, and waits until the cluster knows all.
    #[track_caller]
    pub fn start_missing(&self) {
        self.members.start();
        let consumer: BaseConsumer = self.kafka.client().create().expect("a consumer");
        wait_until_ready(&self.members, "Kafka", || {
            let metadata = consumer.fetch_metadata(None, Duration::from_secs(5));
            match metadata.map_err(|error| error.to_string())?.brokers().len() {
                known if known >= BROKERS => Ok(()),
                known => Err(format!("{known} brokers are known")),
            }
        });
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

impl Members {
    fn end(
        &self,
        which: impl SliceIndex<[(Local, AtomicBool)], Output = [(Local, AtomicBool)]>,
        how: fn(&Local),
    ) {
        for (member, runs) in &self.0[which] {
            if runs.swap(false, Ordering::Relaxed) {
                how(member);
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = &Local> {
        self.0.iter().filter(|(_, runs)| runs.load(Ordering::Relaxed)).map(|(member, _)| member)
    }
}

impl Host for Arc<Members> {
    fn start(&self) {
        for (member, runs) in &self.0 {
            if !runs.swap(true, Ordering::Relaxed) {
                member.start();
            }
        }
    }

    fn stop(&self) {
        self.end(.., Local::stop);
    }

    fn crash(&self) {
        self.end(.., Local::crash);
    }

    fn pause(&self) {
        self.running().for_each(Local::pause);
    }

    fn resume(&self) {
        self.running().for_each(Local::resume);
    }

    fn failure(&self) -> Option<String> {
        self.running().find_map(Local::failure)
    }
}
