//! Decoding returns the event that was emitted, or an error that explains why it cannot.

use std::fmt::{self, Debug};

use diesel_outbox::{DecodeError, EncodedEvent, InboxEvent, OutboxEvent};
use diesel_outbox_derive::{InboxEvent, OutboxEvent};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Decodes an emitted event as a consumer does.
#[track_caller]
fn back<E: OutboxEvent + InboxEvent>(event: &E) -> E {
    let record = event.to_record().unwrap();
    assert!(E::EVENT_TYPES.contains(&record.event_type()));
    E::decode(&EncodedEvent::try_from(&record).unwrap()).unwrap()
}

#[track_caller]
fn comes_back<E: OutboxEvent + InboxEvent + PartialEq + Debug>(events: impl IntoIterator<Item = E>) {
    for event in events {
        assert_eq!(back(&event), event);
    }
}

fn json<'a>(event_type: &'a str, payload: &'a str) -> EncodedEvent<'a> {
    EncodedEvent::new(event_type).with_payload(Some(payload.as_bytes()))
}

#[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
#[outbox(aggregate = "order")]
struct OrderPlaced {
    #[outbox(id)]
    order_id: Uuid,
    total_cents: i64,
}

#[test]
fn structs_of_each_shape_come_back() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(0))]
    struct Newtype(u8);
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(0), version = 3)]
    struct Tuple(u8, String);
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id = all)]
    struct Unit;
    fn all(_: &Unit) -> &'static str {
        "all"
    }
    comes_back([OrderPlaced { order_id: Uuid::from_u128(7), total_cents: 990 }]);
    comes_back([Newtype(1)]);
    comes_back([Tuple(1, "x".to_owned())]);
    comes_back([Unit]);
}

#[test]
fn variants_of_each_shape_come_back() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[serde(rename_all = "kebab-case", rename_all_fields = "camelCase")]
    #[outbox(aggregate = "order", id = all)]
    enum Event {
        Placed {
            order_id: u8,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            note: Option<String>,
            #[serde(flatten)]
            total: Total,
        },
        #[serde(rename = "something else", alias = "another")]
        Newtype(Total),
        #[serde(skip)]
        #[allow(dead_code)]
        Never,
        Tuple(u8, Option<u8>),
        #[outbox(type = "Left")]
        Unit,
        #[serde(with = "twice")]
        With(u8),
        Nested(Result<u8, u8>),
        #[outbox(version = 2, tombstone)]
        Gone,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Total {
        cents: u8,
    }
    mod twice {
        use serde::Deserialize;

        pub(super) fn serialize<S: serde::Serializer>(value: &u8, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_u8(value * 2)
        }

        pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
            u8::deserialize(deserializer).map(|value| value / 2)
        }
    }
    fn all(_: &Event) -> &'static str {
        "all"
    }
    comes_back([
        Event::Placed { order_id: 1, note: None, total: Total { cents: 2 } },
        Event::Newtype(Total { cents: 2 }),
        Event::Tuple(1, None),
        Event::Unit,
        Event::With(4),
        Event::Nested(Err(1)),
        Event::Gone,
    ]);
    assert_eq!(Event::EVENT_TYPES, ["Placed", "Newtype", "Tuple", "Left", "With", "Nested", "Gone"]);
    assert!(matches!(Event::decode(&json("Never", "null")), Err(DecodeError::UnknownType { .. })), "skipped");
}

/// With `untagged`, serde would decode each `Paid` as `Placed`, because it takes the first variant that fits.
#[test]
fn the_event_type_decides_which_variant_it_is_though_others_fit_as_well() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(order_id))]
    enum Event {
        Placed { order_id: u8 },
        Paid { order_id: u8 },
    }
    comes_back([Event::Placed { order_id: 1 }, Event::Paid { order_id: 1 }]);

    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[serde(untagged)]
    #[outbox(aggregate = "order", id(order_id))]
    enum Untagged {
        Placed { order_id: u8 },
        Paid { order_id: u8 },
    }
    let record = Untagged::Paid { order_id: 1 }.to_record().unwrap();
    assert_eq!(record.payload(), Event::Paid { order_id: 1 }.to_record().unwrap().payload());
    let error = Untagged::decode(&EncodedEvent::try_from(&record).unwrap()).unwrap_err();
    assert!(matches!(error, DecodeError::WrongType { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("`Paid`") && text.contains("Untagged`") && text.contains("remove"), "{text}");
    comes_back([Untagged::Placed { order_id: 1 }]);
}

#[test]
fn enums_with_serdes_tags_come_back() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[serde(tag = "kind", content = "content")]
    #[outbox(aggregate = "order", id(0))]
    enum Adjacent {
        Placed(u8),
        Paid(u8),
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[serde(tag = "kind")]
    #[outbox(aggregate = "order", id(id))]
    enum Internal {
        Placed { id: u8 },
        Paid { id: u8 },
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(0))]
    enum Partly {
        Placed(u8),
        #[serde(untagged)]
        Other(u8, u8),
    }
    comes_back([Adjacent::Placed(1), Adjacent::Paid(1)]);
    comes_back([Internal::Placed { id: 1 }, Internal::Paid { id: 1 }]);
    comes_back([Partly::Placed(1), Partly::Other(1, 2)]);
    let mislabelled = json("Placed", r#"{"kind":"Paid","id":1}"#);
    assert!(matches!(Internal::decode(&mislabelled), Err(DecodeError::WrongType { .. })));
}

#[test]
fn a_tombstone_comes_back_from_its_aggregate_id() {
    #[derive(Debug, PartialEq, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "line", id(line, order), separator = "-", tombstone)]
    enum Event {
        Dropped {
            order: Uuid,
            line: u8,
        },
        #[outbox(id(0))]
        Left(String),
        #[outbox(decode = Self::from_id)]
        Other {
            #[outbox(id)]
            line: u8,
            order: Option<u8>,
        },
    }
    impl Event {
        fn from_id(id: &str) -> Result<Self, std::num::ParseIntError> {
            Ok(Self::Other { line: id.parse()?, order: None })
        }
    }
    // The separator of the id also occurs in the UUID.
    let record = Event::Dropped { order: Uuid::nil(), line: 1 }.to_record().unwrap();
    let error = Event::decode(&EncodedEvent::try_from(&record).unwrap());
    let text = error.unwrap_err().to_string();
    assert_eq!(text, "the aggregate id of the event `Dropped` has 6 parts, and its type needs 2");

    comes_back([Event::Left("a-b".to_owned()), Event::Other { line: 3, order: None }]);
    let with_payload = EncodedEvent::new("Left").with_aggregate_id(Some("a")).with_payload(Some(b"{}"));
    assert_eq!(Event::decode(&with_payload).unwrap(), Event::Left("a".to_owned()), "the payload is ignored");
    let dropped =
        |id| Event::decode(&EncodedEvent::new("Dropped").with_aggregate_id(id)).unwrap_err().to_string();
    assert_eq!(dropped(None), "the aggregate id of the event `Dropped` is missing");
    assert_eq!(
        dropped(Some("s3cret-x")),
        "the aggregate id of the event `Dropped` has no `u8` for the field `line`"
    );

    #[derive(Debug, PartialEq, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "line", tombstone)]
    struct Dropped(#[outbox(id)] u32, #[outbox(id)] String);
    comes_back([Dropped(1, "a".to_owned())]);
}

#[test]
fn older_versions_are_brought_up_to_date() {
    #[derive(Deserialize)]
    struct PlacedV1 {
        order_id: u8,
        euros: u8,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(order_id))]
    enum Event {
        #[outbox(version = 3, upcast(1 = placed_v1, 2 = Self::placed_v2))]
        Placed {
            order_id: u8,
            cents: u16,
        },
        Paid {
            order_id: u8,
        },
        #[outbox(type = "Paid", version = 2)]
        PaidWith {
            order_id: u8,
            currency: String,
        },
    }
    fn placed_v1(old: PlacedV1) -> Event {
        Event::Placed { order_id: old.order_id, cents: u16::from(old.euros) * 100 }
    }
    impl Event {
        fn placed_v2(old: serde_json::Value) -> Result<Self, String> {
            let order_id =
                old["order"].as_u64().and_then(|id| id.try_into().ok()).ok_or("it has no order")?;
            Ok(Self::Placed { order_id, cents: 0 })
        }
    }
    comes_back([
        Event::Placed { order_id: 1, cents: 2 },
        Event::Paid { order_id: 1 },
        Event::PaidWith { order_id: 1, currency: "EUR".to_owned() },
    ]);
    let placed = |version, payload| Event::decode(&json("Placed", payload).with_version(version));
    let first = Event::Placed { order_id: 1, cents: 200 };
    assert_eq!(placed(Some(1), r#"{"order_id":1,"euros":2}"#).unwrap(), first);
    assert_eq!(
        placed(None, r#"{"order_id":1,"euros":2}"#).unwrap(),
        first,
        "without a version it is the first"
    );
    assert_eq!(placed(Some(2), r#"{"order":1}"#).unwrap(), Event::Placed { order_id: 1, cents: 0 });
    let error = placed(Some(2), "{}").unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "it has no order");
    let text = placed(Some(4), "{}").unwrap_err().to_string();
    assert!(text.contains("`Placed` has version 4, which is unknown here; known: 1, 2, 3."), "{text}");
    assert_eq!(
        Event::decode(&json("Paid", r#"{"order_id":1}"#).with_version(Some(1))).unwrap(),
        Event::Paid { order_id: 1 }
    );
}

#[test]
fn a_function_decodes_what_a_function_encoded() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "sensor", id(sensor), payload = encode, decode = decode)]
    enum Event {
        Measured {
            sensor: u8,
            celsius: u8,
        },
        #[outbox(payload = serde_json::to_vec, decode = serde_json::from_slice, version = 2, upcast(1 = decode))]
        Named {
            sensor: u8,
        },
        #[outbox(tombstone)]
        Removed {
            sensor: u8,
        },
    }
    fn encode(event: &Event) -> Vec<u8> {
        match event {
            Event::Measured { sensor, celsius } => vec![*sensor, *celsius],
            Event::Named { .. } | Event::Removed { .. } => Vec::new(),
        }
    }
    fn decode(payload: &[u8]) -> Result<Event, &'static str> {
        match payload {
            &[sensor, celsius] => Ok(Event::Measured { sensor, celsius }),
            _ => Err("two bytes are needed"),
        }
    }
    comes_back([
        Event::Measured { sensor: 1, celsius: 20 },
        Event::Named { sensor: 1 },
        Event::Removed { sensor: 1 },
    ]);
    let error = Event::decode(&json("Measured", "x")).unwrap_err();
    assert!(matches!(&error, DecodeError::Payload { position: None, .. }), "{error:?}");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "two bytes are needed");
    assert!(Event::decode(&json("Named", "ab")).is_ok(), "an older one is bytes too");
}

/// A function for all variants gets bytes that may be another event's.
#[test]
fn a_function_of_the_enum_that_returns_another_variant_than_the_event_type_names_is_refused() {
    #[derive(Debug, PartialEq, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(0), payload = encode, decode = decode)]
    enum Event {
        Placed(u8),
        Paid(u8),
    }
    fn encode(event: &Event) -> Vec<u8> {
        match event {
            Event::Placed(order) => vec![0, *order],
            Event::Paid(order) => vec![1, *order],
        }
    }
    fn decode(payload: &[u8]) -> Result<Event, &'static str> {
        match *payload {
            [0, order] => Ok(Event::Placed(order)),
            [1, order] => Ok(Event::Paid(order)),
            _ => Err("it is neither"),
        }
    }
    comes_back([Event::Placed(1), Event::Paid(1)]);
    let error = Event::decode(&EncodedEvent::new("Paid").with_payload(Some(&[0, 1]))).unwrap_err();
    assert!(matches!(&error, DecodeError::WrongType { event_type, .. } if event_type == "Paid"), "{error:?}");
    assert!(error.to_string().contains("`decode` function"), "{error}");
}

#[test]
fn an_enum_that_serde_writes_and_reads_as_another_type_comes_back() {
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[serde(into = "Wire", from = "Wire")]
    #[outbox(aggregate = "order", id(0))]
    enum Event {
        Placed(u8),
        Paid(u8),
    }
    #[derive(Serialize, Deserialize)]
    struct Wire {
        is_paid: bool,
        order: u8,
    }
    impl From<Event> for Wire {
        fn from(event: Event) -> Self {
            match event {
                Event::Placed(order) => Self { is_paid: false, order },
                Event::Paid(order) => Self { is_paid: true, order },
            }
        }
    }
    impl From<Wire> for Event {
        fn from(wire: Wire) -> Self {
            match wire.is_paid {
                false => Self::Placed(wire.order),
                true => Self::Paid(wire.order),
            }
        }
    }
    comes_back([Event::Placed(1), Event::Paid(1)]);
}

#[test]
fn errors_say_what_the_event_is_and_where_its_payload_is_wrong() {
    let error = OrderPlaced::decode(&json("OrderPaid", "{}")).unwrap_err();
    assert_eq!(error.to_string(), "the event type `OrderPaid` is unknown here; known: OrderPlaced");
    let error = OrderPlaced::decode(&EncodedEvent::new("OrderPlaced")).unwrap_err();
    assert!(matches!(error, DecodeError::NoPayload { .. }), "{error:?}");
    let error = OrderPlaced::decode(&json("OrderPlaced", "{\n  \"order_id\": \"s3cret\"}")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`decoding::OrderPlaced` at line 2, column 22"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    let error = OrderPlaced::decode(&json("OrderPlaced", "{}").with_version(Some(9))).unwrap_err();
    assert!(matches!(error, DecodeError::UnknownVersion { version: Some(9), .. }), "{error:?}");

    #[derive(Debug, Deserialize, InboxEvent)]
    enum Event {
        Placed { _id: u8 },
        _Paid { _id: u8 },
    }
    let error = Event::decode(&json("Placed", "{\n\"_id\": \"s3cret\"}")).unwrap_err();
    assert!(matches!(&error, DecodeError::Payload { position: Some((2, _)), .. }), "{error:?}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    let trailing = Event::decode(&json("Placed", "{\"_id\": 1} {}"));
    assert!(matches!(trailing, Err(DecodeError::Payload { .. })), "{trailing:?}");
}

#[test]
fn a_consumers_own_type_needs_neither_aggregate_nor_id() {
    #[derive(Debug, PartialEq, Deserialize, InboxEvent)]
    enum OrderEvent {
        OrderPlaced { order_id: Uuid },
    }
    let record = OrderPlaced { order_id: Uuid::from_u128(7), total_cents: 1 }.to_record().unwrap();
    let decoded = OrderEvent::decode(&EncodedEvent::try_from(&record).unwrap()).unwrap();
    assert_eq!(decoded, OrderEvent::OrderPlaced { order_id: Uuid::from_u128(7) });

    #[derive(Deserialize, InboxEvent)]
    enum Never {}
    assert!(Never::EVENT_TYPES.is_empty());
    assert!(Never::decode(&json("A", "1")).is_err());
}

#[test]
fn generic_events_come_back() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order")]
    enum Event<K, T = u8>
    where
        K: Clone,
    {
        Placed {
            #[outbox(id)]
            key: K,
            data: Vec<T>,
        },
        #[outbox(tombstone)]
        Gone(#[outbox(id)] K),
    }
    comes_back([Event::Placed { key: 1, data: vec!["x".to_owned()] }, Event::Gone(3)]);

    #[derive(Debug, PartialEq, OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", tombstone)]
    struct Gone<K>(#[outbox(id)] K);
    /// It implements none of serde's traits, and does not have to.
    #[derive(Debug, PartialEq)]
    struct Key(char);
    impl fmt::Display for Key {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(&self.0, f)
        }
    }
    impl std::str::FromStr for Key {
        type Err = std::char::ParseCharError;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            text.parse().map(Self)
        }
    }
    comes_back([Gone(Key('x'))]);
}
