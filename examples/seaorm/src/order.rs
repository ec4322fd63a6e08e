use sea_orm::entity::prelude::*;
use sea_orm::{ActiveValue::Set, DatabaseConnection, TransactionTrait};
use sea_orm_outbox::{Emit, OutboxEvent};
use serde::Serialize;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel, Serialize)]
#[sea_orm(table_name = "orders")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub customer: String,
    pub total_cents: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// The event that other services receive, on the topic `outbox.event.order`.
#[derive(Serialize, OutboxEvent)]
#[outbox(aggregate = "order")]
struct OrderPlaced<'a> {
    #[outbox(id)]
    order_id: Uuid,
    customer: &'a str,
    total_cents: i64,
}

impl Model {
    /// Inserts the order and emits `OrderPlaced`. Both are committed, or neither.
    pub(crate) async fn place(
        db: &DatabaseConnection,
        customer: String,
        total_cents: i64,
    ) -> Result<Self, DbErr> {
        let order =
            ActiveModel { id: Set(Uuid::now_v7()), customer: Set(customer), total_cents: Set(total_cents) };
        let txn = db.begin().await?;
        let order = order.insert(&txn).await?;
        let Self { id, customer, total_cents } = &order;
        txn.emit(&OrderPlaced { order_id: *id, customer, total_cents: *total_cents }).await?;
        txn.commit().await?;
        Ok(order)
    }
}
