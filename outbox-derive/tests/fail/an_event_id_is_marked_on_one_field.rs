use diesel_outbox_derive::OutboxEvent;
use uuid::Uuid;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone)]
struct OrderPlaced {
    #[outbox(id, event_id)]
    order_id: Uuid,
    #[outbox(event_id)]
    other: Uuid,
}

fn main() {}
