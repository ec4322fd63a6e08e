use diesel_outbox_derive::OutboxEvent;

struct Key;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone)]
struct OrderPlaced {
    #[outbox(id)]
    key: Key,
}

fn main() {}
