//! The events that a test finds in an outbox, and what it expects of them. [`Emitted`] fails with a message that lists what was
//! emitted, and says in what the nearest event differs.
//!
//! `diesel-outbox` and `sea-orm-outbox` read the events from a connection: turn on their feature `testing`.

mod difference;
mod expected;
mod report;

pub use self::expected::Expected;
use self::report::Report;
use crate::{EncodedEvent, InboxEvent, Record};

/// Events that were emitted, in their order.
///
/// ```
/// use diesel_outbox_core::Record;
/// use diesel_outbox_core::testing::{Emitted, Expected};
///
/// let placed = Record::new("order", "7", "OrderPlaced").header("tenant", "acme").with_payload(*br#"{"cents":990,"items":[1]}"#);
/// let emitted = Emitted::new(vec![placed]);
/// emitted.assert(Expected::event_type("OrderPlaced").aggregate("order", "7").json(&serde_json::json!({"cents": 990})));
/// emitted.refute(Expected::event_type("OrderPaid"));
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "events that were read are to be compared with what is expected"]
pub struct Emitted {
    records: Vec<Record>,
}

impl Emitted {
    /// Returns these records as the events that were emitted.
    pub fn new(records: Vec<Record>) -> Self {
        Self { records }
    }

    /// Returns the events that are not among those of an earlier look: what the code in between has emitted.
    pub fn since(mut self, before: &Self) -> Self {
        self.records.retain(|record| before.records.iter().all(|old| old.id() != record.id()));
        self
    }

    /// Returns the events as they are stored.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Returns the events that this type decodes, in their order. Others are left out.
    ///
    /// # Panics
    /// If an event has a type that this type decodes, and cannot be decoded.
    #[track_caller]
    #[must_use]
    pub fn decoded<E: InboxEvent>(&self) -> Vec<E> {
        let known = |record: &&Record| E::EVENT_TYPES.contains(&record.event_type());
        let decode = |record| match EncodedEvent::try_from(record).and_then(|event| E::decode(&event)) {
            Ok(event) => event,
            Err(error) => panic!("an emitted event cannot be decoded: {error}\n\n{}", Report::of(self)),
        };
        // Not `map`, whose closure would hide the caller's line
        let mut events = Vec::new();
        for record in self.records.iter().filter(known) {
            events.push(decode(record));
        }
        events
    }

    /// Returns the events that are as expected.
    pub fn matching(&self, expected: impl Into<Expected>) -> Vec<&Record> {
        let expected = expected.into();
        self.records.iter().filter(|record| expected.is_met_by(record)).collect()
    }

    /// Asserts that at least one event is as expected, and returns the first. Give it an event, or an [`Expected`] that names only what
    /// matters.
    ///
    /// # Panics
    /// If no event is as expected.
    #[track_caller]
    pub fn assert(&self, expected: impl Into<Expected>) -> &Record {
        let expected = expected.into();
        match self.records.iter().find(|record| expected.is_met_by(record)) {
            Some(record) => record,
            None => panic!("no emitted event is as expected\n\n{}", Report::of(self).nearest_to(&expected)),
        }
    }

    /// Asserts that no event is as described.
    ///
    /// # Panics
    /// If an event is.
    #[track_caller]
    pub fn refute(&self, unexpected: impl Into<Expected>) {
        let unexpected = unexpected.into();
        if let Some(position) = self.records.iter().position(|record| unexpected.is_met_by(record)) {
            let number = position + 1;
            panic!(
                "event {number} must not have been emitted\n\nunexpected  {unexpected}\n\n{}",
                Report::of(self)
            );
        }
    }

    /// Asserts that exactly these events were emitted, in this order, and no others.
    ///
    /// # Panics
    /// If an event is missing, is different, or is one too many.
    #[track_caller]
    pub fn assert_only<E: Into<Expected>>(&self, expected: impl IntoIterator<Item = E>) {
        let expected: Vec<Expected> = expected.into_iter().map(Into::into).collect();
        for (position, expected) in expected.iter().enumerate() {
            let number = position + 1;
            match self.records.get(position) {
                Some(record) if expected.is_met_by(record) => {}
                Some(record) => panic!(
                    "event {number} is not as expected\n\n{}",
                    Report::of(self).difference(expected, record)
                ),
                None => {
                    panic!("event {number} was not emitted\n\nexpected    {expected}\n\n{}", Report::of(self))
                }
            }
        }
        if self.records.len() > expected.len() {
            panic!("more events were emitted than the {} expected\n\n{}", expected.len(), Report::of(self));
        }
    }

    /// Asserts that nothing was emitted.
    ///
    /// # Panics
    /// If something was.
    #[track_caller]
    pub fn assert_none(&self) {
        if !self.records.is_empty() {
            panic!("events were emitted, and none was expected\n\n{}", Report::of(self));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use serde_json::json;

    use super::*;
    use crate::__private::panic_message;
    use crate::{DecodeError, OutboxEvent, RecordError};

    struct Placed {
        order: &'static str,
        cents: i64,
    }

    impl OutboxEvent for Placed {
        fn to_record(&self) -> Result<Record, RecordError> {
            Record::new("order", self.order, "OrderPlaced")
                .json(&json!({"cents": self.cents, "lines": [1, 2]}))
        }
    }

    fn emitted() -> Emitted {
        let tenant = |record: Record| record.header("tenant", "acme");
        Emitted::new(vec![
            tenant(Placed { order: "7", cents: 99 }.to_record().unwrap()),
            Record::new("customer", "42", "CustomerForgotten"),
        ])
    }

    fn message(assertion: impl FnOnce(&Emitted)) -> String {
        let emitted = emitted();
        let panic = catch_unwind(AssertUnwindSafe(|| assertion(&emitted))).expect_err("it holds");
        panic_message(&*panic).to_owned()
    }

    #[test]
    fn an_event_is_found_by_all_that_it_is_and_by_parts_of_it() {
        let emitted = emitted();
        assert_eq!(emitted.assert(&Placed { order: "7", cents: 99 }).aggregate_id(), "7");
        emitted
            .assert(Expected::event_type("OrderPlaced").header("tenant", "acme").json(&json!({"cents": 99})));
        emitted.assert(Expected::any().aggregate("customer", "42").tombstone());
        emitted.refute(&Placed { order: "8", cents: 99 });
        emitted.refute(Expected::event_type("OrderPlaced").json(&json!({"cents": 100})));
        emitted.refute(Expected::event_type("OrderPlaced").tombstone());
        emitted.refute(Expected::event_type("CustomerForgotten").json(&json!({})));
        emitted.assert_only([Expected::event_type("OrderPlaced"), Expected::event_type("CustomerForgotten")]);
        assert_eq!(emitted.matching(Expected::any()).len(), 2);
        Emitted::default().assert_none();
    }

    #[test]
    fn only_what_came_since_an_earlier_look_is_left() {
        let before = emitted();
        let mut after = before.clone();
        after.records.insert(0, Record::new("order", "9", "OrderPaid"));
        after.since(&before).assert_only([Expected::event_type("OrderPaid")]);
    }

    #[test]
    fn a_failure_names_the_nearest_event_and_in_what_it_differs() {
        let text = message(|emitted| {
            emitted.assert(&Placed { order: "7", cents: 990 });
        });
        assert_eq!(
            text,
            r#"no emitted event is as expected

expected    OrderPlaced of order 7, payload {"cents":990,"lines":[1,2]}
nearest     event 1
difference  payload.cents: expected 990, was 99

emitted
  1  OrderPlaced        order     7   {"cents":99,"lines":[1,2]}  tenant=acme
  2  CustomerForgotten  customer  42  no payload
"#
        );
        let text = message(|emitted| {
            emitted.assert(
                Expected::event_type("CustomerForgotten").aggregate("customer", "43").header("a", "b"),
            );
        });
        assert!(text.contains("nearest     event 2\n"), "{text}");
        assert!(text.contains("difference  aggregate id: expected `43`, was `42`\n"), "{text}");
        assert!(text.contains("            header `a`: expected `b`, was missing\n"), "{text}");
    }

    #[test]
    fn every_assertion_fails_if_it_does_not_hold() {
        assert!(message(|emitted| emitted.refute(Expected::any())).starts_with("event 1 must not"));
        assert!(message(Emitted::assert_none).starts_with("events were emitted"));
        let only = |types: &'static [&str]| {
            message(move |emitted| emitted.assert_only(types.iter().map(|name| Expected::event_type(*name))))
        };
        assert!(only(&["CustomerForgotten", "OrderPlaced"]).starts_with("event 1 is not as expected"));
        assert!(only(&["OrderPlaced"]).starts_with("more events were emitted than the 1 expected"));
        let three = &["OrderPlaced", "CustomerForgotten", "OrderPaid"];
        assert!(only(three).starts_with("event 3 was not emitted"));
        let nothing = catch_unwind(|| Emitted::default().assert(Expected::any()).id()).unwrap_err();
        assert!(panic_message(&*nothing).ends_with("emitted\n  nothing\n"));
    }

    #[test]
    fn what_a_type_decodes_is_returned_and_others_are_left_out() {
        #[derive(Debug, PartialEq)]
        struct Cents(i64);

        impl InboxEvent for Cents {
            const EVENT_TYPES: &'static [&'static str] = &["OrderPlaced"];

            fn decode(event: &EncodedEvent<'_>) -> Result<Self, DecodeError> {
                let value: serde_json::Value = event.json()?;
                Ok(Self(value["cents"].as_i64().unwrap_or_default()))
            }
        }
        assert_eq!(emitted().decoded::<Cents>(), [Cents(99)]);
    }
}
