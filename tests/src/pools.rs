//! Small pools of each kind, for tests of what works on a pool's connections.

use async_bb8_diesel::AsyncConnection as _;
use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};

/// Returns a pool of r2d2.
pub fn r2d2_pool<C: R2D2Connection + 'static>(url: &str) -> Pool<ConnectionManager<C>> {
    Pool::builder().max_size(2).build(ConnectionManager::new(url)).expect("a pool of r2d2")
}

/// Does this with a connection of a pool of async-bb8-diesel.
pub async fn on_an_async_bb8_diesel_pool<C: R2D2Connection + 'static>(url: &str, work: fn(&mut C)) {
    let manager = async_bb8_diesel::ConnectionManager::<C>::new(url);
    let pool = bb8::Pool::builder().max_size(2).build(manager).await.expect("a pool of bb8");
    let work = move |conn: &mut C| {
        work(conn);
        diesel::QueryResult::Ok(())
    };
    pool.get().await.expect("a connection").run(work).await.expect("the work");
}

/// Returns a pool of deadpool, of these connections to this URL.
#[macro_export]
macro_rules! deadpool_pool {
    ($conn:ty, $url:expr) => {{
        use diesel_async::pooled_connection::{AsyncDieselConnectionManager, deadpool::Pool};

        Pool::builder(AsyncDieselConnectionManager::<$conn>::new($url)).max_size(2).build().unwrap()
    }};
}

/// Returns a pool of bb8, of these connections to this URL.
#[macro_export]
macro_rules! bb8_pool {
    ($conn:ty, $url:expr) => {{
        use diesel_async::pooled_connection::{AsyncDieselConnectionManager, bb8::Pool};

        Pool::builder().max_size(2).build(AsyncDieselConnectionManager::<$conn>::new($url)).await.unwrap()
    }};
}
