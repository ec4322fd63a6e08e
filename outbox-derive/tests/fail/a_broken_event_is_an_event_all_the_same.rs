extern crate diesel_outbox as renamed;

use diesel_outbox_derive::OutboxEvent;
use renamed::OutboxEvent;

#[derive(OutboxEvent)]
#[outbox(aggregate = "order", crate = renamed, typo = 1)]
struct OrderPlaced<'a, T: Clone, const N: usize>(#[outbox(id)] &'a [T; N]);

fn emit(_: &impl OutboxEvent) {}

fn place(order: &OrderPlaced<'_, u8, 2>) {
    emit(order);
}

fn main() {}
