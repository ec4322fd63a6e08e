use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", header("order_id" = "7"))]
struct OrderPlaced {
    #[outbox(id, header)]
    order_id: u64,
}

fn main() {}
