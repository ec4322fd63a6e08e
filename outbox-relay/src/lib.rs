//! The relay that brings outbox records to the broker
