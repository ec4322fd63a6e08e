use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id(order_id))]
enum OrderEvent {
    Placed { order_id: u64 },
    Paid { order: u64 },
}

fn main() {}
