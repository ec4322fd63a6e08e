use diesel_outbox_derive::InboxEvent;
use serde::Deserialize;

struct PlacedV1;

#[derive(Deserialize, InboxEvent)]
#[outbox(version = 2, upcast(1 = placed_v1))]
struct OrderPlaced {
    order_id: u64,
}

fn placed_v1(_: PlacedV1) -> OrderPlaced {
    OrderPlaced { order_id: 1 }
}

fn main() {}
