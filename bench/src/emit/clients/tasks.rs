use std::sync::Arc;
use std::time::Instant;

use diesel::QueryResult;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use diesel_outbox::AsyncEmit;
use outbox_tests::Database;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;

use super::super::tables::{Order, Row, orders, outbox};
use super::{Clients, Clock, How, WARM_UP};
use crate::rows::record;

impl Clients {
    /// Transactions per second of clients that are tasks of this runtime. They know no pause.
    pub(in super::super) fn as_tasks(self, runtime: &Runtime, database: &Database<'_>, how: How) -> f64 {
        let ready = Arc::new(Barrier::new(self.count));
        let tasks: Vec<_> = (0..self.count)
            .map(|number| runtime.spawn(self.task(number, database.url().to_owned(), ready.clone(), how)))
            .collect();
        tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).sum()
    }

    async fn task(self, number: usize, url: String, ready: Arc<Barrier>, how: How) -> f64 {
        let mut conn = AsyncPgConnection::establish(&url).await.unwrap();
        let mut orders = (number..).step_by(self.count);
        for n in orders.by_ref().take(WARM_UP) {
            transact(&mut conn, n, self.bytes, how).await.unwrap();
        }
        ready.wait().await;
        let mut clock = Clock::start(self.time);
        for n in orders {
            if clock.is_over() {
                break;
            }
            let began = Instant::now();
            transact(&mut conn, n, self.bytes, how).await.unwrap();
            clock.count(began);
        }
        clock.speed()
    }
}

async fn transact(conn: &mut AsyncPgConnection, n: usize, bytes: usize, how: How) -> QueryResult<()> {
    conn.transaction(async |c| {
        diesel::insert_into(orders::table).values(Order::new(n)).execute(c).await?;
        let event = record(n, bytes);
        match how {
            How::Emit => c.emit(&event).await.map(drop)?,
            How::Insert => {
                diesel::insert_into(outbox::table).values(Row::from(&event)).execute(c).await.map(drop)?;
            }
        }
        Ok(())
    })
    .await
}
