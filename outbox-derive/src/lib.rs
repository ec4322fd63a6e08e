//! `#[derive(OutboxEvent)]` for diesel-outbox
