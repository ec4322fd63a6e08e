use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone)]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
