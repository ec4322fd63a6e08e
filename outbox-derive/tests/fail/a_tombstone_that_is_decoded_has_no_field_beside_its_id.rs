use diesel_outbox_derive::InboxEvent;

#[derive(InboxEvent)]
enum OrderEvent {
    #[outbox(tombstone)]
    Dropped {
        #[outbox(id)]
        order_id: u64,
        reason: String,
    },
}

fn main() {}
