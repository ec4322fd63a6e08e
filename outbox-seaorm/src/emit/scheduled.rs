//! Events that are to be sent later.

use std::future::Future;
use std::time::{Duration, SystemTime};

use diesel_outbox_core::__private::spans::Created;
use diesel_outbox_core::__private::{Due, from_unix_ms, stored_record};
use diesel_outbox_core::{Record, ScheduledEvent};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use super::error::{error_type, explained};
use super::{EmitError, InTransaction, Outbox};
use crate::OutboxEvent;
use crate::backend::{Backend, LoadedRow, Stored};

impl Outbox {
    /// Stores the event to be sent at this time, and returns its id: see [`Emit::emit_at`](crate::Emit::emit_at).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    pub fn emit_at<C, E>(
        &self,
        txn: &C,
        event: &E,
        time: SystemTime,
    ) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        C: InTransaction,
        E: OutboxEvent + ?Sized,
    {
        schedule(txn, self.created(event), Due::at(time), self.in_schema())
    }

    /// Stores the event to be sent when this much time has passed, and returns its id: see
    /// [`Emit::emit_after`](crate::Emit::emit_after).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    pub fn emit_after<C, E>(
        &self,
        txn: &C,
        event: &E,
        time: Duration,
    ) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        C: InTransaction,
        E: OutboxEvent + ?Sized,
    {
        schedule(txn, self.created(event), Due::after(time), self.in_schema())
    }

    /// Cancels the scheduled event with this id, and returns whether it was there: see
    /// [`Emit::cancel_scheduled`](crate::Emit::cancel_scheduled).
    ///
    /// # Errors
    /// The database's error.
    pub async fn cancel_scheduled<C: ConnectionTrait>(&self, c: &C, id: Uuid) -> Result<bool, DbErr> {
        cancel(c, id, self.in_schema()).await
    }

    /// Returns all scheduled events: see [`Emit::scheduled`](crate::Emit::scheduled).
    ///
    /// # Errors
    /// As for [`Emit::scheduled`](crate::Emit::scheduled).
    pub async fn scheduled<C: ConnectionTrait>(&self, c: &C) -> Result<Vec<ScheduledEvent>, DbErr> {
        scheduled(c, self.in_schema()).await
    }
}

pub(super) async fn schedule<C: ConnectionTrait>(
    txn: &C,
    created: Result<Created<Record>, EmitError>,
    due: Due,
    schema: Option<&str>,
) -> Result<Uuid, DbErr> {
    let mut created = created?;
    let scheduled = match Backend::of(txn, schema) {
        Ok(backend) => backend.schedule(txn, &created.records, due).await,
        Err(error) => Err(error.into()),
    };
    created.stored(scheduled, error_type).map_err(explained)?;
    Ok(created.records.id())
}

pub(super) async fn cancel<C: ConnectionTrait>(c: &C, id: Uuid, schema: Option<&str>) -> Result<bool, DbErr> {
    Backend::of(c, schema)?.cancel(c, id).await.map_err(explained)
}

pub(super) async fn scheduled<C: ConnectionTrait>(
    c: &C,
    schema: Option<&str>,
) -> Result<Vec<ScheduledEvent>, DbErr> {
    let rows = Backend::of(c, schema)?.load(c, Stored::Scheduled).await.map_err(explained)?;
    rows.into_iter()
        .map(|row| {
            let due_at = from_unix_ms(row.due_at);
            record_of(row).map(|record| ScheduledEvent::new(record, due_at))
        })
        .collect()
}

/// Makes a row that was read a record again.
pub(crate) fn record_of(row: LoadedRow) -> Result<Record, DbErr> {
    stored_record(row.row).map_err(|error| DbErr::Type(error.to_string()))
}
