use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id = |order| order.order_id)]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
