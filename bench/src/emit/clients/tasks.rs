use std::sync::Arc;
use std::time::Instant;

use diesel::QueryResult;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use diesel_outbox::AsyncEmit;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;

use super::super::tables::{Order, Row, orders, outbox};
use super::{Clients, Clock, How, WARM_UP};
use crate::rows::record;

/// An asynchronous connection of a client.
pub(in super::super) trait Client: AsyncConnection + 'static {
    /// Writes an order and its event.
    fn transact(&mut self, n: usize, bytes: usize, how: How) -> impl Future<Output = QueryResult<()>> + Send;
}

impl Clients {
    /// Transactions per second of clients that are tasks of this runtime. They know no pause.
    pub(in super::super) fn as_tasks<C: Client>(self, runtime: &Runtime, url: &str, how: How) -> f64 {
        let ready = Arc::new(Barrier::new(self.count));
        let tasks: Vec<_> = (0..self.count)
            .map(|number| runtime.spawn(self.task::<C>(number, url.to_owned(), ready.clone(), how)))
            .collect();
        tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).sum()
    }

    async fn task<C: Client>(self, number: usize, url: String, ready: Arc<Barrier>, how: How) -> f64 {
        let mut conn = C::establish(&url).await.unwrap();
        let mut orders = (number..).step_by(self.count);
        for n in orders.by_ref().take(WARM_UP) {
            conn.transact(n, self.bytes, how).await.unwrap();
        }
        ready.wait().await;
        let mut clock = Clock::start(self.time);
        for n in orders {
            if clock.is_over() {
                break;
            }
            let began = Instant::now();
            conn.transact(n, self.bytes, how).await.unwrap();
            clock.count(began);
        }
        clock.speed()
    }
}

impl Client for AsyncPgConnection {
    async fn transact(&mut self, n: usize, bytes: usize, how: How) -> QueryResult<()> {
        self.transaction(async |c| {
            diesel::insert_into(orders::table).values(Order::new(n)).execute(c).await?;
            let event = record(n, bytes);
            match how {
                How::Emit => c.emit(&event).await.map(drop)?,
                How::Insert => {
                    diesel::insert_into(outbox::table)
                        .values(Row::from(&event))
                        .execute(c)
                        .await
                        .map(drop)?;
                }
            }
            Ok(())
        })
        .await
    }
}
