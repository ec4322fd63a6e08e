//! Derived code raises no warning under the strictest lints of its user.

#![deny(
    warnings,
    missing_docs,
    nonstandard_style,
    future_incompatible,
    let_underscore,
    refining_impl_trait,
    rust_2018_idioms,
    elided_lifetimes_in_paths,
    explicit_outlives_requirements,
    missing_debug_implementations,
    redundant_imports,
    redundant_lifetimes,
    single_use_lifetimes,
    trivial_casts,
    trivial_numeric_casts,
    unnameable_types,
    unreachable_pub,
    unused,
    unused_import_braces,
    unused_lifetimes,
    unused_macro_rules,
    unused_qualifications,
    unused_results,
    variant_size_differences
)]
#![deny(clippy::all, clippy::pedantic)]
#![forbid(unsafe_code)]

use diesel_outbox_derive::{InboxEvent, OutboxEvent};
use serde::{Deserialize, Serialize};

/// A struct with every attribute.
#[derive(Debug, Serialize, OutboxEvent)]
#[outbox(aggregate = "order", type = "OrderPlaced", version = 1, header("source" = "web", "region" = REGION))]
pub struct OrderPlaced {
    /// Its id.
    #[outbox(id, header)]
    pub order_id: u64,
    /// Its line.
    #[outbox(id)]
    pub line: u8,
    /// Its coupon.
    #[outbox(header)]
    pub coupon: Option<String>,
}

const REGION: &str = "eu";

/// An enum with parameters of all kinds.
#[derive(Debug, Serialize, OutboxEvent)]
#[outbox(aggregate = "order")]
pub enum OrderEvent<'a, K: Copy, T, const N: usize> {
    /// By name.
    Placed {
        /// Its id.
        #[outbox(id)]
        key: K,
        /// Its note.
        #[outbox(header)]
        note: Option<&'a T>,
    },
    /// By position.
    #[outbox(id(0))]
    Paid(u64, #[serde(skip)] [u8; N]),
    /// Without fields.
    #[outbox(id = id::<Self>, tombstone)]
    Unit,
    /// Through a function.
    #[outbox(payload = serde_json::to_vec)]
    Encoded(#[outbox(id, header = "bytes")] String),
    /// A thing of the past.
    #[deprecated]
    #[outbox(id(order_id))]
    Old {
        /// Its id.
        #[deprecated]
        order_id: u64,
    },
}

const fn id<E>(_: &E) -> &'static str {
    "all"
}

/// A decoded enum.
#[derive(Debug, Serialize, Deserialize, OutboxEvent, InboxEvent)]
#[outbox(aggregate = "order", event_id = fresh, header("tenant" = self.context.0), headers = more)]
pub enum Both<K, T> {
    /// By name, of an older version.
    #[outbox(version = 2, upcast(1 = older))]
    Placed {
        /// Its id.
        #[outbox(id)]
        key: K,
        /// Its content.
        content: Option<T>,
        /// Its context.
        context: (String,),
    },
    /// Of an id in two parts.
    #[outbox(tombstone)]
    Gone {
        /// Its id.
        #[outbox(id)]
        key: K,
        /// Its context.
        #[outbox(id)]
        context: Text,
    },
    /// A thing of the past.
    #[deprecated]
    #[outbox(tombstone)]
    Old {
        /// Its id.
        #[deprecated]
        #[outbox(id)]
        context: Text,
    },
    /// By functions.
    #[outbox(payload = encode, decode = decode)]
    Encoded {
        /// Its id.
        #[outbox(id)]
        context: Text,
    },
}

/// A text in a nested type.
#[derive(Debug, Serialize, Deserialize)]
pub struct Text(String, String);

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Text {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned(), String::new()))
    }
}

fn fresh<E>(_: &E) -> uuid::Uuid {
    uuid::Uuid::nil()
}

fn more<E>(_: &E) -> [(String, String); 0] {
    []
}

fn encode<E>(_: &E) -> Vec<u8> {
    Vec::new()
}

fn decode<K, T>(payload: &[u8]) -> Result<Both<K, T>, std::str::Utf8Error> {
    let text = std::str::from_utf8(payload)?.to_owned();
    Ok(Both::Encoded { context: Text(text, String::new()) })
}

fn older<K, T>(text: String) -> Both<K, T> {
    Both::Encoded { context: Text(text, String::new()) }
}

/// A decoded struct.
#[derive(Debug, Serialize, Deserialize, OutboxEvent, InboxEvent)]
#[outbox(aggregate = "order", version = 2)]
pub struct Changed {
    /// Its id.
    #[outbox(id)]
    pub order_id: u64,
    /// The event's.
    #[outbox(event_id)]
    pub event_id: uuid::Uuid,
}

/// Without anything.
#[derive(Debug, OutboxEvent)]
#[outbox(aggregate = "settings", id = id, tombstone)]
pub struct SettingsReset;

/// Never.
#[derive(Debug, Serialize, OutboxEvent)]
#[outbox(aggregate = "never")]
pub enum Never {}

/// A bound on a private type.
#[derive(Debug, OutboxEvent)]
#[outbox(aggregate = "wrapped", tombstone)]
pub struct Public<T>(#[outbox(id)] Private<T>);

#[derive(Debug)]
struct Private<T>(T);

impl<T: std::fmt::Display> std::fmt::Display for Private<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn main() {}

#[test]
fn derived_code_compiles_under_them() {}
