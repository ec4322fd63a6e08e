use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "line", separator = "")]
struct OrderPlaced {
    #[outbox(id)]
    order: u64,
    #[outbox(id)]
    line: u64,
}

fn main() {}
