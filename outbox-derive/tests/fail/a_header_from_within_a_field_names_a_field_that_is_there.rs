use diesel_outbox_derive::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", tombstone, header("tenant" = self.context.tenant))]
struct OrderPlaced {
    #[outbox(id)]
    order_id: u64,
}

fn main() {}
