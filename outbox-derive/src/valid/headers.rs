use proc_macro2::Span;
use syn::{Error, Member, Result};

use super::id::name_of;
use crate::ast::{Event, Field};
use crate::attr::{FieldHeader, Settings, Value};

/// Header names that the wire format uses itself.
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
            Source::Field(field) => Some(field),
            Source::Constant(_) => None,
        }
    }
}

/// Where a header's value comes from.
pub(crate) enum Source<'a> {
    Constant(&'a Value),
    Field(&'a Field<'a>),
}

/// The enum's headers that the event does not replace, then the event's own, then those of its fields.
pub(super) fn check<'a>(
    defaults: &'a Settings,
    event: &'a Event<'a>,
    version: Option<u32>,
) -> Result<Vec<Header<'a>>> {
    let mut own: Vec<Header> = constants(&event.settings).collect();
    for field in &event.fields {
        if let Some(header) = &field.settings.header {
            own.push(from_field(field, header)?);
        }
    }
    check_names(&own)?;

    let replaced = |header: &Header| own.iter().any(|other| other.name == header.name);
    let mut headers: Vec<Header> = constants(defaults).filter(|header| !replaced(header)).collect();
    headers.append(&mut own);
    match headers.iter().find(|header| header.name == VERSION) {
        Some(header) if version.is_some() => {
            let advice = format!("`version` sets the header `{VERSION}` already: remove `version` or this");
            Err(Error::new(header.span, advice))
        }
        _ => Ok(headers),
    }
}

pub(super) fn check_defaults(defaults: &Settings) -> Result<()> {
    check_names(&constants(defaults).collect::<Vec<_>>())
}

fn constants(settings: &Settings) -> impl Iterator<Item = Header<'_>> {
    settings.headers.iter().map(|constant| Header {
        name: constant.name.value(),
        source: Source::Constant(&constant.value),
        span: constant.name.span(),
    })
}

fn from_field<'a>(field: &'a Field<'a>, header: &'a FieldHeader) -> Result<Header<'a>> {
    let (name, span) = match (&header.name, &field.member) {
        (Some(name), _) => (name.value(), name.span()),
        (None, Member::Named(_)) => (name_of(&field.member), header.span),
        (None, Member::Unnamed(_)) => {
            let advice = "this field has no name to give to the header: write `header = \"name\"`";
            return Err(Error::new(header.span, advice));
        }
    };
    Ok(Header { name, source: Source::Field(field), span })
}

fn check_names(headers: &[Header]) -> Result<()> {
    for (position, Header { name, source, span }) in headers.iter().enumerate() {
        let advice = if name.is_empty() {
            "this header has an empty name: write at least one character".to_owned()
        } else if RESERVED.contains(&name.as_str()) {
            let advice = match source {
                Source::Constant(_) => "write another name",
                Source::Field(_) => "write `header = \"another name\"`",
            };
            format!("the header name `{name}` is reserved for the wire format: {advice}")
        } else if headers[..position].iter().any(|other| other.name == *name) {
            format!("the header `{name}` is set twice: give each a name of its own")
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
