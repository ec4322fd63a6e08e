use diesel_outbox::{InboxEvent, OutboxEvent};
use diesel_outbox_derive::{InboxEvent, OutboxEvent};

#[derive(OutboxEvent, InboxEvent)]
#[outbox(aggregate = "order", typo)]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn is_event<E: OutboxEvent + InboxEvent>() {}

fn main() {
    is_event::<OrderPlaced>();
}
