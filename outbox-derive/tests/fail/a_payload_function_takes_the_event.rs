use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id(0), payload = encode)]
struct OrderPlaced(u64);

fn encode(_: &str) -> Vec<u8> {
    Vec::new()
}

fn main() {}
