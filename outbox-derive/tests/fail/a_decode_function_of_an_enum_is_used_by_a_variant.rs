use diesel_outbox_derive::InboxEvent;

#[derive(InboxEvent)]
#[outbox(id(id), tombstone, decode = from_id)]
enum Event {
    Dropped { id: u64 },
}

fn from_id(_: &str) -> Event {
    Event::Dropped { id: 1 }
}

fn main() {}
