use diesel_outbox_derive::InboxEvent;

#[derive(InboxEvent)]
#[outbox(decode = decode)]
struct OrderPlaced;

fn decode(_: &str) -> OrderPlaced {
    OrderPlaced
}

fn main() {}
