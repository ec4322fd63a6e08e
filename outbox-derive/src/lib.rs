//! `#[derive(OutboxEvent)]` and `#[derive(InboxEvent)]` for diesel-outbox, which re-exports them: depend on that crate.
//!
//! The derives' own pages describe every attribute: [`OutboxEvent`](macro@OutboxEvent), which makes a type an event, and
//! [`InboxEvent`](macro@InboxEvent), which decodes it again.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod ast;
mod attr;
mod expand;
mod fallback;
mod serde_attr;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Makes a struct or an enum an event, which can be emitted.
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
/// All are keys of `#[outbox(..)]`. What an enum says is the default for its variants, and what a variant says
/// itself comes first.
///
/// On a type or a variant:
///
/// | key | what it sets | default |
/// |---|---|---|
/// | `aggregate = "order"` | the aggregate type | none: it must be set |
/// | `type = "OrderPlaced"` | the event type | the name of the struct or of the variant |
/// | `version = 2` | the version, sent as the header `eventVersion` | no version |
/// | `id(order_id, line)` | the aggregate id, from fields, by name or by position | the fields marked with `id` |
/// | `id = path::to::function` | the aggregate id, from a function | the fields marked with `id` |
/// | `separator = "-"` | what stands between several id fields | `"/"` |
/// | `event_id = path::to::function` | the event's own id, from a function | a new one for each record |
/// | `header("source" = "web")` | headers with a text, the path of a constant, or `self.context.tenant` | no headers |
/// | `headers = path::to::function` | headers from a function | no headers |
/// | `payload = path::to::function` | the payload's encoding | JSON, through serde |
/// | `tombstone` | no payload | JSON, through serde |
/// | `decode = ..`, `upcast(..)` | for decoding: see [`InboxEvent`](macro@InboxEvent) | |
/// | `crate = renamed` | the path of diesel-outbox; on the type only | `::diesel_outbox` |
///
/// On a field:
///
/// | key | what it sets | default |
/// |---|---|---|
/// | `id` | the field is the aggregate id, or a part of it | it is not |
/// | `event_id` | the field, a `Uuid`, is the event's own id | a new one for each record |
/// | `header` | a header with the field's name | no header |
/// | `header = "name"` | a header with this name | no header |
///
/// Names are texts of 1 to 255 characters.
///
/// # Aggregate id
///
/// The id comes from fields or from a function. Fields are written with [`Display`](std::fmt::Display); several are
/// joined in the order in which they are declared, or listed. Choose a `separator` that cannot occur in the fields
/// themselves, or two aggregates may get the same id.
///
/// A function takes the event by reference and returns anything with [`Display`](std::fmt::Display). A method works
/// as well, as `Self::method`.
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
/// The event's own id is what consumers recognise a duplicate by. Each call of `to_record` makes a new one. If the event
/// brings an id with it, such as a request's, mark that field: then emitting the same event twice stores one id twice, and a
/// consumer's inbox handles it once.
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
/// Consumers see the event type, so give it a name of its own before you rename a Rust type or a variant:
/// `type = "OrderPlaced"` keeps what they see. Several variants may share a type, and differ by `version`.
///
/// # Headers
///
/// The version comes first, then the type's headers, then those of fields, then those of a function. Values are written
/// with [`Display`](std::fmt::Display). A field whose type is written as `Option<..>` is left out if it is `None`. A
/// variant's header replaces the enum's header of the same name. The names `id` and `eventType` are reserved.
///
/// A value may lie within a field: `header("tenant" = self.context.tenant)`, for a struct as for a variant. A function for
/// headers takes the event by reference and returns pairs of names and values, such as a `Vec<(String, String)>`. Use it
/// if there are headers only now and then. For headers that every event of a request carries, see
/// `Outbox` of diesel-outbox, which needs nothing of the event.
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
/// By default the payload is what serde makes of the value as JSON, so serde's attributes shape it. Of an enum it is
/// what the variant holds, without the name of the variant, because the event type says that already:
/// `{"order_id":7}` and not `{"Placed":{"order_id":7}}`. An enum with another representation of serde's, such as
/// `#[serde(untagged)]` or `#[serde(tag = "..")]`, is written as serde writes it.
///
/// A function for another encoding takes the event by reference. It returns `Vec<u8>`, or `Result<Vec<u8>, E>` with
/// any error that converts into `Box<dyn Error + Send + Sync>`, which becomes
/// `RecordError::Encode`. Many encoders have this shape already: `prost::Message::encode_to_vec`,
/// `rmp_serde::to_vec`, or, for a variant whose payload is to have the variant's name in it, `serde_json::to_vec`.
///
/// A `tombstone` has no payload, which makes a compacted topic forget the aggregate.
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
/// The implementation asks for what the record needs and no more: `Self: Serialize` where the payload is JSON, and
/// [`Display`](std::fmt::Display) of the id's and headers' types where these depend on a parameter. What a function
/// of yours asks for must be among the type's own bounds.
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
/// If diesel-outbox has another name in your manifest, or comes through a crate of yours, say where it is:
/// `#[outbox(crate = outbox)]`, or `#[outbox(crate = platform::outbox)]`. A crate of events that knows nothing of Diesel
/// depends on `diesel-outbox-core` and `diesel-outbox-derive`, and writes `#[outbox(crate = diesel_outbox_core)]`.
#[proc_macro_derive(OutboxEvent, attributes(outbox))]
pub fn derive_outbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Outbox).into()
}

/// Decodes events by their type and version, so that a consumer gets the variant that was emitted, or an error.
///
/// It reads the same attributes as [`OutboxEvent`](macro@OutboxEvent). Put both on one type, or this one alone on a type of the
/// consumer's own, which needs neither `aggregate` nor `id`.
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
/// assert_eq!(OrderEvent::decode(&EncodedEvent::from(&record))?, paid);
///
/// let other = EncodedEvent::new("OrderShipped").payload(Some(b"{}"));
/// assert!(matches!(OrderEvent::decode(&other), Err(DecodeError::UnknownType { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Payload
///
/// By default the payload is JSON, read through the type's own `Deserialize`, which must not borrow. Of an enum it is what the
/// variant holds. If serde chooses the variant itself, as with `#[serde(untagged)]`, and chooses another one than the event
/// type names, that is `DecodeError::WrongType`. Variants with `#[serde(skip)]` are unknown types.
///
/// `decode = path::to::function` is the counterpart of `payload = path::to::function`. It takes the payload's bytes and returns
/// the event, or a `Result` with any error that converts into `Box<dyn Error + Send + Sync>`: `rmp_serde::from_slice`, for
/// example. A variant with a `payload` of its own needs a `decode` of its own.
///
/// A `tombstone` has no payload. Its fields are read from the aggregate id with [`FromStr`](std::str::FromStr), so all of them
/// must be parts of the id. If that cannot be, `decode = path::to::function` on the tombstone takes the aggregate id, a `&str`.
///
/// # Versions
///
/// An event without a version has version 1, on both sides. A version that is not listed is
/// `DecodeError::UnknownVersion`. An older version is brought up to date by a function, which takes the old payload as
/// anything that implements `Deserialize`, and returns the event or a `Result`:
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
/// let old = EncodedEvent::new("OrderPlaced").version(Some(1)).payload(Some(br#"{"order_id":7,"total_euros":9}"#));
/// assert_eq!(OrderPlaced::decode(&old)?, OrderPlaced { order_id: 7, total_cents: 900 });
/// let old = old.version(Some(2)).payload(Some(br#"{"order":7,"total_cents":900}"#));
/// assert_eq!(OrderPlaced::decode(&old)?, OrderPlaced { order_id: 7, total_cents: 900 });
/// # Ok::<(), DecodeError>(())
/// ```
///
/// With `decode`, the functions for older versions take bytes as well. Two variants may share an event type if their versions
/// differ.
#[proc_macro_derive(InboxEvent, attributes(outbox))]
pub fn derive_inbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input, Derived::Inbox).into()
}

/// The trait that is derived. A mistake that both would report is reported by the compiler once, because the two errors are
/// the same.
#[derive(Clone, Copy)]
enum Derived {
    Outbox,
    Inbox,
}

fn derive(input: &DeriveInput, derived: Derived) -> proc_macro2::TokenStream {
    implement(input, derived).unwrap_or_else(|error| fallback::expand(input, &error, derived))
}

fn implement(input: &DeriveInput, derived: Derived) -> syn::Result<proc_macro2::TokenStream> {
    let input = ast::Input::parse(input)?;
    Ok(match derived {
        Derived::Outbox => expand::expand(&input, &valid::check(&input)?),
        Derived::Inbox => expand::expand_decoding(&input, &valid::check_decoding(&input)?),
    })
}

#[cfg(test)]
mod tests {
    use syn::{DeriveInput, parse_quote};

    use super::Derived;

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
                let code = super::derive(&input, derived).to_string();
                assert!(code.contains(&format!("impl < T > renamed :: {name} for Event < T >")), "{code}");
                assert!(!code.contains("diesel_outbox"), "{code}");
            }
        }
    }
}
