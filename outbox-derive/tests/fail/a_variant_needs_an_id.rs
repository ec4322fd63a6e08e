use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone)]
enum OrderEvent {
    Placed(#[outbox(id)] u64),
    Paid,
    Sent,
}

fn main() {}
