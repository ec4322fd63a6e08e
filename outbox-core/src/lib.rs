//! The parts of a transactional outbox that know neither a database nor a broker: what an [event](OutboxEvent) is,
//! how it looks as a stored [record](Record), how that record looks [on Kafka](wire), and the two small traits
//! between which a relay works, a [`Source`] of records and a [`Publisher`].
//!
//! In a service that emits events, depend on `diesel-outbox`, which re-exports what you need from here. Depend on
//! this crate alone if you write a source or a publisher of your own.
//!
//! ```
//! use diesel_outbox_core::{OutboxEvent, Record, RecordError};
//!
//! struct OrderPlaced { order_id: u64, total_cents: i64 }
//!
//! // What `#[derive(OutboxEvent)]` writes for you:
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
#[path = "private.rs"]
pub mod __private;
#[doc(hidden)]
pub mod advisory_locks;
mod decode_error;
mod encoded;
mod event;
mod publisher;
mod record;
mod shard;
mod source;
mod variant;
pub mod wire;

pub use decode_error::DecodeError;
pub use encoded::{EncodedEvent, InboxEvent};
pub use event::OutboxEvent;
pub use publisher::{Acknowledgement, Broker, Outcome, PublishError, Publisher, Refusal};
pub use record::{Record, RecordError};
pub use shard::{SHARDS, shard_of};
pub use source::{Claimed, DeadLetterPolicy, DeadLettered, Lag, Source, SourceError, WalLag};
