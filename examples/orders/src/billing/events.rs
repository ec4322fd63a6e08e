use diesel_outbox_kafka::InboxEvent;
use serde::Deserialize;
use uuid::Uuid;

/// The parts of an order's events that billing needs. It ignores their other fields.
#[derive(Deserialize, InboxEvent)]
pub(crate) enum OrderEvent {
    #[outbox(type = "OrderPlaced")]
    Placed { order_id: Uuid, customer: String, total_cents: i64 },
    #[outbox(type = "OrderPaid")]
    Paid { order_id: Uuid },
}
