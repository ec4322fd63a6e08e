use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order")]
enum OrderEvent {
    #[outbox(id(0))]
    Placed(#[outbox(id)] u64),
}

fn main() {}
