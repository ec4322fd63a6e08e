use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", version = 2)]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
    #[outbox(header = "eventVersion")]
    version: u32,
}

fn main() {}
