//! A transactional outbox and inbox for Diesel.

pub use diesel_outbox_core::{OutboxEvent, Record, RecordError, wire};
