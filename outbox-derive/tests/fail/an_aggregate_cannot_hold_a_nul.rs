use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "or\0der")]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn main() {}
