//! `#[derive(OutboxEvent)]` for diesel-outbox, which re-exports it: depend on that crate.
//!
//! [The derive's own page](macro@OutboxEvent) describes every attribute.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod ast;
mod attr;
mod expand;
mod fallback;
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
/// | `header("source" = "web")` | headers with a fixed value, a text or the path of a constant | no headers |
/// | `payload = path::to::function` | the payload's encoding | JSON, through serde |
/// | `tombstone` | no payload | JSON, through serde |
/// | `crate = renamed` | the path of diesel-outbox; on the type only | `::diesel_outbox` |
///
/// On a field:
///
/// | key | what it sets | default |
/// |---|---|---|
/// | `id` | the field is the aggregate id, or a part of it | it is not |
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
/// # Event type and version
///
/// Consumers see the event type, so give it a name of its own before you rename a Rust type or a variant:
/// `type = "OrderPlaced"` keeps what they see. Several variants may share a type, and differ by `version`.
///
/// # Headers
///
/// The version comes first, then fixed headers, then those of fields. Values are written with
/// [`Display`](std::fmt::Display). A field whose type is written as `Option<..>` is left out where it is `None`. A
/// variant's header replaces the enum's header of the same name. The names `id` and `eventType` are reserved.
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
/// By default the payload is what serde makes of the whole value as JSON, so serde's attributes shape it. An enum's
/// JSON is serde's too: `{"Placed":{..}}`, or without the name of the variant where the enum is
/// `#[serde(untagged)]`.
///
/// A function for another encoding takes the event by reference. It returns `Vec<u8>`, or `Result<Vec<u8>, E>` with
/// any error that converts into `Box<dyn Error + Send + Sync>`, which becomes
/// `RecordError::Encode`. Many encoders have this shape already: `prost::Message::encode_to_vec`,
/// `rmp_serde::to_vec`, or, for a variant that is to be JSON in an enum that is not, `serde_json::to_vec`.
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
/// Where diesel-outbox has another name in your manifest, or comes through a crate of yours, say where it is:
/// `#[outbox(crate = outbox)]`, or `#[outbox(crate = platform::outbox)]`.
#[proc_macro_derive(OutboxEvent, attributes(outbox))]
pub fn derive_outbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input).into()
}

fn derive(input: &DeriveInput) -> proc_macro2::TokenStream {
    implement(input).unwrap_or_else(|error| fallback::expand(input, &error))
}

fn implement(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let input = ast::Input::parse(input)?;
    let events = valid::check(&input)?;
    Ok(expand::expand(&input, &events))
}

#[cfg(test)]
mod tests {
    use syn::{DeriveInput, parse_quote};

    #[test]
    fn a_renamed_crate_goes_by_its_new_name_only() {
        let everything: DeriveInput = parse_quote! {
            #[outbox(aggregate = "a", version = 1, header("x" = X), crate = renamed)]
            enum Event<T> {
                Json(#[outbox(id)] T, #[outbox(header = "note")] Option<T>),
                #[outbox(id = id, payload = payload)]
                Functions,
            }
        };
        let broken: DeriveInput = parse_quote! {
            #[outbox(typo, crate = "renamed", id(x))]
            struct Event<T>(T);
        };
        for input in [everything, broken] {
            let code = super::derive(&input).to_string();
            assert!(code.contains("impl < T > renamed :: OutboxEvent for Event < T >"), "{code}");
            assert!(!code.contains("diesel_outbox"), "{code}");
        }
    }
}
