use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order")]
union OrderEvent {
    placed: u64,
    paid: u64,
}

fn main() {}
