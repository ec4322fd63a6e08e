use diesel_outbox_derive::InboxEvent;
use serde::Deserialize;

#[derive(Deserialize, InboxEvent)]
enum OrderEvent {
    #[outbox(type = "OrderPlaced")]
    Placed(u64),
    #[outbox(type = "OrderPlaced")]
    PlacedAgain(u64),
}

fn main() {}
