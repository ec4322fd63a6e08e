use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id(0), payload = encode)]
enum OrderEvent {
    Placed(u64),
    Paid(u64),
}

fn encode(_: &OrderEvent) -> &'static str {
    "{}"
}

fn main() {}
