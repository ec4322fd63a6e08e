use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::{Pool, PoolError};
use serde::Deserialize;
use uuid::Uuid;

use crate::order::Order;

type Connections = State<Pool<AsyncPgConnection>>;

pub(crate) fn routes(connections: Pool<AsyncPgConnection>) -> Router {
    Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/pay", post(pay))
        .with_state(connections)
}

#[derive(Deserialize)]
struct PlaceOrder {
    customer: String,
    total_cents: i64,
}

async fn place(
    State(connections): Connections,
    Json(order): Json<PlaceOrder>,
) -> Result<(StatusCode, Json<Order>), RequestError> {
    let conn = &mut connections.get().await?;
    let order = Order::place(conn, order.customer, order.total_cents).await?;
    Ok((StatusCode::CREATED, Json(order)))
}

async fn pay(State(connections): Connections, Path(id): Path<Uuid>) -> Result<Json<Order>, RequestError> {
    let conn = &mut connections.get().await?;
    Ok(Json(Order::pay(conn, id).await?))
}

async fn show(State(connections): Connections, Path(id): Path<Uuid>) -> Result<Json<Order>, RequestError> {
    let conn = &mut connections.get().await?;
    Ok(Json(Order::find(conn, id).await?))
}

enum RequestError {
    Unavailable(PoolError),
    Database(diesel::result::Error),
}

impl From<PoolError> for RequestError {
    fn from(error: PoolError) -> Self {
        Self::Unavailable(error)
    }
}

impl From<diesel::result::Error> for RequestError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        use diesel::result::DatabaseErrorKind::CheckViolation;
        use diesel::result::Error::{DatabaseError, NotFound};
        match self {
            Self::Database(NotFound) => (StatusCode::NOT_FOUND, "there is no such order\n"),
            Self::Database(DatabaseError(CheckViolation, _)) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "the total must be positive\n")
            }
            Self::Database(error) => {
                tracing::error!(%error, "a request failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "the order was not changed\n")
            }
            Self::Unavailable(error) => {
                tracing::error!(%error, "no connection to the database");
                (StatusCode::SERVICE_UNAVAILABLE, "try again later\n")
            }
        }
        .into_response()
    }
}
