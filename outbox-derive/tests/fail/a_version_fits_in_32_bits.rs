use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", version = 4_294_967_296)]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn main() {}
