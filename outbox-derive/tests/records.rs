//! The effect of each attribute on the record.

use std::fmt;

use diesel_outbox::{OutboxEvent, Record, RecordError};
use diesel_outbox_derive::OutboxEvent;
use serde::Serialize;
use uuid::Uuid;

/// Every part of the record except its id, which is new each time.
type Parts = (String, String, String, Vec<(String, String)>, Option<String>);

fn parts(event: &impl OutboxEvent) -> Parts {
    let record = event.to_record().unwrap();
    record.check().unwrap();
    let headers = record.headers().to_vec();
    let payload = record.payload().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
    (
        record.aggregate_type().into(),
        record.aggregate_id().into(),
        record.event_type().into(),
        headers,
        payload,
    )
}

fn expected(names: [&str; 3], headers: &[(&str, &str)], payload: Option<&str>) -> Parts {
    let [aggregate_type, aggregate_id, event_type] = names.map(str::to_owned);
    let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    (aggregate_type, aggregate_id, event_type, headers, payload.map(str::to_owned))
}

#[test]
fn a_struct_is_named_after_its_type() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "order")]
    struct OrderPlaced {
        #[outbox(id)]
        order_id: u64,
        total_cents: i64,
    }
    assert_eq!(
        parts(&OrderPlaced { order_id: 7, total_cents: 990 }),
        expected(["order", "7", "OrderPlaced"], &[], Some(r#"{"order_id":7,"total_cents":990}"#)),
    );
}

#[test]
fn each_variant_is_an_event_type_of_its_own() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "order")]
    enum OrderEvent {
        Placed {
            #[outbox(id)]
            order_id: Uuid,
            total_cents: i64,
        },
        #[outbox(type = "OrderPaid", version = 2)]
        Paid {
            #[outbox(id)]
            order_id: Uuid,
            #[outbox(header)]
            currency: String,
        },
        #[outbox(aggregate = "cart", tombstone)]
        Dropped(#[outbox(id)] Uuid),
    }
    let order_id = Uuid::nil();
    let text = "00000000-0000-0000-0000-000000000000";
    assert_eq!(
        parts(&OrderEvent::Placed { order_id, total_cents: 990 }),
        expected(
            ["order", text, "Placed"],
            &[],
            Some(r#"{"order_id":"00000000-0000-0000-0000-000000000000","total_cents":990}"#),
        ),
    );
    assert_eq!(
        parts(&OrderEvent::Paid { order_id, currency: "EUR".into() }),
        expected(
            ["order", text, "OrderPaid"],
            &[("eventVersion", "2"), ("currency", "EUR")],
            Some(r#"{"order_id":"00000000-0000-0000-0000-000000000000","currency":"EUR"}"#),
        ),
    );
    assert_eq!(parts(&OrderEvent::Dropped(order_id)), expected(["cart", text, "Dropped"], &[], None));
}

#[test]
fn serde_attributes_shape_the_payload() {
    #[derive(Serialize, OutboxEvent)]
    #[serde(untagged, rename_all_fields = "camelCase")]
    #[outbox(aggregate = "order", id(order_id))]
    enum OrderEvent {
        Placed { order_id: u64, total_cents: i64 },
    }
    assert_eq!(
        parts(&OrderEvent::Placed { order_id: 7, total_cents: 990 }),
        expected(["order", "7", "Placed"], &[], Some(r#"{"orderId":7,"totalCents":990}"#)),
    );
}

#[test]
fn several_id_fields_are_joined_in_their_order() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "line", tombstone)]
    struct Marked {
        #[outbox(id)]
        order: u32,
        note: &'static str,
        #[outbox(id)]
        line: u32,
    }
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "line", id(line, order), separator = "-", tombstone)]
    struct Named {
        order: u32,
        line: u32,
    }
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "line", id(1, 0), separator = "{}", tombstone)]
    struct Numbered(u32, u32);

    assert_eq!(parts(&Marked { order: 1, note: "", line: 2 }).1, "1/2");
    assert_eq!(parts(&Named { order: 1, line: 2 }).1, "2-1");
    assert_eq!(parts(&Numbered(1, 2)).1, "2{}1");
}

#[test]
fn a_function_makes_the_id() {
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "order", id = Self::key, tombstone)]
    struct ByMethod(u32);
    impl ByMethod {
        fn key(&self) -> String {
            format!("order-{}", self.0)
        }
    }

    mod keys {
        pub(crate) fn singleton<T>(_: &T) -> &'static str {
            "all"
        }
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "settings", id = keys::singleton, tombstone)]
    struct SettingsReset;

    trait Keyed {
        fn key(&self) -> u64;
    }
    impl Keyed for ByTrait {
        fn key(&self) -> u64 {
            7
        }
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "order", id = <Self as Keyed>::key, tombstone)]
    struct ByTrait {}

    assert_eq!(parts(&ByMethod(7)).1, "order-7");
    assert_eq!(parts(&SettingsReset).1, "all");
    assert_eq!(parts(&ByTrait {}).1, "7");
}

#[test]
fn headers_come_from_constants_and_fields() {
    const REGION: &str = "eu";
    struct Money(u32);
    impl fmt::Display for Money {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} EUR", self.0)
        }
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "order", tombstone, version = 3)]
    #[outbox(header("source" = "web", "region" = REGION), header("shards" = diesel_outbox::SHARDS))]
    struct OrderPlaced {
        #[outbox(id, header)]
        order_id: u64,
        #[outbox(header = "total")]
        money: Money,
        #[outbox(header)]
        coupon: Option<&'static str>,
        #[outbox(header = "x-trace")]
        trace: std::option::Option<String>,
    }
    let event = OrderPlaced { order_id: 7, money: Money(9), coupon: None, trace: Some("t".into()) };
    assert_eq!(
        parts(&event),
        expected(
            ["order", "7", "OrderPlaced"],
            &[
                ("eventVersion", "3"),
                ("source", "web"),
                ("region", "eu"),
                ("shards", "16"),
                ("order_id", "7"),
                ("total", "9 EUR"),
                ("x-trace", "t"),
            ],
            None,
        ),
    );
}

#[test]
fn a_variant_overrides_the_settings_of_the_enum() {
    fn fixed(_: &Mixed) -> &'static str {
        "fixed"
    }
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "a", type = "Any", version = 1, id = fixed, separator = "+", tombstone)]
    #[outbox(header("source" = "web", "tier" = "1"))]
    enum Mixed {
        Default,
        #[outbox(aggregate = "b", type = "Own", version = 2, id(0), header("source" = "app"))]
        #[outbox(payload = serde_json::to_vec)]
        Own(u8),
        Joined(#[outbox(id)] u8, #[outbox(id)] u8),
    }
    assert_eq!(
        parts(&Mixed::Default),
        expected(["a", "fixed", "Any"], &[("eventVersion", "1"), ("source", "web"), ("tier", "1")], None),
    );
    assert_eq!(
        parts(&Mixed::Own(5)),
        expected(
            ["b", "5", "Own"],
            &[("eventVersion", "2"), ("tier", "1"), ("source", "app")],
            Some(r#"{"Own":5}"#),
        ),
    );
    assert_eq!(parts(&Mixed::Joined(1, 2)).1, "1+2");
}

#[test]
fn a_function_makes_the_payload() {
    fn plain(event: &Plain) -> Vec<u8> {
        event.0.to_be_bytes().to_vec()
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "a", id(0), payload = plain)]
    struct Plain(u16);
    assert_eq!(Plain(0x4142).to_record().unwrap().payload(), Some(&b"AB"[..]));

    #[derive(OutboxEvent)]
    #[outbox(aggregate = "a", id(0), payload = Self::encode)]
    struct Fallible(u16);
    impl Fallible {
        fn encode(&self) -> Result<Vec<u8>, String> {
            Err(format!("{} is odd", self.0))
        }
    }
    let error = Fallible(7).to_record().unwrap_err();
    let RecordError::Encode(source) = error else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "7 is odd");
}

#[test]
fn an_enum_without_variants_is_an_event() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "never")]
    enum Never {}
    fn is_event<E: OutboxEvent>() {}
    is_event::<Never>();
}

#[test]
fn raw_identifiers_lose_their_prefix() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "raw", id(r#type))]
    #[allow(non_camel_case_types)]
    struct r#struct {
        #[outbox(header)]
        r#type: u8,
    }
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "raw", tombstone)]
    #[allow(non_camel_case_types)]
    enum Raw {
        r#match {
            #[outbox(id)]
            r#fn: u8,
        },
    }
    assert_eq!(
        parts(&r#struct { r#type: 1 }),
        expected(["raw", "1", "struct"], &[("type", "1")], Some(r#"{"type":1}"#)),
    );
    assert_eq!(parts(&Raw::r#match { r#fn: 1 }), expected(["raw", "1", "match"], &[], None));
}

#[test]
fn the_users_names_do_not_clash_with_generated_ones() {
    fn record<T>(_: &T) -> Vec<u8> {
        b"record".to_vec()
    }
    fn field_0<T>(_: &T) -> u8 {
        0
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "a", id = field_0, payload = record)]
    struct Clash {
        #[outbox(header)]
        record: u8,
        #[outbox(header)]
        field_0: u8,
    }
    assert_eq!(
        parts(&Clash { record: 1, field_0: 2 }),
        expected(["a", "0", "Clash"], &[("record", "1"), ("field_0", "2")], Some("record")),
    );
}

#[test]
fn types_from_a_macro_work() {
    macro_rules! event {
        ($name:ident, $ty:ty) => {
            #[derive(OutboxEvent)]
            #[outbox(aggregate = "a", id(id), tombstone)]
            struct $name {
                id: u8,
                #[outbox(header = "note")]
                note: $ty,
            }
        };
    }
    event!(Noted, Option<String>);
    assert_eq!(parts(&Noted { id: 1, note: None }).3, []);
}

#[test]
fn references_boxes_and_records_are_events_too() {
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "a", id(0), tombstone)]
    struct Small(u8);
    let boxed: Box<dyn OutboxEvent> = Box::new(Small(1));
    let record: Record = boxed.to_record().unwrap();
    assert_eq!(parts(&record), parts(&&Small(1)));
    assert_eq!(record.to_record().unwrap().id(), record.id());
}

#[test]
fn the_payload_of_a_variant_is_its_content_without_its_name() {
    #[derive(Serialize)]
    struct Line(u8);
    #[derive(Serialize, OutboxEvent)]
    #[serde(rename_all = "kebab-case", rename_all_fields = "camelCase")]
    #[outbox(aggregate = "order", id = all)]
    enum Event {
        Placed {
            total_cents: u8,
            #[serde(skip_serializing_if = "Option::is_none")]
            note: Option<u8>,
        },
        Newtype(Line),
        Tuple(u8, Option<u8>),
        Unit,
        #[serde(serialize_with = "twice")]
        With(u8),
        Nested(Result<u8, u8>),
    }
    fn twice<S: serde::Serializer>(value: &u8, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(value * 2)
    }
    fn all(_: &Event) -> &'static str {
        "all"
    }
    let payload = |event: Event| parts(&event).4.unwrap();
    assert_eq!(payload(Event::Placed { total_cents: 9, note: None }), r#"{"totalCents":9}"#);
    assert_eq!(payload(Event::Newtype(Line(1))), "1");
    assert_eq!(payload(Event::Tuple(1, None)), "[1,null]");
    assert_eq!(payload(Event::Unit), "null");
    assert_eq!(payload(Event::With(2)), "4");
    assert_eq!(payload(Event::Nested(Ok(1))), r#"{"Ok":1}"#, "only the event's own name is left out");
}

#[test]
fn an_enum_that_serde_does_not_tag_by_the_variants_name_is_written_as_serde_does() {
    #[derive(Serialize)]
    enum Inner {
        A(u8),
    }
    #[derive(Serialize, OutboxEvent)]
    #[serde(untagged)]
    #[outbox(aggregate = "order", id = id)]
    enum Untagged {
        Fields { a: u8 },
        Inner(Inner),
        Unit,
    }
    #[derive(Serialize, OutboxEvent)]
    #[serde(tag = "t")]
    #[outbox(aggregate = "order", id = id)]
    enum Internal {
        Fields { a: u8 },
        Unit,
    }
    #[derive(Serialize, OutboxEvent)]
    #[serde(tag = "t", content = "c")]
    #[outbox(aggregate = "order", id = id)]
    enum Adjacent {
        Newtype(u8),
    }
    fn id<E>(_: &E) -> u8 {
        1
    }
    fn payload(event: impl OutboxEvent) -> String {
        parts(&event).4.unwrap()
    }
    assert_eq!(payload(Untagged::Fields { a: 1 }), r#"{"a":1}"#);
    assert_eq!(payload(Untagged::Inner(Inner::A(1))), r#"{"A":1}"#);
    assert_eq!(payload(Untagged::Unit), "null");
    assert_eq!(payload(Internal::Fields { a: 1 }), r#"{"t":"Fields","a":1}"#);
    assert_eq!(payload(Internal::Unit), r#"{"t":"Unit"}"#);
    assert_eq!(payload(Adjacent::Newtype(1)), r#"{"t":"Newtype","c":1}"#);
}

#[test]
fn an_event_may_bring_its_own_id() {
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "order", event_id = Self::other)]
    enum Event {
        ByField {
            #[outbox(id)]
            order_id: u8,
            #[outbox(event_id)]
            #[serde(skip)]
            event: Uuid,
        },
        ByFunction(#[outbox(id)] u8),
    }
    impl Event {
        fn other(&self) -> Uuid {
            Uuid::from_u128(9)
        }
    }
    let event = Event::ByField { order_id: 1, event: Uuid::from_u128(7) };
    for _ in 0..2 {
        assert_eq!(event.to_record().unwrap().id(), Uuid::from_u128(7));
        assert_eq!(Event::ByFunction(1).to_record().unwrap().id(), Uuid::from_u128(9));
    }
    #[derive(OutboxEvent)]
    #[outbox(aggregate = "order", id(0), tombstone)]
    struct New(u8);
    assert_ne!(New(1).to_record().unwrap().id(), New(1).to_record().unwrap().id());
}

#[test]
fn headers_come_from_within_fields_and_from_functions() {
    #[derive(Serialize)]
    struct Context {
        tenant: &'static str,
        user: (u8, &'static str),
    }
    impl Context {
        fn headers(&self) -> Vec<(String, String)> {
            vec![("trace".to_owned(), format!("trace of {}", self.tenant))]
        }
    }
    #[derive(Serialize, OutboxEvent)]
    #[outbox(aggregate = "order", header("tenant" = self.context.tenant, "user" = self.context.user.1))]
    #[outbox(headers = more)]
    struct Placed {
        #[outbox(id)]
        order_id: u8,
        context: Context,
    }
    fn more(event: &Placed) -> Vec<(String, String)> {
        event.context.headers()
    }
    let event = Placed { order_id: 1, context: Context { tenant: "acme", user: (1, "me") } };
    let headers = [("tenant", "acme"), ("user", "me"), ("trace", "trace of acme")];
    assert_eq!(parts(&event).3, headers.map(|(name, value)| (name.to_owned(), value.to_owned())));

    #[derive(OutboxEvent)]
    #[outbox(aggregate = "order", id(0), tombstone, header("tenant" = self.1.tenant))]
    enum Event {
        Placed(u8, Context),
        #[outbox(headers = fixed)]
        Paid(u8, Context),
    }
    fn fixed(_: &Event) -> [(&'static str, &'static str); 1] {
        [("fixed", "yes")]
    }
    let context = || Context { tenant: "acme", user: (1, "me") };
    assert_eq!(parts(&Event::Placed(1, context())).3.len(), 1);
    assert_eq!(parts(&Event::Paid(1, context())).3[1], ("fixed".to_owned(), "yes".to_owned()));
}
