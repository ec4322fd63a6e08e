use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", separator = "-")]
enum OrderEvent {
    Placed(#[outbox(id)] u64),
    Paid(#[outbox(id)] u64),
}

fn main() {}
