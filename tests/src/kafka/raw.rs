//! Records of any bytes, which a client would refuse. The two requests that this needs are written by hand.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Kafka, PATIENCE};

/// A record in which every part can be any bytes or missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRecord {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub payload: Option<Vec<u8>>,
    /// Its headers in order.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Its timestamp in milliseconds since 1970, or -1 for none.
    pub timestamp: i64,
}

impl RawRecord {
    /// Returns how many bytes it takes in a topic if it is written alone.
    pub fn stored_bytes(&self) -> usize {
        batch(std::slice::from_ref(self), Packing::Plain).len()
    }
}

/// How the records of a batch are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Packing {
    /// Uncompressed.
    Plain,
    /// In the format of zstd, but stored uncompressed, so that writing it needs no library.
    Zstd,
    /// With an unknown compression. Kafka refuses that, mock brokers do not.
    Unknown,
    /// With lengths that reach beyond the batch. Kafka refuses that, mock brokers do not.
    Broken,
}

impl Kafka {
    /// Writes these records to a partition as one batch.
    #[track_caller]
    pub fn produce_raw(&self, topic: &str, partition: i32, records: &[RawRecord]) {
        self.produce_packed(topic, partition, records, Packing::Plain);
    }

    /// Writes these records to a partition as one batch in this format.
    #[track_caller]
    pub fn produce_packed(&self, topic: &str, partition: i32, records: &[RawRecord], packing: Packing) {
        let records = batch(records, packing);
        let mut request = Vec::new();
        put_text(&mut request, None); // no transaction
        request.extend((-1_i16).to_be_bytes()); // all replicas
        request.extend(30_000_i32.to_be_bytes());
        put_partition(&mut request, topic, partition);
        request.extend((records.len() as i32).to_be_bytes());
        request.extend(records);
        let answer = self.ask_leader(topic, partition, Api { key: 0, version: 7 }, &request);
        // One topic with its name, and one partition with its number.
        let error = &answer[4 + 2 + topic.len() + 4 + 4..][..2];
        assert_eq!(error, [0, 0], "the broker refused a batch for {topic}[{partition}]");
    }

    /// Fetches a partition from its beginning, and returns the bytes as the broker stores them.
    #[track_caller]
    pub fn fetch_raw(&self, topic: &str, partition: i32) -> Vec<u8> {
        let mut request = Vec::new();
        for number in [-1_i32, 100, 1, i32::MAX] {
            request.extend(number.to_be_bytes()); // no replica, the longest wait, the least and the most bytes
        }
        request.push(0); // uncommitted too
        put_partition(&mut request, topic, partition);
        request.extend(0_i64.to_be_bytes());
        request.extend(i32::MAX.to_be_bytes());
        self.ask_leader(topic, partition, Api { key: 1, version: 4 }, &request)
    }

    fn ask_leader(&self, topic: &str, partition: i32, api: Api, body: &[u8]) -> Vec<u8> {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the topic's metadata");
        let partitions = metadata.topics()[0].partitions();
        let leader = partitions.iter().find(|known| known.id() == partition).expect("the partition").leader();
        let broker = metadata.brokers().iter().find(|broker| broker.id() == leader).expect("the leader");
        ask((broker.host(), broker.port() as u16), api, body)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Api {
    pub(super) key: i16,
    pub(super) version: i16,
}

/// Sends a request to a broker, and returns the answer that follows the request's number.
#[track_caller]
pub(super) fn ask(address: impl ToSocketAddrs, api: Api, body: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    request.extend(api.key.to_be_bytes());
    request.extend(api.version.to_be_bytes());
    request.extend(7_i32.to_be_bytes()); // which answer belongs to it
    put_text(&mut request, Some("raw"));
    request.extend(body);
    let mut stream = TcpStream::connect(address).expect("connect to the broker");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    stream.write_all(&(request.len() as i32).to_be_bytes()).expect("send the request's length");
    stream.write_all(&request).expect("send the request");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("the answer's length");
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).expect("the answer");
    answer.split_off(4)
}

pub(super) fn put_text(request: &mut Vec<u8>, text: Option<&str>) {
    request.extend(text.map_or(-1, |text| text.len() as i16).to_be_bytes());
    request.extend(text.unwrap_or_default().as_bytes());
}

/// Returns an array of one topic with an array of one partition.
fn put_partition(request: &mut Vec<u8>, topic: &str, partition: i32) {
    request.extend(1_i32.to_be_bytes());
    put_text(request, Some(topic));
    request.extend(1_i32.to_be_bytes());
    request.extend(partition.to_be_bytes());
}

/// Returns the records as a batch of format 2.
fn batch(records: &[RawRecord], packing: Packing) -> Vec<u8> {
    let first = records.first().map_or(-1, |record| record.timestamp);
    let latest = records.iter().map(|record| record.timestamp).max().unwrap_or(-1);
    let mut checked = Vec::new();
    let compression: i16 = match packing {
        Packing::Plain | Packing::Broken => 0,
        Packing::Zstd => 4,
        Packing::Unknown => 7,
    };
    checked.extend(compression.to_be_bytes());
    checked.extend((records.len() as i32 - 1).to_be_bytes());
    checked.extend(first.to_be_bytes());
    checked.extend(latest.to_be_bytes());
    checked.extend([0xff; 8 + 2 + 4]); // no producer id, epoch and sequence
    checked.extend((records.len() as i32).to_be_bytes());
    checked.extend(packed(bodies(records, first), packing));
    let mut batch = vec![0; 8]; // the first offset is the broker's to give
    batch.extend((4 + 1 + 4 + checked.len() as i32).to_be_bytes());
    batch.extend((-1_i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    batch
}

/// Returns what follows the batch's header.
fn bodies(records: &[RawRecord], first: i64) -> Vec<u8> {
    let mut bodies = Vec::new();
    for (offset, record) in records.iter().enumerate() {
        let mut body = vec![0];
        put_number(&mut body, record.timestamp - first);
        put_number(&mut body, offset as i64);
        put_bytes(&mut body, record.key.as_deref());
        put_bytes(&mut body, record.payload.as_deref());
        put_number(&mut body, record.headers.len() as i64);
        for (name, value) in &record.headers {
            put_bytes(&mut body, Some(name));
            put_bytes(&mut body, value.as_deref());
        }
        put_number(&mut bodies, body.len() as i64);
        bodies.extend(body);
    }
    bodies
}

fn packed(mut bodies: Vec<u8>, packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain | Packing::Unknown => bodies,
        Packing::Broken => {
            bodies.truncate(bodies.len() / 2);
            bodies
        }
        Packing::Zstd => {
            // A frame of one segment with a length of four bytes. It contains one uncompressed block, which is the last.
            let length = bodies.len() as u32;
            assert!(length <= 128 << 10, "a block has no room for that");
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
            frame.extend(length.to_le_bytes());
            frame.extend(&(length << 3 | 1).to_le_bytes()[..3]);
            frame.extend(bodies);
            frame
        }
    }
}

/// Writes a number in the variable-length format of records: small ones are short, whatever their sign.
fn put_number(out: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_number(out, bytes.map_or(-1, |bytes| bytes.len() as i64));
    out.extend(bytes.unwrap_or_default());
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
