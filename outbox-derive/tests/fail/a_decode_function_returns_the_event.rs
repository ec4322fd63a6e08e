use diesel_outbox_derive::InboxEvent;

#[derive(InboxEvent)]
#[outbox(decode = decode)]
struct OrderPlaced;

fn decode(payload: &[u8]) -> usize {
    payload.len()
}

fn main() {}
