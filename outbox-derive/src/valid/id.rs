use syn::ext::IdentExt;
use syn::{Error, ExprPath, LitStr, Member, Result};

use crate::ast::{Event, Field};
use crate::attr::{self, Settings};

const DEFAULT_SEPARATOR: &str = "/";

/// The origin of an event's aggregate id.
pub(crate) enum Id<'a> {
    Function(&'a ExprPath),
    Fields { fields: Vec<&'a Field<'a>>, separator: String },
}

impl<'a> Id<'a> {
    pub(crate) fn fields(&self) -> &[&'a Field<'a>] {
        match self {
            Self::Fields { fields, .. } => fields,
            Self::Function(_) => &[],
        }
    }

    pub(super) fn is_joined(&self) -> bool {
        self.fields().len() > 1
    }
}

/// Returns the marked fields or the event's own `id`, but not both. If there is neither, returns the enum's `id`.
pub(super) fn check<'a>(defaults: &'a Settings, event: &'a Event<'a>) -> Result<Id<'a>> {
    let separator = event.settings.separator.as_ref().or(defaults.separator.as_ref());
    let joined = |fields| Id::Fields {
        fields,
        separator: separator.map_or_else(|| DEFAULT_SEPARATOR.to_owned(), LitStr::value),
    };
    let resolve = |id: &'a attr::Id, missing: fn(&Event, &Member) -> Error| match id {
        attr::Id::Function(function) => Ok(Id::Function(function)),
        attr::Id::Fields(members) => members
            .iter()
            .map(|member| find(event, member).ok_or_else(|| missing(event, member)))
            .collect::<Result<_>>()
            .map(joined),
    };

    let marked: Vec<&Field> = event.fields.iter().filter(|field| field.settings.id.is_some()).collect();
    let mark = marked.iter().find_map(|field| field.settings.id);
    match (&event.settings.id, mark, &defaults.id) {
        (Some(_), Some(mark), _) => {
            let advice = format!("`{}` already sets its `id`: remove that or this", event.ident);
            Err(Error::new(mark, advice))
        }
        (None, Some(_), _) => Ok(joined(marked)),
        (Some(own), None, _) => resolve(own, missing_from_own),
        (None, None, Some(default)) => resolve(default, missing_from_default),
        (None, None, None) => Err(no_id(event)),
    }
}

pub(super) fn find<'a>(event: &'a Event<'a>, member: &Member) -> Option<&'a Field<'a>> {
    event.fields.iter().find(|field| name_of(&field.member) == name_of(member))
}

/// Returns a field's name or position as text. `r#type` becomes `type`.
pub(crate) fn name_of(member: &Member) -> String {
    match member {
        Member::Named(ident) => ident.unraw().to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}

fn missing_from_own(event: &Event, member: &Member) -> Error {
    let advice = format!("`{}` has no field `{}`: name one that it has", event.ident, name_of(member));
    Error::new_spanned(member, advice)
}

fn missing_from_default(event: &Event, member: &Member) -> Error {
    let advice = format!(
        "`{}` has no field `{}`, which the enum's `id` names: add it, or put `#[outbox(id)]` on another field",
        event.ident,
        name_of(member),
    );
    Error::new(event.ident.span(), advice)
}

fn no_id(event: &Event) -> Error {
    let advice = format!(
        "`{}` has no aggregate id: put `#[outbox(id)]` on a field, or write `#[outbox(id = path::to::function)]` here",
        event.ident,
    );
    Error::new(event.ident.span(), advice)
}
