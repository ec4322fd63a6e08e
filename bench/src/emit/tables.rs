//! The table of orders, and the outbox as a plain table.

use diesel::prelude::*;
use diesel_outbox::Record;
use uuid::Uuid;

diesel::table! {
    orders (id) {
        id -> Uuid,
        customer -> Text,
        total -> BigInt,
    }
}

diesel::table! {
    outbox (seq) {
        seq -> BigInt,
        id -> Uuid,
        aggregatetype -> Text,
        aggregateid -> Text,
        #[sql_name = "type"]
        event_type -> Text,
        payload -> Nullable<Binary>,
        headers -> Nullable<Json>,
        shard -> SmallInt,
    }
}

pub(super) const CREATE_ORDERS: &str =
    "CREATE TABLE orders (id uuid PRIMARY KEY, customer text NOT NULL, total bigint NOT NULL)";

#[derive(Insertable)]
#[diesel(table_name = orders)]
pub(super) struct Order {
    id: Uuid,
    customer: &'static str,
    total: i64,
}

impl Order {
    pub(super) fn new(n: usize) -> Self {
        Self { id: Uuid::now_v7(), customer: "somebody@example.org", total: n as i64 }
    }
}

/// The columns that `emit` fills. What is null is bound as such, so that Diesel knows the statement by its type.
#[derive(Insertable)]
#[diesel(table_name = outbox, treat_none_as_default_value = false)]
pub(super) struct Row<'a> {
    id: Uuid,
    aggregatetype: &'a str,
    aggregateid: &'a str,
    event_type: &'a str,
    payload: Option<&'a [u8]>,
    headers: Option<serde_json::Value>,
    shard: i16,
}

impl<'a> From<&'a Record> for Row<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            id: record.id(),
            aggregatetype: record.aggregate_type(),
            aggregateid: record.aggregate_id(),
            event_type: record.event_type(),
            payload: record.payload(),
            headers: None,
            shard: record.shard(),
        }
    }
}
