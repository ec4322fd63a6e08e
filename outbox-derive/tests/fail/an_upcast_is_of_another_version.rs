use diesel_outbox_derive::InboxEvent;
use serde::Deserialize;

#[derive(Deserialize, InboxEvent)]
#[outbox(upcast(1 = older))]
struct Placed(u64);

fn older(id: u64) -> Placed {
    Placed(id)
}

fn main() {}
