use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id(order_id, lime))]
struct OrderPlaced {
    order_id: u64,
    line: u64,
}

fn main() {}
