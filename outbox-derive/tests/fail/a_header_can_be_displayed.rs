use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id(0), tombstone)]
struct OrderPlaced(u64, #[outbox(header = "items")] Option<Vec<u8>>);

fn main() {}
