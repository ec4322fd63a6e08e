use diesel_outbox_derive::InboxEvent;

struct Id(u64);

#[derive(InboxEvent)]
#[outbox(tombstone)]
struct Dropped(#[outbox(id)] Id);

fn main() {}
