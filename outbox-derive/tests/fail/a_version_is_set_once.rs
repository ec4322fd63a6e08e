use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", version = 1, version = 2)]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn main() {}
