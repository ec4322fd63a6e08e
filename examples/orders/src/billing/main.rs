//! The service that writes an invoice for each order. It learns of orders from Kafka, and its inbox sees to it that an
//! event that is delivered twice has its effect once.

mod events;
mod invoices;

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::{Connection, PgConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_outbox_kafka::consumer::Consumer;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::info;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/billing");

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().init();
    let database_url = env::var("DATABASE_URL")?;
    let brokers = env::var("BROKERS").unwrap_or_else(|_| "localhost:9092".to_owned());
    migrate(&database_url)?;

    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&stop))?;
    signal_hook::flag::register(SIGINT, Arc::clone(&stop))?;
    Consumer::new(brokers, "billing")
        .topics(["outbox.event.order"])
        .on_json("OrderPlaced", invoices::write)
        .on_json("OrderPaid", invoices::settle)
        .run(move || PgConnection::establish(&database_url), || stop.load(Ordering::Relaxed))?;
    info!("stopped");
    Ok(())
}

fn migrate(database_url: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut conn = PgConnection::establish(database_url)?;
    diesel_outbox::Migrations::new().run(&mut conn)?;
    conn.run_pending_migrations(MIGRATIONS)?;
    Ok(())
}
