use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone)]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
    #[outbox(event_id)]
    event_id: u64,
}

fn main() {}
