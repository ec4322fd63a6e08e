use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id = Self::key, tombstone)]
struct OrderPlaced(u64);

fn main() {}
