//! The derives of diesel-outbox: [`OutboxEvent`](macro@OutboxEvent) makes a type an event, and
//! [`InboxEvent`](macro@InboxEvent) decodes it in a consumer. Their pages describe every attribute.
//!
//! In a service, depend on `diesel-outbox` or `sea-orm-outbox`, which re-export both. Depend on this crate directly only in a crate of events that
//! does not need Diesel: see [`OutboxEvent`](macro@OutboxEvent#renamed-dependency).
//!
//! ```
//! use diesel_outbox::OutboxEvent; // the trait and the derive
//! # use diesel_outbox_derive::OutboxEvent;
//!
//! #[derive(serde::Serialize, OutboxEvent)]
//! #[outbox(aggregate = "order")]
//! struct OrderPlaced {
//!     #[outbox(id)]
//!     order_id: u64,
//!     total_cents: i64,
//! }
//!
//! // On Kafka: topic `outbox.event.order`, key `7`, header `eventType: OrderPlaced`, and this value:
//! let record = OrderPlaced { order_id: 7, total_cents: 990 }.to_record()?;
//! assert_eq!(record.payload(), Some(&br#"{"order_id":7,"total_cents":990}"#[..]));
//! # Ok::<(), diesel_outbox::RecordError>(())
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod ast;
mod attr;
mod expand;
mod fallback;
mod serde_attr;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `OutboxEvent` for a struct or an enum, so that it can be emitted.
///
/// An event needs an aggregate type and an aggregate id. Everything else has a default: the event type is the name of the struct or
/// the variant, and the payload is the value as JSON.
///
/// ```
/// # use diesel_outbox::{OutboxEvent, RecordError};
/// # use diesel_outbox_derive::OutboxEvent;
/// use serde::Serialize;
/// use uuid::Uuid;
///
/// #[derive(Serialize, OutboxEvent)]
/// #[outbox(aggregate = "order")]
/// enum OrderEvent {
///     Placed { #[outbox(id)] order_id: Uuid, total_cents: i64 },
///     #[outbox(type = "OrderPaid", version = 2)]
///     Paid { #[outbox(id)] order_id: Uuid, #[outbox(header)] currency: String },
/// }
///
/// let order_id = Uuid::now_v7();
/// let record = OrderEvent::Paid { order_id, currency: "EUR".to_owned() }.to_record()?;
/// assert_eq!(record.aggregate_type(), "order");
/// assert_eq!(record.aggregate_id(), order_id.to_string());
/// assert_eq!(record.event_type(), "OrderPaid");
/// assert_eq!(
///     record.headers(),
///     [("eventVersion".to_owned(), "2".to_owned()), ("currency".to_owned(), "EUR".to_owned())],
/// );
/// # Ok::<(), RecordError>(())
/// ```
///
/// # Attributes
///
/// All attributes are keys of `#[outbox(..)]`. A key on an enum sets the default for its variants. A variant's own key takes
/// precedence.
///
/// On a type or a variant:
///
/// | key | what it sets | default |
/// |---|---|---|
/// | `aggregate = "order"` | the aggregate type | none; it is required |
/// | `type = "OrderPlaced"` | the event type | the name of the struct or of the variant |
/// | `version = 2` | the version, sent as the header `eventVersion` | no version |
/// | `id(order_id, line)` | the aggregate id, from fields, by name or by position | the fields marked with `id` |
/// | `id = path::to::function` | the aggregate id, from a function | the fields marked with `id` |
/// | `separator = "-"` | the text between several id fields | `"/"` |
/// | `event_id = path::to::function` | the event's own id, from a function | a new UUID v7 for each record |
/// | `header("source" = "web")` | headers whose value is a text, the path of a constant, or a value in a field such as `self.context.tenant` | no headers |
/// | `headers = path::to::function` | headers from a function | no headers |
/// | `payload = path::to::function` | the payload, from a function | the value as JSON, with serde |
/// | `tombstone` | no payload | the value as JSON, with serde |
/// | `decode = ..`, `upcast(..)` | the decoding: see [`InboxEvent`](macro@InboxEvent) | |
/// | `crate = renamed` | the path of the crate that has the derive; only on the type | `::diesel_outbox`, `::sea_orm_outbox` or `::diesel_outbox_kafka`, whichever the derive was imported from |
///
/// On a field:
///
/// | key | what it sets | default |
/// |---|---|---|
/// | `id` | the field is the aggregate id, or a part of it | it is not part of the id |
/// | `event_id` | the field, a `Uuid`, is the event's own id | a new UUID v7 for each record |
/// | `header` | a header with the field's name | no header |
/// | `header = "name"` | a header with this name | no header |
///
/// Aggregate types and event types have 1 to 255 characters.
///
/// # Aggregate id
///
/// The aggregate id comes from fields or from a function. Fields are formatted with [`Display`](std::fmt::Display). Several fields
/// are joined in the order in which they are declared, or in which `id(..)` lists them. Choose a `separator` that cannot occur in
/// the fields themselves. Otherwise two aggregates may get the same id.
///
/// A function takes the event by reference and returns anything that implements [`Display`](std::fmt::Display). It can be a method:
/// `id = Self::method`.
///
/// ```
/// # use diesel_outbox::{OutboxEvent, RecordError};
/// # use diesel_outbox_derive::OutboxEvent;
/// # use serde::Serialize;
/// #[derive(Serialize, OutboxEvent)]
/// #[outbox(aggregate = "order-line", id(order_id, line), separator = ":")]
/// enum LineEvent {
///     Added { order_id: u64, line: u16, quantity: u32 },
///     Removed { order_id: u64, line: u16 },
///     #[outbox(aggregate = "order", id = Self::order)]
///     Cleared(Vec<LineEvent>),
/// }
///
/// impl LineEvent {
///     fn order(&self) -> String {
///         // ..
/// #       "7".to_owned()
///     }
/// }
///
/// assert_eq!(LineEvent::Removed { order_id: 7, line: 2 }.to_record()?.aggregate_id(), "7:2");
/// assert_eq!(LineEvent::Cleared(vec![]).to_record()?.aggregate_id(), "7");
/// # Ok::<(), RecordError>(())
/// ```
///
/// # Event id
///
/// Consumers recognise a duplicate by the event's own id. By default each call of `to_record` makes a new one. If the event
/// already has an id, such as that of a request, mark the field. If the same event is then emitted twice, both records have the
/// same id, and a consumer's inbox handles the event once.
///
/// ```
/// # use diesel_outbox::{OutboxEvent, RecordError};
/// # use diesel_outbox_derive::OutboxEvent;
/// # use serde::Serialize;
/// # use uuid::Uuid;
/// #[derive(Serialize, OutboxEvent)]
/// #[outbox(aggregate = "payment")]
/// struct PaymentRequested {
///     #[outbox(id)]
///     account: u64,
///     #[outbox(event_id)]
///     request: Uuid,
/// }
///
/// let request = Uuid::now_v7();
/// assert_eq!(PaymentRequested { account: 7, request }.to_record()?.id(), request);
/// # Ok::<(), RecordError>(())
/// ```
///
/// # Event type and version
///
/// Consumers see the event type. If you rename a Rust type or a variant, keep the old event type with `type = "OrderPlaced"`.
/// Several variants may share a type if their `version` differs.
///
/// # Headers
///
/// The version comes first, then the headers of the type, then those of fields, then those of a function. Values are formatted
/// with [`Display`](std::fmt::Display). A field whose type is written as `Option<..>` adds no header if it is `None`. A
/// variant's header replaces the enum's header of the same name. The names `id` and `eventType` are reserved.
///
/// A value may lie inside a field: `header("tenant" = self.context.tenant)`. This works for structs and for variants. A function
/// for headers takes the event by reference and returns pairs of names and values, such as a `Vec<(String, String)>`. Use one if
/// the number of headers varies.
///
/// For headers that all events of a request share, use `Outbox` of diesel-outbox instead. It adds them to any event.
///
/// ```
/// # use diesel_outbox::{OutboxEvent, RecordError};
/// # use diesel_outbox_derive::OutboxEvent;
/// # use serde::Serialize;
/// const REGION: &str = "eu";
///
/// #[derive(Serialize, OutboxEvent)]
/// #[outbox(aggregate = "order", header("source" = "web", "region" = REGION))]
/// struct OrderPlaced {
///     #[outbox(id)]
///     order_id: u64,
///     #[outbox(header = "traceparent")]
///     #[serde(skip)]
///     trace: Option<String>,
/// }
///
/// let record = OrderPlaced { order_id: 7, trace: None }.to_record()?;
/// let names: Vec<&str> = record.headers().iter().map(|(name, _)| name.as_str()).collect();
/// assert_eq!(names, ["source", "region"]);
/// # Ok::<(), RecordError>(())
/// ```
///
/// # Payload
///
/// By default the payload is the value as JSON, and serde's attributes shape it. The payload of an enum is the content of the
/// variant without the name of the variant, because the event type says that already: `{"order_id":7}` and not
/// `{"Placed":{"order_id":7}}`. If the enum has another of serde's representations, such as `#[serde(untagged)]` or
/// `#[serde(tag = "..")]`, the payload is what serde writes.
///
/// For another encoding, name a function. It takes the event by reference and returns `Vec<u8>`, or `Result<Vec<u8>, E>` with any
/// error that converts into `Box<dyn Error + Send + Sync>`. The error becomes `RecordError::Encode`. Many encoders already have
/// this signature: `prost::Message::encode_to_vec`, `rmp_serde::to_vec`, or `serde_json::to_vec` for a payload that contains the
/// name of the variant.
///
/// A `tombstone` has no payload, which makes a compacted topic forget the aggregate. Of its fields only those in the id and in
/// headers are sent; all others are dropped.
///
/// ```
/// # use diesel_outbox::{OutboxEvent, RecordError};
/// # use diesel_outbox_derive::OutboxEvent;
/// #[derive(OutboxEvent)]
/// #[outbox(aggregate = "sensor", id(sensor), payload = encode)]
/// enum SensorEvent {
///     Measured { sensor: u32, celsius: f32 },
///     #[outbox(tombstone)]
///     Removed { sensor: u32 },
/// }
///
/// fn encode(event: &SensorEvent) -> Result<Vec<u8>, String> {
///     match event {
///         SensorEvent::Measured { celsius, .. } => Ok(celsius.to_be_bytes().to_vec()),
///         SensorEvent::Removed { .. } => Err("nothing to encode".to_owned()),
///     }
/// }
///
/// let record = SensorEvent::Measured { sensor: 3, celsius: 21.5 }.to_record()?;
/// assert_eq!(record.payload(), Some(&21.5_f32.to_be_bytes()[..]));
/// assert_eq!(SensorEvent::Removed { sensor: 3 }.to_record()?.payload(), None);
/// # Ok::<(), RecordError>(())
/// ```
///
/// # Generic types
///
/// The implementation requires only what the record needs: `Self: Serialize` if the payload is JSON, and
/// [`Display`](std::fmt::Display) for the types of the id and the headers if they depend on a parameter. If one of your functions
/// requires more, add that to the bounds of the type itself.
///
/// ```
/// # use diesel_outbox::{OutboxEvent, RecordError};
/// # use diesel_outbox_derive::OutboxEvent;
/// # use serde::Serialize;
/// #[derive(Serialize, OutboxEvent)]
/// #[outbox(aggregate = "document", type = "DocumentChanged")]
/// struct Changed<'a, K, T> {
///     #[outbox(id)]
///     key: K,
///     content: &'a T,
/// }
///
/// let record = Changed { key: "readme", content: &["a", "b"] }.to_record()?;
/// assert_eq!(record.payload(), Some(&br#"{"key":"readme","content":["a","b"]}"#[..]));
/// # Ok::<(), RecordError>(())
/// ```
///
/// # Renamed dependency
///
/// If diesel-outbox has another name in your manifest, or if a crate of yours re-exports it, name its path:
/// `#[outbox(crate = outbox)]` or `#[outbox(crate = platform::outbox)]`. A crate of events that does not need Diesel depends on
/// `diesel-outbox-core` and `diesel-outbox-derive`, and writes `#[outbox(crate = diesel_outbox_core)]`.
#[proc_macro_derive(OutboxEvent, attributes(outbox))]
pub fn derive_outbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Outbox, Library::Diesel).into()
}

/// Implements `OutboxEvent` of sea-orm-outbox, which re-exports this derive under that name. Its attributes are those of
/// [`OutboxEvent`](macro@OutboxEvent), but the default of `crate` is `::sea_orm_outbox`.
#[proc_macro_derive(SeaOrmOutboxEvent, attributes(outbox))]
pub fn derive_sea_orm_outbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Outbox, Library::SeaOrm).into()
}

/// Implements `OutboxEvent` of diesel-outbox-kafka, which re-exports this derive under that name. Its attributes are those of
/// [`OutboxEvent`](macro@OutboxEvent), but the default of `crate` is `::diesel_outbox_kafka`.
#[proc_macro_derive(KafkaOutboxEvent, attributes(outbox))]
pub fn derive_kafka_outbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Outbox, Library::Kafka).into()
}

/// Implements `InboxEvent`, which decodes an event by its type and version into the variant that was emitted, or returns an error.
///
/// It reads the same attributes as [`OutboxEvent`](macro@OutboxEvent). Derive both on one type, or only this one on the consumer's
/// own type, which needs neither `aggregate` nor `id`.
///
/// ```
/// # use diesel_outbox::{DecodeError, EncodedEvent, InboxEvent, OutboxEvent};
/// # use diesel_outbox_derive::{InboxEvent, OutboxEvent};
/// use serde::{Deserialize, Serialize};
/// use uuid::Uuid;
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, OutboxEvent, InboxEvent)]
/// #[outbox(aggregate = "order", id(order_id))]
/// enum OrderEvent {
///     #[outbox(type = "OrderPlaced")]
///     Placed { order_id: Uuid, total_cents: i64 },
///     #[outbox(type = "OrderPaid")]
///     Paid { order_id: Uuid },
///     #[outbox(type = "OrderDropped", tombstone)]
///     Dropped { order_id: Uuid },
/// }
///
/// let paid = OrderEvent::Paid { order_id: Uuid::now_v7() };
/// let record = paid.to_record()?;
/// assert_eq!(OrderEvent::decode(&EncodedEvent::try_from(&record)?)?, paid);
///
/// let other = EncodedEvent::new("OrderShipped").with_payload(Some(b"{}"));
/// assert!(matches!(OrderEvent::decode(&other), Err(DecodeError::UnknownType { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Payload
///
/// By default the payload is JSON and is read with the type's own `Deserialize`, which must not borrow from the payload. The payload
/// of an enum is the content of the variant. If serde chooses the variant itself, as with `#[serde(untagged)]`, and chooses
/// another one than the event type names, decoding fails with `DecodeError::WrongType`. The event types of variants with
/// `#[serde(skip)]` are unknown.
///
/// `decode = path::to::function` is the counterpart of `payload = path::to::function`. It takes the payload's bytes and returns
/// the event, or a `Result` with any error that converts into `Box<dyn Error + Send + Sync>`. `rmp_serde::from_slice` is an
/// example. A variant with its own `payload` needs its own `decode`. If the function of an enum returns another variant than the
/// event type names, decoding fails with `DecodeError::WrongType`.
///
/// An enum with serde's `into` needs `from` or `try_from` too, or a `decode` function: what serde writes for the other type is not
/// the content of a variant.
///
/// A `tombstone` has no payload. Its fields are read from the aggregate id with [`FromStr`](std::str::FromStr), so all of them
/// must be parts of the id. If they are not, write `decode = path::to::function` on the tombstone. That function takes the
/// aggregate id, a `&str`. If such an event has a payload all the same, for example one from another program, it is ignored.
///
/// # Versions
///
/// An event without a version has version 1, on both sides. A version that is not listed is a
/// `DecodeError::UnknownVersion`. To decode an older version, name a function in `upcast`. It takes the old payload as any type
/// that implements `Deserialize`, and returns the event or a `Result`:
///
/// ```
/// # use diesel_outbox::{DecodeError, EncodedEvent, InboxEvent};
/// # use diesel_outbox_derive::InboxEvent;
/// # use serde::Deserialize;
/// #[derive(Debug, PartialEq, Deserialize, InboxEvent)]
/// #[outbox(version = 3, upcast(1 = from_euros, 2 = Self::from_json))]
/// struct OrderPlaced {
///     order_id: u64,
///     total_cents: u64,
/// }
///
/// #[derive(Deserialize)]
/// struct OrderPlacedV1 {
///     order_id: u64,
///     total_euros: u64,
/// }
///
/// fn from_euros(old: OrderPlacedV1) -> OrderPlaced {
///     OrderPlaced { order_id: old.order_id, total_cents: old.total_euros * 100 }
/// }
///
/// impl OrderPlaced {
///     fn from_json(mut old: serde_json::Value) -> serde_json::Result<Self> {
///         old["order_id"] = old["order"].take();
///         serde_json::from_value(old)
///     }
/// }
///
/// let old = EncodedEvent::new("OrderPlaced").with_version(Some(1)).with_payload(Some(br#"{"order_id":7,"total_euros":9}"#));
/// assert_eq!(OrderPlaced::decode(&old)?, OrderPlaced { order_id: 7, total_cents: 900 });
/// let old = old.with_version(Some(2)).with_payload(Some(br#"{"order":7,"total_cents":900}"#));
/// assert_eq!(OrderPlaced::decode(&old)?, OrderPlaced { order_id: 7, total_cents: 900 });
/// # Ok::<(), DecodeError>(())
/// ```
///
/// If the type has a `decode` function, the functions in `upcast` take bytes too. Two variants may share an event type if their
/// versions differ.
#[proc_macro_derive(InboxEvent, attributes(outbox))]
pub fn derive_inbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Inbox, Library::Diesel).into()
}

/// Implements `InboxEvent` of sea-orm-outbox, which re-exports this derive under that name. Its attributes are those of
/// [`InboxEvent`](macro@InboxEvent), but the default of `crate` is `::sea_orm_outbox`.
#[proc_macro_derive(SeaOrmInboxEvent, attributes(outbox))]
pub fn derive_sea_orm_inbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Inbox, Library::SeaOrm).into()
}

/// Implements `InboxEvent` of diesel-outbox-kafka, which re-exports this derive under that name. Its attributes are those of
/// [`InboxEvent`](macro@InboxEvent), but the default of `crate` is `::diesel_outbox_kafka`.
#[proc_macro_derive(KafkaInboxEvent, attributes(outbox))]
pub fn derive_kafka_inbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Inbox, Library::Kafka).into()
}

/// The trait to derive. If both derives find the same mistake, the compiler shows it once, because the two errors are equal.
#[derive(Clone, Copy)]
enum Derived {
    Outbox,
    Inbox,
}

/// The library whose traits are implemented, unless the type names another crate.
#[derive(Clone, Copy)]
enum Library {
    Diesel,
    SeaOrm,
    Kafka,
}

fn derive(input: &DeriveInput, derived: Derived, library: Library) -> proc_macro2::TokenStream {
    implement(input, derived, library)
        .unwrap_or_else(|error| fallback::expand(input, &error, derived, library))
}

fn implement(
    input: &DeriveInput,
    derived: Derived,
    library: Library,
) -> syn::Result<proc_macro2::TokenStream> {
    let input = ast::Input::parse(input, library)?;
    Ok(match derived {
        Derived::Outbox => expand::expand(&input, &valid::check(&input)?),
        Derived::Inbox => expand::expand_decoding(&input, &valid::check_decoding(&input)?),
    })
}

#[cfg(test)]
mod tests {
    use syn::{DeriveInput, parse_quote};

    use super::{Derived, Library};

    #[test]
    fn a_renamed_crate_goes_by_its_new_name_only() {
        let everything: DeriveInput = parse_quote! {
            #[outbox(aggregate = "a", version = 1, header("x" = X), crate = renamed)]
            enum Event<T> {
                Json(#[outbox(id)] T, #[outbox(header = "note")] Option<T>),
                #[outbox(id = id, payload = payload, decode = decode)]
                Functions,
            }
        };
        let broken: DeriveInput = parse_quote! {
            #[outbox(typo, crate = "renamed", id(x))]
            struct Event<T>(T);
        };
        for input in [everything, broken] {
            for (derived, name) in [(Derived::Outbox, "OutboxEvent"), (Derived::Inbox, "InboxEvent")] {
                let code = super::derive(&input, derived, Library::Diesel).to_string();
                assert!(code.contains(&format!("impl < T > renamed :: {name} for Event < T >")), "{code}");
                assert!(!code.contains("diesel_outbox"), "{code}");
            }
        }
    }

    #[test]
    fn the_derives_of_other_crates_find_them_by_themselves() {
        let sound: DeriveInput = parse_quote! {
            #[outbox(aggregate = "a", version = 1, header("x" = X))]
            enum Event { Json(#[outbox(id)] u8), #[outbox(id = id, payload = payload, decode = decode)] Functions }
        };
        let broken: DeriveInput = parse_quote! { #[outbox(typo)] struct Event; };
        for (library, of) in [(Library::SeaOrm, "sea_orm_outbox"), (Library::Kafka, "diesel_outbox_kafka")] {
            for input in [&sound, &broken] {
                for (derived, name) in [(Derived::Outbox, "OutboxEvent"), (Derived::Inbox, "InboxEvent")] {
                    let code = super::derive(input, derived, library).to_string();
                    assert!(code.contains(&format!("impl :: {of} :: {name} for Event")), "{code}");
                    assert!(!code.contains(":: diesel_outbox ::"), "{code}");
                }
            }
        }
    }
}
