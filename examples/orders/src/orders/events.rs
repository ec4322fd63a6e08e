use diesel_outbox::OutboxEvent;
use serde::Serialize;
use uuid::Uuid;

/// The events that other services receive about orders, on the topic `outbox.event.order`.
#[derive(Serialize, OutboxEvent)]
#[outbox(aggregate = "order")]
pub(crate) enum OrderEvent<'a> {
    #[outbox(type = "OrderPlaced")]
    Placed {
        #[outbox(id)]
        order_id: Uuid,
        customer: &'a str,
        total_cents: i64,
    },
    #[outbox(type = "OrderPaid")]
    Paid {
        #[outbox(id)]
        order_id: Uuid,
    },
}
