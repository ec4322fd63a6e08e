use proc_macro2::Span;
use syn::{Error, Member, Result};

use super::id::{find, name_of};
use crate::ast::{Event, Field};
use crate::attr::{Constant, FieldHeader, Nested, Settings, Value};

/// The header names that the wire format reserves.
const RESERVED: [&str; 2] = ["id", "eventType"];
/// The header that `version` sets.
const VERSION: &str = "eventVersion";

pub(crate) struct Header<'a> {
    pub(crate) name: String,
    pub(crate) source: Source<'a>,
    span: Span,
}

impl<'a> Header<'a> {
    pub(crate) fn field(&self) -> Option<&'a Field<'a>> {
        match self.source {
            Source::Field(field) | Source::Nested(field, _) => Some(field),
            Source::Constant(_) => None,
        }
    }

    /// Returns the field whose whole value is the header's value.
    pub(crate) fn whole_field(&self) -> Option<&'a Field<'a>> {
        match self.source {
            Source::Field(field) => Some(field),
            Source::Constant(_) | Source::Nested(..) => None,
        }
    }
}

/// The origin of a header's value.
pub(crate) enum Source<'a> {
    Constant(&'a Value),
    Field(&'a Field<'a>),
    /// The value that these members lead to, inside the field.
    Nested(&'a Field<'a>, &'a [Member]),
}

/// Returns the enum's headers that the event does not replace, then the event's own, then those of its fields.
pub(super) fn check<'a>(
    defaults: &'a Settings,
    event: &'a Event<'a>,
    version: Option<u32>,
) -> Result<Vec<Header<'a>>> {
    let mut own: Vec<Header> = named(&event.settings, event).collect::<Result<_>>()?;
    for field in &event.fields {
        if let Some(header) = &field.settings.header {
            own.push(from_field(field, header)?);
        }
    }
    check_names(&own)?;

    let replaced = |header: &Header| own.iter().any(|other| other.name == header.name);
    let mut headers: Vec<Header> = named(defaults, event).collect::<Result<_>>()?;
    headers.retain(|header| !replaced(header));
    headers.append(&mut own);
    match headers.iter().find(|header| header.name == VERSION) {
        Some(header) if version.is_some() => {
            let advice =
                format!("`version` already sets the header `{VERSION}`: remove `version` or this header");
            Err(Error::new(header.span, advice))
        }
        _ => Ok(headers),
    }
}

pub(super) fn check_defaults(defaults: &Settings) -> Result<()> {
    let header = |constant: &'_ Constant| (constant.name.value(), constant.name.span(), false);
    check_each(&defaults.headers.iter().map(header).collect::<Vec<_>>())
}

/// Returns the headers in the attributes of the type or the variant.
fn named<'a>(settings: &'a Settings, event: &'a Event<'a>) -> impl Iterator<Item = Result<Header<'a>>> {
    settings.headers.iter().map(|Constant { name, value }| {
        let source = match value {
            Value::Nested(Nested { field, rest }) => {
                let found = find(event, field).ok_or_else(|| missing(event, field))?;
                Source::Nested(found, rest)
            }
            Value::Text(_) | Value::Path(_) => Source::Constant(value),
        };
        Ok(Header { name: name.value(), source, span: name.span() })
    })
}

fn missing(event: &Event, field: &Member) -> Error {
    let advice = format!("`{}` has no field `{}`: name one that it has", event.ident, name_of(field));
    Error::new_spanned(field, advice)
}

fn from_field<'a>(field: &'a Field<'a>, header: &'a FieldHeader) -> Result<Header<'a>> {
    let (name, span) = match (&header.name, &field.member) {
        (Some(name), _) => (name.value(), name.span()),
        (None, Member::Named(_)) => (name_of(&field.member), header.span),
        (None, Member::Unnamed(_)) => {
            let advice = "this field has no name for the header to take: write `header = \"name\"`";
            return Err(Error::new(header.span, advice));
        }
    };
    Ok(Header { name, source: Source::Field(field), span })
}

fn check_names(headers: &[Header]) -> Result<()> {
    let header =
        |Header { name, source, span }: &Header| (name.clone(), *span, matches!(source, Source::Field(_)));
    check_each(&headers.iter().map(header).collect::<Vec<_>>())
}

/// Checks each header's name, given with its place and whether it comes from a field.
fn check_each(headers: &[(String, Span, bool)]) -> Result<()> {
    for (position, (name, span, is_field)) in headers.iter().enumerate() {
        let advice = if name.is_empty() {
            "this header has an empty name: write at least one character".to_owned()
        } else if RESERVED.contains(&name.as_str()) {
            let advice = if *is_field { "write `header = \"another name\"`" } else { "write another name" };
            format!("the header name `{name}` is reserved for the wire format: {advice}")
        } else if headers[..position].iter().any(|(other, _, _)| other == name) {
            format!("the header `{name}` is set twice: give each header its own name")
        } else {
            continue;
        };
        return Err(Error::new(*span, advice));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use diesel_outbox::wire;

    #[test]
    fn names_are_those_of_the_wire_format() {
        assert_eq!(super::RESERVED, wire::RESERVED_HEADERS);
        assert_eq!(super::VERSION, wire::EVENT_VERSION_HEADER);
    }
}
