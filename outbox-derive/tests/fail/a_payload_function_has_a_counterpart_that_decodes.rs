use diesel_outbox_derive::InboxEvent;

#[derive(InboxEvent)]
#[outbox(payload = encode, decode = decode)]
enum OrderEvent {
    Placed(u64),
    #[outbox(payload = encode)]
    Paid(u64),
}

fn encode(_: &OrderEvent) -> Vec<u8> {
    Vec::new()
}

fn decode(_: &[u8]) -> OrderEvent {
    OrderEvent::Placed(1)
}

fn main() {}
