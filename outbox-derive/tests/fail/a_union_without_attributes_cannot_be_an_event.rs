use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
union OrderEvent {
    placed: u64,
}

fn main() {}
