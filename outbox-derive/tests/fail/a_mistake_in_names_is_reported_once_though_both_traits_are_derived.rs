use diesel_outbox_derive::{InboxEvent, OutboxEvent};

#[derive(OutboxEvent, InboxEvent)]
#[outbox(aggregate = "order", tombstone)]
enum OrderEvent {
    #[outbox(type = "")]
    Placed(#[outbox(id)] u64),
}

fn main() {}
