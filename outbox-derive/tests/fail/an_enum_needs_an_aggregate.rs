use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
enum OrderEvent {
    Placed(#[outbox(id)] u64),
    Paid(#[outbox(id)] u64),
}

fn main() {}
