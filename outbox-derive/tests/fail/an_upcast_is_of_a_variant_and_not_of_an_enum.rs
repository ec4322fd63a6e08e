use diesel_outbox_derive::InboxEvent;
use serde::Deserialize;

#[derive(Deserialize, InboxEvent)]
#[outbox(version = 2, upcast(1 = older))]
enum OrderEvent {
    Placed(u64),
}

fn older(id: u64) -> OrderEvent {
    OrderEvent::Placed(id)
}

fn main() {}
