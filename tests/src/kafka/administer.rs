//! What an administrator does that librdkafka has no request for: who may write to a topic, and which broker leads it.

use std::net::TcpStream;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::raw::{Api, ask, put_text};
use super::{Kafka, PATIENCE};
use crate::wait::eventually_ok;

// Numbers of Kafka's protocol.
const TOPIC: u8 = 2;
const LITERAL: u8 = 3;
const ANY: u8 = 1;
const ALL: u8 = 2;
const WRITE: u8 = 4;
const DENY: u8 = 2;
const ALLOW: u8 = 3;
const PREFERRED: u8 = 0;

const CREATE_ACLS: Api = Api { key: 30, version: 1 };
const DELETE_ACLS: Api = Api { key: 31, version: 1 };
const ELECT_LEADERS: Api = Api { key: 43, version: 1 };
const REASSIGN: Api = Api { key: 45, version: 0 };

impl Kafka {
    /// Forbids everybody to write to a topic. The broker must have an authorizer that allows what nobody has restricted.
    #[track_caller]
    pub fn deny_writes(&self, topic: &str) {
        let mut request = 2_i32.to_be_bytes().to_vec();
        // With one entry for a topic, nobody may do anything else with it unless another one says so.
        for (operation, permission) in [(ALL, ALLOW), (WRITE, DENY)] {
            request.push(TOPIC);
            put_text(&mut request, Some(topic));
            request.push(LITERAL);
            put_text(&mut request, Some("User:*"));
            put_text(&mut request, Some("*"));
            request.extend([operation, permission]);
        }
        let answer = self.ask_any(CREATE_ACLS, &request);
        // How long it was throttled, how many results, and the first one's error.
        assert_eq!(answer[4 + 4..][..2], [0, 0], "the broker did not restrict the topic {topic}");
    }

    /// Allows again what [`deny_writes`](Self::deny_writes) has forbidden.
    #[track_caller]
    pub fn allow_writes(&self, topic: &str) {
        let mut request = 1_i32.to_be_bytes().to_vec();
        request.push(TOPIC);
        put_text(&mut request, Some(topic));
        request.push(LITERAL);
        put_text(&mut request, None);
        put_text(&mut request, None);
        request.extend([ANY, ANY]);
        let answer = self.ask_any(DELETE_ACLS, &request);
        assert_eq!(answer[4 + 4..][..2], [0, 0], "the broker did not free the topic {topic}");
    }

    /// Makes the first of these brokers, which all have the records already, the leader of the topic's first `partitions` partitions.
    /// Waits until it is.
    #[track_caller]
    pub fn lead(&self, topic: &str, partitions: i32, brokers: &[i32]) {
        let mut request = vec![0]; // no tags in the header
        request.extend((PATIENCE.as_millis() as i32).to_be_bytes());
        compact(&mut request, 1);
        compact(&mut request, topic.len());
        request.extend(topic.as_bytes());
        compact(&mut request, partitions as usize);
        for partition in 0..partitions {
            request.extend(partition.to_be_bytes());
            compact(&mut request, brokers.len());
            brokers.iter().for_each(|broker| request.extend(broker.to_be_bytes()));
            request.push(0);
        }
        request.extend([0, 0]);
        let answer = self.ask_any(REASSIGN, &request);
        assert_eq!(answer[1 + 4..][..2], [0, 0], "the brokers did not reassign the topic {topic}");

        let mut request = vec![PREFERRED];
        request.extend(1_i32.to_be_bytes());
        put_text(&mut request, Some(topic));
        request.extend(partitions.to_be_bytes());
        (0..partitions).for_each(|partition| request.extend(partition.to_be_bytes()));
        request.extend((PATIENCE.as_millis() as i32).to_be_bytes());
        eventually_ok(&format!("broker {} to lead {topic}", brokers[0]), PATIENCE, || {
            self.ask_any(ELECT_LEADERS, &request);
            let leaders = self.leaders(topic)?;
            match leaders.iter().all(|leader| *leader == brokers[0]) {
                true => Ok(()),
                false => Err(format!("{leaders:?} lead it")),
            }
        });
    }

    /// Returns the leader of each partition.
    fn leaders(&self, topic: &str) -> Result<Vec<i32>, String> {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).map_err(|error| error.to_string())?;
        let found = metadata.topics().first().ok_or("no answer for the topic")?;
        Ok(found.partitions().iter().map(|partition| partition.leader()).collect())
    }

    /// Sends a request to the first broker that listens.
    #[track_caller]
    fn ask_any(&self, api: Api, body: &[u8]) -> Vec<u8> {
        let listens = |address: &&str| TcpStream::connect(address).is_ok();
        let address = self.brokers().split(',').find(listens).expect("a broker that listens");
        ask(address, api, body)
    }
}

/// Writes the length of what follows in the format of newer requests. All are short.
fn compact(request: &mut Vec<u8>, length: usize) {
    assert!(length < 0x7f, "the length takes more than a byte");
    request.push(length as u8 + 1);
}
