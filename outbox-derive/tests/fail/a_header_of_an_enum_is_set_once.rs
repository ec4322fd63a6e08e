use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", id(0), header("source" = "web"), header("source" = "app"))]
enum OrderEvent {
    Placed(u64),
    Paid(u64),
}

fn main() {}
