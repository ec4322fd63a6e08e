//! Derived code works, whatever names are in scope around it.

#![forbid(deprecated, unused_qualifications)]

extern crate diesel_outbox as renamed;

use diesel_outbox_derive::{InboxEvent, OutboxEvent};
use renamed::{EncodedEvent, InboxEvent, OutboxEvent, Record, RecordError};

#[test]
fn the_crate_may_have_another_name() {
    #[derive(OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(0), tombstone, crate = renamed)]
    struct ByPath(u8);

    #[derive(OutboxEvent, InboxEvent)]
    #[outbox(aggregate = "order", id(0), tombstone, crate = "crate::reexported::outbox")]
    struct ByText<T>(T);

    let record: Result<Record, RecordError> = ByPath(1).to_record();
    assert_eq!(record.unwrap().aggregate_id(), "1");
    assert_eq!(ByText(2).to_record().unwrap().aggregate_id(), "2");
    assert_eq!(ByPath::decode(&EncodedEvent::new("ByPath").with_aggregate_id(Some("3"))).unwrap().0, 3);
}

mod reexported {
    pub(crate) use renamed as outbox;
}

#[test]
fn names_of_the_standard_library_may_mean_something_else() {
    assert_eq!(OutboxEvent::to_record(&hostile::Event { id: 1, note: None }).unwrap().headers(), []);
}

#[allow(dead_code)]
mod hostile {
    use diesel_outbox_derive::{InboxEvent, OutboxEvent};

    pub(crate) struct Result;
    pub(crate) struct Record;
    pub(crate) struct RecordError;
    pub(crate) struct Err;
    pub(crate) struct EncodedEvent;
    pub(crate) struct DecodeError;
    pub(crate) trait FromJson {}
    pub(crate) trait FromText {}
    pub(crate) trait FromStr {}
    pub(crate) struct String;
    pub(crate) struct Some;
    pub(crate) struct None;
    pub(crate) struct Ok;
    pub(crate) trait Display {}
    pub(crate) trait ToString {}
    pub(crate) trait Serialize {}
    pub(crate) trait Text {}
    pub(crate) mod core {}
    pub(crate) mod std {}
    pub(crate) mod diesel_outbox {}

    #[derive(OutboxEvent)]
    #[outbox(aggregate = "a", payload = Self::to_record, id = Self::text)]
    pub(crate) struct Event {
        pub(crate) id: u8,
        #[outbox(header)]
        pub(crate) note: Option<u8>,
    }

    impl Event {
        fn to_record(&self) -> Vec<u8> {
            vec![self.id]
        }

        fn text(&self) -> u8 {
            self.id
        }
    }

    #[derive(InboxEvent)]
    #[outbox(type = "a", tombstone)]
    pub(crate) enum Decoded {
        A {
            #[outbox(id)]
            event: u8,
            #[outbox(id)]
            value: u16,
        },
        #[outbox(type = "b", payload = Self::b, decode = Self::b)]
        B,
    }

    impl Decoded {
        fn b(_: &[u8]) -> Self {
            Self::B
        }
    }
}
