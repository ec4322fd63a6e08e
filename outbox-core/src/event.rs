use crate::{Record, RecordError};

/// A domain event that can be emitted: anything that can become a [`Record`].
///
/// Derive it with `#[derive(OutboxEvent)]`, or build a [`Record`] by hand, which is an event too.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an outbox event",
    label = "this cannot be emitted",
    note = "put `#[derive(OutboxEvent)]` on the type, or build a `Record` by hand and emit that"
)]
pub trait OutboxEvent {
    /// The event as it is stored and sent. Each call makes a record with an id of its own.
    ///
    /// # Errors
    /// [`RecordError::Encode`] where the payload cannot be encoded. Bounds are checked by [`Record::check`] at emit.
    fn to_record(&self) -> Result<Record, RecordError>;
}

impl<E: OutboxEvent + ?Sized> OutboxEvent for &E {
    fn to_record(&self) -> Result<Record, RecordError> {
        (**self).to_record()
    }
}

impl<E: OutboxEvent + ?Sized> OutboxEvent for Box<E> {
    fn to_record(&self) -> Result<Record, RecordError> {
        (**self).to_record()
    }
}

/// A record is an event already; it keeps its id, so that emitting the same record twice stores one id twice.
impl OutboxEvent for Record {
    fn to_record(&self) -> Result<Record, RecordError> {
        Ok(self.clone())
    }
}
