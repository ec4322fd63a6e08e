//! The service that writes an invoice for each order. It receives the orders' events from Kafka, and because of its inbox an
//! event that is delivered twice has its effect once.

mod events;
mod invoices;

use std::env;
use std::error::Error;

use diesel::{Connection, PgConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_outbox_kafka::Migrations;
use diesel_outbox_kafka::consumer::Consumer;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/billing");

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().init();
    let database_url = env::var("DATABASE_URL")?;
    let brokers = env::var("BROKERS").unwrap_or_else(|_| "localhost:9092".to_owned());
    let migrated = database_url.clone();
    tokio::task::spawn_blocking(move || migrate(&migrated)).await??;

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Consumer::new(brokers, "billing")
        .database_url(database_url)
        .topics(["outbox.event.order"])
        .on_event(invoices::handle)
        .run(stop)
        .await?;
    info!("stopped");
    Ok(())
}

fn migrate(database_url: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut conn = PgConnection::establish(database_url)?;
    Migrations::inbox_only().run(&mut conn)?;
    conn.run_pending_migrations(MIGRATIONS)?;
    Ok(())
}
