//! Records of any bytes: nothing on a topic can end a consumer.

use diesel::prelude::*;
use diesel::sql_types::{Text, Uuid as SqlUuid};
use diesel_outbox_kafka::consumer::{ConsumerHandle, HandlerError, Received, Rejected};
use outbox_tests::{RawRecord, eventually};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use uuid::Uuid;

use super::bench::{Bench, PATIENCE, Sent, insert_effect, raw};

/// The headers that a dead letter has besides the record's own.
const OURS: usize = 6;

/// Waits until everything is committed, and fails if the consumer ends by itself before that.
#[track_caller]
fn wait_until_all_is_committed(bench: &Bench<'_>, consumer: &ConsumerHandle) {
    let ends = bench.ends();
    eventually("all offsets to be committed", PATIENCE, || {
        assert!(!consumer.is_finished(), "the consumer has ended by itself");
        (bench.committed() == ends).then_some(())
    });
}

#[test]
fn a_record_with_a_header_name_that_is_not_utf8_becomes_a_dead_letter_and_stops_no_consumer() {
    let bench = Bench::new(1);
    let name = b"na\xffme".to_vec();
    let mut poison = raw(&Sent::new("poison"));
    poison.headers.insert(1, (name, Some(b"value".to_vec())));
    let nested = Sent::new(&"[".repeat(100_000)).with_type("Nested");
    bench.kafka.produce_raw(&bench.topic, 0, &[raw(&Sent::new("before")), poison, raw(&nested)]);
    bench.send([(0, &Sent::new("after"))]);
    let consumer = bench
        .consumer()
        .set("compression.type", "none")
        .on("Counted", insert_effect)
        .on_json("Nested", |_, _: serde_json::Value| Ok(()))
        .spawn()
        .unwrap();
    wait_until_all_is_committed(&bench, &consumer);
    consumer.stop_blocking().unwrap();

    assert_eq!(bench.bodies(), ["before", "after"]);
    let dead = bench.dead_letters();
    assert_eq!(dead.len(), 2);
    assert_eq!((dead[0].key_text(), dead[0].text()), (Some("poison"), Some("poison")));
    let reason = dead[0].header("outbox-error").unwrap();
    assert!(reason.contains("header 2 of 3") && reason.contains("not UTF-8"), "{reason}");
    let stored = bench.kafka.fetch_raw(&bench.dead_letter_topic(), dead[0].partition);
    let header = b"\x0ana\xffme\x0avalue";
    assert!(stored.windows(header.len()).any(|bytes| bytes == header), "the header is not as it was");
    assert!(dead[1].header("outbox-error").unwrap().contains("cannot be decoded as"));
}

#[test]
fn dead_letters_of_any_size_and_with_any_headers_are_sent() {
    const TOPIC_LIMIT: usize = 1_048_588; // Kafka's own
    let bench = Bench::new(1);
    bench.kafka.create_topic(&bench.dead_letter_topic(), 1);
    let chance = Chance::new(1);
    let with_payload = |bytes: usize| {
        let payload = (0..bytes).map(|_| chance.byte()).collect();
        RawRecord { payload: Some(payload), ..raw(&Sent::new("largest")) }
    };
    let other = with_payload(TOPIC_LIMIT / 2).stored_bytes() - TOPIC_LIMIT / 2;
    let largest = with_payload(TOPIC_LIMIT - other);
    assert_eq!(largest.stored_bytes(), TOPIC_LIMIT);
    let mut many = raw(&Sent::new("many headers"));
    many.headers.extend((0..50_000).map(|n| (format!("{n}").into_bytes(), None)));
    let mut too_many = raw(&Sent::new("too many headers"));
    too_many.headers.resize(100_001, (Vec::new(), None));
    for record in [&largest, &many, &too_many] {
        bench.kafka.produce_raw(&bench.topic, 0, std::slice::from_ref(record));
    }
    // This record is within the limit as its producer compressed it, and far beyond the limit uncompressed.
    let zeros = vec![0; 4 << 20];
    let mut config = bench.kafka.client();
    config.set("compression.type", "gzip").set("message.max.bytes", "100000000");
    let producer: BaseProducer = config.create().unwrap();
    let record = BaseRecord::to(&bench.topic).partition(0).key("zeros").payload(&zeros);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
    bench.send([(0, &Sent::new("rest"))]);

    let handler = |c: &mut PgConnection, r: &Received| -> Result<(), HandlerError> {
        if r.payload() != Some(b"rest") {
            return Err(Rejected::new("it is not the rest. ".repeat(500)).into());
        }
        insert_effect(c, r)
    };
    let consumer = bench.consumer().on("Counted", handler).spawn().unwrap();
    wait_until_all_is_committed(&bench, &consumer);
    consumer.stop_blocking().unwrap();

    assert_eq!(bench.bodies(), ["rest"]);
    let dead = bench.kafka.read_all(&bench.dead_letter_topic());
    let keys: Vec<_> = dead.iter().map(|dead| dead.key_text().unwrap()).collect();
    assert_eq!(keys, ["largest", "many headers", "too many headers", "zeros"]);
    assert_eq!((&dead[0].payload, dead[0].headers.len()), (&largest.payload, 2), "nothing more had room");
    assert_eq!(dead[1].headers.len(), many.headers.len() + OURS);
    assert!(dead[2].header("outbox-error").unwrap().contains("100,000"));
    assert_eq!(dead[3].payload.as_ref(), Some(&zeros));
    assert!(dead[3].header("outbox-error").unwrap().contains("`id` is missing"));
}

/// Pseudorandom numbers (xorshift): the same records for the same seed.
struct Chance(std::cell::Cell<u64>);

impl Chance {
    fn new(seed: u64) -> Self {
        Self((seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).into())
    }

    fn below(&self, limit: u64) -> u64 {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        (state >> 8) % limit
    }

    fn one_in(&self, number: u64) -> bool {
        self.below(number) == 0
    }

    fn byte(&self) -> u8 {
        self.below(256) as u8
    }

    fn bytes(&self) -> Vec<u8> {
        let length = [0, 1, 7, 300][self.below(4) as usize];
        (0..length).map(|_| self.byte()).collect()
    }

    fn pick<'a>(&self, choices: &[&'a [u8]]) -> &'a [u8] {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn maybe_bytes(&self) -> Option<Vec<u8>> {
        let texts: [&[u8]; 4] = [b"", b"text", "\u{00fc}\0".as_bytes(), b"{\"a\": [1"];
        match self.below(3) {
            0 => None,
            1 => Some(self.pick(&texts).to_vec()),
            _ => Some(self.bytes()),
        }
    }

    fn record(&self) -> RawRecord {
        let names: [&[u8]; 8] = [
            b"",
            b"a",
            b"id",
            b"eventType",
            b"eventVersion",
            b"outbox-error",
            b"id\0x",
            "\u{00fc}".as_bytes(),
        ];
        let mut headers: Vec<_> = (0..self.below(4))
            .map(|_| {
                let name = if self.one_in(4) { self.bytes() } else { self.pick(&names).to_vec() };
                (name, self.maybe_bytes())
            })
            .collect();
        let identity = [("id", Uuid::now_v7().to_string()), ("eventType", "Counted".to_owned())];
        for (name, value) in identity {
            if !self.one_in(8) {
                let place = self.below(headers.len() as u64 + 1) as usize;
                headers.insert(place, (name.as_bytes().to_vec(), Some(value.into_bytes())));
            }
        }
        if self.one_in(20) {
            headers.extend((0..3_000).map(|_| (b"h".to_vec(), None)));
        }
        let timestamp = [-1, -5, 0, 1_700_000_000_000][self.below(4) as usize];
        RawRecord { key: self.maybe_bytes(), payload: self.maybe_bytes(), headers, timestamp }
    }
}

/// Returns a name as rdkafka reads it, up to its first NUL, if rdkafka can read it.
fn name(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

/// Returns the id and everything else of a record that must be handled, or nothing if it must become a dead letter.
fn expected_effect(record: &RawRecord) -> Option<(Uuid, String)> {
    let headers: Option<Vec<_>> =
        record.headers.iter().map(|(bytes, value)| Some((name(bytes)?, value.as_deref()))).collect();
    let headers = headers?;
    let text = |name| {
        let (_, value) = headers.iter().find(|(found, _)| *found == name)?;
        str::from_utf8((*value)?).ok()
    };
    let id = text("id")?.parse().ok()?;
    let event_type = text("eventType")?;
    Some((id, shown(event_type, record.key.as_deref(), record.payload.as_deref(), &headers)))
}

fn shown(
    event_type: &str,
    key: Option<&[u8]>,
    payload: Option<&[u8]>,
    headers: &[(&str, Option<&[u8]>)],
) -> String {
    format!("{event_type:?} {key:?} {payload:?} {headers:?}").replace('\0', "")
}

fn show(conn: &mut PgConnection, received: &Received) -> Result<(), HandlerError> {
    let headers: Vec<_> = received.headers().collect();
    let shown = shown(received.event_type(), received.key(), received.payload(), &headers);
    let _ = (received.json::<serde_json::Value>(), received.event_version(), received.timestamp());
    diesel::sql_query("insert into effect (id, body, consumer) values ($1, $2, '')")
        .bind::<SqlUuid, _>(received.id())
        .bind::<Text, _>(shown)
        .execute(conn)?;
    Ok(())
}

#[test]
fn records_of_any_bytes_have_their_effect_in_order_or_become_dead_letters() {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("the seed is {seed}");
    let chance = Chance::new(seed);
    let bench = Bench::new(1);
    bench.kafka.create_topic(&bench.dead_letter_topic(), 1);
    let records: Vec<RawRecord> = (0..400).map(|_| chance.record()).collect();
    for batch in records.chunks(40) {
        bench.kafka.produce_raw(&bench.topic, 0, batch);
    }
    let consumer = bench.consumer().on_other(show).spawn().unwrap();
    wait_until_all_is_committed(&bench, &consumer);
    consumer.stop_blocking().unwrap();

    let expected: Vec<_> = records.iter().filter_map(expected_effect).collect();
    let effects: Vec<_> = bench.effects().into_iter().map(|effect| (effect.id, effect.body)).collect();
    assert_eq!(effects.len(), expected.len());
    for (effect, expected) in effects.iter().zip(&expected) {
        assert_eq!(effect, expected);
    }

    let unhandled = (0..).zip(&records).filter(|(_, record)| expected_effect(record).is_none());
    let unhandled: Vec<(i32, _)> = unhandled.collect();
    let dead = bench.dead_letters();
    assert_eq!(dead.len(), unhandled.len());
    for (dead, (offset, record)) in dead.iter().zip(unhandled) {
        assert_eq!(dead.header("outbox-offset"), Some(offset.to_string().as_str()));
        assert_eq!((&dead.key, &dead.payload), (&record.key, &record.payload), "{offset}");
        // If the record already has one of our headers, only the new one remains, unless the record's headers cannot be read.
        let is_text = record.headers.iter().all(|(bytes, _)| name(bytes).is_some());
        let own = record.headers.iter().filter(|(bytes, _)| !is_text || name(bytes) != Some("outbox-error"));
        let own = own.map(|(bytes, value)| match name(bytes) {
            Some(name) => (name.to_owned(), value.clone()),
            None => ("?".to_owned(), None),
        });
        let own: Vec<_> = own.collect();
        assert_eq!(dead.headers[..own.len()], own, "{offset}");
        let has_timestamp = record.timestamp != -1;
        assert_eq!(dead.headers.len() - own.len(), if has_timestamp { OURS } else { OURS - 1 }, "{offset}");
    }
}
