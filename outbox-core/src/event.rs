use crate::{Record, RecordError};

/// A domain event that can be emitted, because it can be turned into a [`Record`].
///
/// Derive it with `#[derive(OutboxEvent)]`. If a type of your own would be in the way, build a [`Record`] by hand, which is an
/// event too.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an outbox event",
    label = "this cannot be emitted",
    note = "put `#[derive(OutboxEvent)]` on the type, or build a `Record` by hand and emit that"
)]
pub trait OutboxEvent {
    /// Returns the event as it is stored and sent. Unless the event brings its own id, each call returns a record with a new one.
    ///
    /// # Errors
    /// [`RecordError::Encode`] if the payload cannot be encoded. Limits are not checked here but by `emit`, with
    /// [`Record::check`].
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

/// A record is itself an event. It keeps its id, so emitting the same record twice stores one id twice.
impl OutboxEvent for Record {
    fn to_record(&self) -> Result<Record, RecordError> {
        Ok(self.clone())
    }
}
