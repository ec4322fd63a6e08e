use diesel_outbox_derive::OutboxEvent;
use uuid::Uuid;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone, event_id = id)]
struct OrderPlaced {
    #[outbox(id, event_id)]
    order_id: Uuid,
}

fn id(_: &OrderPlaced) -> Uuid {
    Uuid::nil()
}

fn main() {}
