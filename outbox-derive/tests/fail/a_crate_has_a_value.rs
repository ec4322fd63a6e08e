use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", crate)]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn main() {}
