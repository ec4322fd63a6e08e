use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order")]
struct OrderPlaced {
    #[outbox(id, header = "")]
    order_id: u64,
}

fn main() {}
