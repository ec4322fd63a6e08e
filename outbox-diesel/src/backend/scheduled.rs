//! The statements for events that are to be sent later.

use diesel_outbox_core::__private::Due;
use uuid::Uuid;

use super::OutboxRow;
use crate::Record;

/// The statement that stores a record until it is due.
pub struct InsertScheduled<'a> {
    pub(super) row: OutboxRow<'a>,
    pub(super) due: Due,
    pub(crate) schema: Option<&'a str>,
}

impl<'a> InsertScheduled<'a> {
    pub(crate) fn new(record: &'a Record, due: Due, schema: Option<&'a str>) -> Self {
        Self { row: OutboxRow::new(record), due, schema }
    }
}

/// The statement that deletes a record that is not due yet.
pub struct CancelScheduled<'a> {
    pub(super) id: Uuid,
    pub(super) id_text: String,
    pub(crate) schema: Option<&'a str>,
}

impl<'a> CancelScheduled<'a> {
    pub(crate) fn new(id: Uuid, schema: Option<&'a str>) -> Self {
        Self { id, id_text: id.to_string(), schema }
    }
}
