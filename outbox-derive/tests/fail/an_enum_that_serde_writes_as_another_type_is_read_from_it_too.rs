use diesel_outbox_derive::{InboxEvent, OutboxEvent};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, OutboxEvent, InboxEvent)]
#[serde(into = "Wire")]
#[outbox(aggregate = "order", id(id))]
enum Event {
    Placed { id: u64 },
}

#[derive(Serialize)]
struct Wire(u64);

impl From<Event> for Wire {
    fn from(Event::Placed { id }: Event) -> Self {
        Self(id)
    }
}

fn main() {}
