//! The service that takes orders. Each change emits an event in its transaction, and the relay in this process sends the
//! events to Kafka.

mod events;
mod http;
mod order;

use std::env;
use std::error::Error;

use diesel::{Connection, PgConnection};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_outbox_relay::{Kafka, Relay};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/orders");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().init();
    let database_url = env::var("DATABASE_URL")?;
    let brokers = env::var("BROKERS").unwrap_or_else(|_| "localhost:9092".to_owned());
    let address = env::var("LISTEN").unwrap_or_else(|_| "localhost:8080".to_owned());

    let url = database_url.clone();
    tokio::task::spawn_blocking(move || migrate(&url)).await??;
    let pool =
        Pool::builder(AsyncDieselConnectionManager::<AsyncPgConnection>::new(&database_url)).build()?;
    let relay = Relay::postgres(&database_url).broker(Kafka::new(brokers)).spawn()?;

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let listener = TcpListener::bind(address).await?;
    info!("listening on {}", listener.local_addr()?);
    axum::serve(listener, http::routes(pool)).with_graceful_shutdown(stop).await?;
    relay.stop().await?;
    info!("stopped");
    Ok(())
}

fn migrate(database_url: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut conn = PgConnection::establish(database_url)?;
    diesel_outbox::Migrations::new().run(&mut conn)?;
    conn.run_pending_migrations(MIGRATIONS)?;
    Ok(())
}
