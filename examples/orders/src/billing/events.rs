use serde::Deserialize;
use uuid::Uuid;

/// What billing reads of the events of orders; what else they hold is of no interest here.
#[derive(Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: Uuid,
    pub(crate) customer: String,
    pub(crate) total_cents: i64,
}

#[derive(Deserialize)]
pub(crate) struct OrderPaid {
    pub(crate) order_id: Uuid,
}
