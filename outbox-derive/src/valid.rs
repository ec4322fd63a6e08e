//! The third stage: the parts of each event's record. It fills in the defaults and finds every mistake.

mod decoding;
mod event_id;
mod headers;
mod id;

use syn::ext::IdentExt;
use syn::{Error, ExprPath, Ident, LitStr, Result};

pub(crate) use self::decoding::{Arm, How, check as check_decoding};
pub(crate) use self::event_id::EventId;
pub(crate) use self::headers::{Header, Source};
pub(crate) use self::id::{Id, name_of};
use crate::ast::{self, Field, Input};
use crate::attr::{self, Settings};

/// The maximum length of the aggregate type and the event type, in characters.
const NAME_LIMIT: usize = 255;

/// A struct, or a variant of an enum, and the record that it becomes.
pub(crate) struct Event<'a> {
    /// The variant's name; a struct has none.
    pub(crate) variant: Option<&'a Ident>,
    pub(crate) aggregate: String,
    pub(crate) event_type: String,
    pub(crate) version: Option<u32>,
    pub(crate) id: Id<'a>,
    pub(crate) event_id: EventId<'a>,
    pub(crate) headers: Vec<Header<'a>>,
    /// A function that makes more headers.
    pub(crate) header_function: Option<&'a ExprPath>,
    pub(crate) payload: EventPayload<'a>,
}

impl<'a> Event<'a> {
    /// Returns the fields that the record is made of. One field may occur twice.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &'a Field<'a>> {
        let headers = self.headers.iter().filter_map(Header::field);
        self.id.fields().iter().copied().chain(self.event_id.field()).chain(headers)
    }
}

pub(crate) enum EventPayload<'a> {
    /// The whole value, as serde writes it.
    Json,
    /// The content of the variant, without the variant's name.
    Content,
    Function(&'a ExprPath),
    Tombstone,
}

pub(crate) fn check<'a>(input: &'a Input<'a>) -> Result<Vec<Event<'a>>> {
    let defaults = &input.defaults;
    check_texts(defaults)?;
    headers::check_defaults(defaults)?;
    let events: Vec<Event> =
        input.events.iter().map(|event| check_event(input, event)).collect::<Result<_>>()?;
    check_separator(defaults, events.iter().any(|event| event.id.is_joined()))?;
    Ok(events)
}

fn check_event<'a>(input: &'a Input<'a>, event: &'a ast::Event<'a>) -> Result<Event<'a>> {
    let defaults = &input.defaults;
    let own = &event.settings;
    check_texts(own)?;
    let aggregate = own.aggregate.as_ref().or(defaults.aggregate.as_ref());
    let event_type = own.event_type.as_ref().or(defaults.event_type.as_ref());
    let version = own.version.or(defaults.version);
    let aggregate = aggregate.ok_or_else(|| no_aggregate(input, event))?.value();
    let id = id::check(defaults, event)?;
    check_separator(own, id.is_joined())?;
    Ok(Event {
        variant: event.is_variant.then_some(event.ident),
        aggregate,
        event_type: event_type.map_or_else(|| event.ident.unraw().to_string(), LitStr::value),
        version,
        id,
        event_id: event_id::check(defaults, event)?,
        headers: headers::check(defaults, event, version)?,
        header_function: own.header_function.as_ref().or(defaults.header_function.as_ref()),
        payload: match own.payload.as_ref().or(defaults.payload.as_ref()) {
            None if input.is_written_whole => EventPayload::Json,
            None => EventPayload::Content,
            Some(attr::PayloadSetting::Function(function)) => EventPayload::Function(function),
            Some(attr::PayloadSetting::Tombstone) => EventPayload::Tombstone,
        },
    })
}

fn check_texts(settings: &Settings) -> Result<()> {
    for name in settings.aggregate.iter().chain(&settings.event_type) {
        let value = name.value();
        let length = value.chars().count();
        if value.is_empty() {
            return Err(Error::new_spanned(name, "this name is empty: write at least one character"));
        }
        if length > NAME_LIMIT {
            let advice = format!("this name has {length} characters: write at most {NAME_LIMIT}");
            return Err(Error::new_spanned(name, advice));
        }
        if value.contains('\0') {
            let advice = "this name holds a NUL character, which databases cannot store: remove it";
            return Err(Error::new_spanned(name, advice));
        }
    }
    Ok(())
}

fn check_separator(settings: &Settings, joins: bool) -> Result<()> {
    let Some(separator) = &settings.separator else { return Ok(()) };
    if separator.value().is_empty() {
        let advice = "with an empty separator `1`, `23` and `12`, `3` are the same id: write another one, such as \"-\"";
        return Err(Error::new_spanned(separator, advice));
    }
    if !joins {
        let advice = "`separator` joins several id fields, but there is at most one: remove `separator`, or name more id fields";
        return Err(Error::new_spanned(separator, advice));
    }
    Ok(())
}

fn no_aggregate(input: &Input, event: &ast::Event) -> Error {
    let others_have_one = input.events.iter().any(|event| event.settings.aggregate.is_some());
    let ident = if others_have_one { event.ident } else { input.ident };
    let advice = format!(
        "`{ident}` has no aggregate type: write `#[outbox(aggregate = \"order\")]` with the kind of thing that the event \
         happens to"
    );
    Error::new(ident.span(), advice)
}

#[cfg(test)]
mod tests {
    #[test]
    fn limits_are_those_of_the_record() {
        assert_eq!(super::NAME_LIMIT, diesel_outbox::Record::NAME_LIMIT);
    }
}
