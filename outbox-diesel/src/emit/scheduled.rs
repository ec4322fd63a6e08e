//! Events that are to be sent later.

use std::time::{Duration, SystemTime};

use diesel::QueryResult;
use diesel::connection::TransactionManager;
use diesel::result::Error;
use diesel_outbox_core::__private::{Due, from_unix_ms, stored_record};
use diesel_outbox_core::{Record, ScheduledEvent};
use uuid::Uuid;

use super::error::{error_type, explained};
use super::{Outbox, require_transaction};
use crate::backend::{CancelScheduled, InsertScheduled, LoadedRow, SelectRows, Table};
use crate::{OutboxConnection, OutboxEvent};

impl Outbox {
    /// Stores the event to be sent at this time, and returns its id: see [`Emit::emit_at`](crate::Emit::emit_at).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    pub fn emit_at<C, E>(&self, conn: &mut C, event: &E, time: SystemTime) -> QueryResult<Uuid>
    where
        C: OutboxConnection,
        E: OutboxEvent + ?Sized,
    {
        self.schedule(conn, event, Due::at(time))
    }

    /// Stores the event to be sent when this much time has passed, and returns its id: see
    /// [`Emit::emit_after`](crate::Emit::emit_after).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    pub fn emit_after<C, E>(&self, conn: &mut C, event: &E, time: Duration) -> QueryResult<Uuid>
    where
        C: OutboxConnection,
        E: OutboxEvent + ?Sized,
    {
        self.schedule(conn, event, Due::after(time))
    }

    /// Cancels the scheduled event with this id, and returns whether it was there: see
    /// [`Emit::cancel_scheduled`](crate::Emit::cancel_scheduled).
    ///
    /// # Errors
    /// The database's error.
    pub fn cancel_scheduled<C: OutboxConnection>(&self, conn: &mut C, id: Uuid) -> QueryResult<bool> {
        let cancel = CancelScheduled::new(id, self.in_schema());
        Ok(conn.execute_statement((&cancel).into()).map_err(explained)? > 0)
    }

    /// Returns all scheduled events: see [`Emit::scheduled`](crate::Emit::scheduled).
    ///
    /// # Errors
    /// As for [`Emit::scheduled`](crate::Emit::scheduled).
    pub fn scheduled<C: OutboxConnection>(&self, conn: &mut C) -> QueryResult<Vec<ScheduledEvent>> {
        let rows = conn.load_rows(&SelectRows::new(Table::Scheduled, self.in_schema())).map_err(explained)?;
        scheduled_events(rows)
    }

    fn schedule<C, E>(&self, conn: &mut C, event: &E, due: Due) -> QueryResult<Uuid>
    where
        C: OutboxConnection,
        E: OutboxEvent + ?Sized,
    {
        require_transaction(C::TransactionManager::transaction_manager_status_mut(conn))?;
        let mut created = self.created(event)?;
        let insert = InsertScheduled::new(&created.records, due, self.in_schema());
        let inserted = conn.execute_statement((&insert).into());
        created.stored(inserted, error_type).map_err(explained)?;
        Ok(created.records.id())
    }
}

pub(super) fn scheduled_events(rows: Vec<LoadedRow>) -> QueryResult<Vec<ScheduledEvent>> {
    rows.into_iter()
        .map(|row| {
            let due_at = from_unix_ms(row.due_at);
            record_of(row).map(|record| ScheduledEvent::new(record, due_at))
        })
        .collect()
}

/// Makes a row that was read a record again.
pub(crate) fn record_of(row: LoadedRow) -> QueryResult<Record> {
    stored_record(row.row).map_err(Error::DeserializationError)
}
