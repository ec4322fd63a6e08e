//! A record that a consumer receives: key, payload and headers, separated by zero bytes.

#![no_main]

use diesel_outbox_core::{EncodedEvent, InboxEvent as _, Record};
use diesel_outbox_derive::InboxEvent;
use serde::Deserialize;

#[derive(Debug, Deserialize, InboxEvent)]
#[outbox(crate = diesel_outbox_core)]
#[allow(dead_code)]
enum Event {
    Placed {
        id: u64,
        lines: Vec<(String, Option<f64>)>,
    },
    Paid(i32, String),
    Named(String),
    Closed,
    #[outbox(tombstone)]
    Forgotten {
        #[outbox(id)]
        id: u64,
    },
}

const ID: &[u8] = b"01937d5e-0000-7000-8000-000000000001";
const TYPES: [&str; 5] = ["Placed", "Paid", "Named", "Closed", "Forgotten"];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let (key, header, payload) = (parts.next(), parts.next(), parts.next());
    // As it came.
    let names = ["id", "eventType", "eventVersion", "other"];
    let headers = names.map(|name| (name, header.filter(|_| kind & 1 == 0)));
    let _ = EncodedEvent::received(key, payload, headers);
    // With an id, so that the rest is looked at.
    let event_type = TYPES[usize::from(kind) % TYPES.len()];
    let headers = [("id", Some(ID)), ("eventType", Some(event_type.as_bytes())), ("eventVersion", header)];
    let count = if kind & 128 == 0 { 2 } else { 3 };
    if let Ok((_, event)) = EncodedEvent::received(key, payload, headers.into_iter().take(count)) {
        let _ = Event::decode(&event);
        let _ = event.json::<serde_json::Value>();
    }
    // As a row has it.
    let bytes = |part: Option<&[u8]>| part.unwrap_or_default().to_vec().into();
    let _ = Record::from_bytes(uuid::Uuid::nil(), bytes(key), bytes(header), bytes(payload), None);
});
