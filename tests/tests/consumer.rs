//! The consumer loop: every event has its effect once, even if it is redelivered, a handler fails, or a partition is taken
//! away.

#[path = "consumer/asynchronous.rs"]
mod asynchronous;
#[path = "consumer/bench.rs"]
mod bench;
#[path = "consumer/bytes.rs"]
mod bytes;
#[path = "consumer/events.rs"]
mod events;
#[path = "consumer/failures.rs"]
mod failures;
#[path = "consumer/lifecycle.rs"]
mod lifecycle;
#[path = "consumer/outages.rs"]
mod outages;
#[path = "consumer/rebalance.rs"]
mod rebalance;
#[path = "consumer/settings.rs"]
mod settings;
#[path = "consumer/unreadable.rs"]
mod unreadable;
