use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox = "order"]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn main() {}
