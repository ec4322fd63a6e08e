use diesel_outbox::InboxEvent;
use serde::Deserialize;
use uuid::Uuid;

/// What billing reads of the events of orders; what else they hold is of no interest here.
#[derive(Deserialize, InboxEvent)]
pub(crate) enum OrderEvent {
    #[outbox(type = "OrderPlaced")]
    Placed { order_id: Uuid, customer: String, total_cents: i64 },
    #[outbox(type = "OrderPaid")]
    Paid { order_id: Uuid },
}
