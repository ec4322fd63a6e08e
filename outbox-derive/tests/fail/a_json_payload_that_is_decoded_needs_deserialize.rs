use diesel_outbox_derive::InboxEvent;

#[derive(InboxEvent)]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
