//! A service that takes orders, with SeaORM and axum. Each order emits an event in its transaction, and the relay in this process sends
//! the events to Kafka.

mod migrations;
mod order;

use std::env;
use std::error::Error;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use diesel_outbox_relay::{Kafka, Relay};
use sea_orm::{ConnectOptions, Database, DatabaseConnection};
use sea_orm_migration::MigratorTrait;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::migrations::Migrator;
use crate::order::Model as Order;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().init();
    let database_url = env::var("DATABASE_URL")?;
    let brokers = env::var("BROKERS").unwrap_or_else(|_| "localhost:9092".to_owned());
    let address = env::var("LISTEN").unwrap_or_else(|_| "localhost:8080".to_owned());

    let mut options = ConnectOptions::new(&database_url);
    options.sqlx_logging(false);
    let db = Database::connect(options).await?;
    Migrator::up(&db, None).await?;
    let relay = Relay::postgres(&database_url).broker(Kafka::new(brokers)).spawn()?;

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let routes = Router::new().route("/orders", post(place)).with_state(db);
    let listener = TcpListener::bind(address).await?;
    info!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes).with_graceful_shutdown(stop).await?;
    relay.stop().await?;
    info!("stopped");
    Ok(())
}

#[derive(Deserialize)]
struct PlaceOrder {
    customer: String,
    total_cents: i64,
}

async fn place(
    State(db): State<DatabaseConnection>,
    Json(PlaceOrder { customer, total_cents }): Json<PlaceOrder>,
) -> Result<(StatusCode, Json<Order>), (StatusCode, &'static str)> {
    if total_cents <= 0 {
        return Err((StatusCode::UNPROCESSABLE_ENTITY, "the total must be positive\n"));
    }
    match Order::place(&db, customer, total_cents).await {
        Ok(order) => Ok((StatusCode::CREATED, Json(order))),
        Err(error) => {
            tracing::error!(%error, "a request failed");
            Err((StatusCode::INTERNAL_SERVER_ERROR, "the order was not placed\n"))
        }
    }
}
