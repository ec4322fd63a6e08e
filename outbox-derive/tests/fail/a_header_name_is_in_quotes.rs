use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", header(source = "web"))]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn main() {}
