use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use diesel_outbox::AsyncEmit;
use serde::Serialize;
use uuid::Uuid;

use crate::events::OrderEvent;

diesel::table! {
    orders (id) {
        id -> Uuid,
        customer -> Text,
        total_cents -> BigInt,
        paid -> Bool,
    }
}

#[derive(Serialize, Queryable, Selectable, Insertable)]
#[diesel(table_name = orders, check_for_backend(diesel::pg::Pg))]
pub(crate) struct Order {
    pub(crate) id: Uuid,
    customer: String,
    total_cents: i64,
    paid: bool,
}

impl Order {
    /// Inserts the order and emits `OrderPlaced`. Both are committed, or neither.
    pub(crate) async fn place(
        conn: &mut AsyncPgConnection,
        customer: String,
        total_cents: i64,
    ) -> QueryResult<Self> {
        let order = Self { id: Uuid::now_v7(), customer, total_cents, paid: false };
        conn.transaction(async |c| {
            diesel::insert_into(orders::table).values(&order).execute(c).await?;
            let Self { id, ref customer, total_cents, .. } = order;
            c.emit(&OrderEvent::Placed { order_id: id, customer, total_cents }).await?;
            QueryResult::Ok(())
        })
        .await?;
        Ok(order)
    }

    /// Marks the order as paid and emits `OrderPaid`, unless it is already paid.
    pub(crate) async fn pay(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<Self> {
        conn.transaction(async |c| {
            // Update the row first. Its lock makes transactions that change the same order wait for each other, so their events
            // are sent in the order of their changes.
            let unpaid = orders::table.find(id).filter(orders::paid.eq(false));
            let newly_paid = diesel::update(unpaid).set(orders::paid.eq(true)).execute(c).await? == 1;
            if newly_paid {
                c.emit(&OrderEvent::Paid { order_id: id }).await?;
            }
            Self::find(c, id).await
        })
        .await
    }

    pub(crate) async fn find(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<Self> {
        orders::table.find(id).select(Self::as_select()).first(conn).await
    }
}

#[cfg(test)]
mod tests {
    use diesel_outbox::testing::AsyncReadEmitted;
    use outbox_tests::Postgres;

    use super::*;

    /// Nothing is committed, and no Kafka is needed.
    #[tokio::test]
    async fn an_order_is_announced_when_it_is_placed_and_once_when_it_is_paid() {
        let database = Postgres::shared().database();
        crate::migrate(database.url()).unwrap();
        let conn = &mut AsyncPgConnection::establish(database.url()).await.unwrap();
        conn.begin_test_transaction().await.unwrap();

        let order = Order::place(conn, "Ada".to_owned(), 990).await.unwrap();
        let placed = conn.emitted().await.unwrap();
        placed.assert_only([&OrderEvent::Placed { order_id: order.id, customer: "Ada", total_cents: 990 }]);

        Order::pay(conn, order.id).await.unwrap();
        Order::pay(conn, order.id).await.unwrap();
        let paid = conn.emitted().await.unwrap().since(&placed);
        paid.assert_only([&OrderEvent::Paid { order_id: order.id }]);
    }
}
