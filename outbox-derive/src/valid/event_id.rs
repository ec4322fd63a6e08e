use syn::{Error, ExprPath, Result};

use crate::ast::{Event, Field};
use crate::attr::Settings;

/// The origin of an event's own id.
pub(crate) enum EventId<'a> {
    /// Each record gets a new one.
    New,
    Function(&'a ExprPath),
    Field(&'a Field<'a>),
}

impl<'a> EventId<'a> {
    pub(crate) fn field(&self) -> Option<&'a Field<'a>> {
        match self {
            Self::Field(field) => Some(field),
            Self::New | Self::Function(_) => None,
        }
    }
}

/// Returns the marked field or the event's own function, but not both. If there is neither, returns the enum's function.
pub(super) fn check<'a>(defaults: &'a Settings, event: &'a Event<'a>) -> Result<EventId<'a>> {
    let mut marked = event.fields.iter().filter_map(|field| Some((field, field.settings.event_id?)));
    let first = marked.next();
    if let Some((_, mark)) = marked.next() {
        return Err(Error::new(mark, "an event has only one id: keep one `event_id`"));
    }
    match (&event.settings.event_id, first) {
        (Some(_), Some((_, mark))) => {
            let advice = format!("`{}` already sets its `event_id`: remove that or this", event.ident);
            Err(Error::new(mark, advice))
        }
        (None, Some((field, _))) => Ok(EventId::Field(field)),
        (own, None) => {
            Ok(own.as_ref().or(defaults.event_id.as_ref()).map_or(EventId::New, EventId::Function))
        }
    }
}
