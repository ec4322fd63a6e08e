use diesel_outbox_derive::InboxEvent;
use serde::Deserialize;

#[derive(Deserialize, InboxEvent)]
#[outbox(version = 2, upcast = placed_v1)]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
