use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone, headers = headers)]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn headers(_: &OrderPlaced) -> u8 {
    1
}

fn main() {}
