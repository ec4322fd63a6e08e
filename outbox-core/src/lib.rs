//! The database- and broker-independent parts of diesel-outbox.
//!
//! In a service, depend on `diesel-outbox` or `sea-orm-outbox`, which re-export what you need from here. Depend on this crate directly
//!
//! - in a crate that defines events and does not need Diesel: use `#[derive(OutboxEvent)]` of `diesel-outbox-derive` with
//!   `#[outbox(crate = diesel_outbox_core)]`;
//! - to connect a relay to another database or broker: implement [`Source`] or [`Publisher`].
//!
//! | item | what it is |
//! |---|---|
//! | [`OutboxEvent`], [`InboxEvent`] | the traits of domain types that are emitted and decoded |
//! | [`Record`] | an event as it is stored and sent |
//! | [`wire`] | the format of a record on Kafka |
//! | [`Source`], [`Publisher`] | the two ends of a relay |
//! | [`shard_of`] | the shard of an aggregate, which every program that writes to the outbox must compute |
//!
//! An event is any type that can be turned into a record:
//!
//! ```
//! use diesel_outbox_core::{OutboxEvent, Record, RecordError};
//!
//! struct OrderPlaced { order_id: u64, total_cents: i64 }
//!
//! // `#[derive(OutboxEvent)]` writes such an implementation for you:
//! impl OutboxEvent for OrderPlaced {
//!     fn to_record(&self) -> Result<Record, RecordError> {
//!         Record::new("order", self.order_id.to_string(), "OrderPlaced")
//!             .version(1)
//!             .json(&serde_json::json!({ "total_cents": self.total_cents }))
//!     }
//! }
//!
//! let record = OrderPlaced { order_id: 7, total_cents: 990 }.to_record()?;
//! assert_eq!(record.aggregate_id(), "7");
//! assert_eq!(record.payload(), Some(&br#"{"total_cents":990}"#[..]));
//! # Ok::<(), RecordError>(())
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

#[doc(hidden)]
pub mod __private;
#[doc(hidden)]
pub mod advisory_locks;
mod decode_error;
mod encoded;
mod event;
mod publisher;
mod record;
mod scheduled;
mod shard;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod variant;
pub mod wire;

pub use decode_error::DecodeError;
pub use encoded::{EncodedEvent, InboxEvent};
pub use event::OutboxEvent;
pub use publisher::{Acknowledgement, Broker, Lane, Outcome, PublishError, Publisher, Refusal};
pub use record::{Record, RecordError};
pub use scheduled::ScheduledEvent;
pub use shard::{SHARDS, shard_of};
pub use source::{Claimed, DeadLetterPolicy, DeadLettered, Lag, Source, SourceError, WalLag};
