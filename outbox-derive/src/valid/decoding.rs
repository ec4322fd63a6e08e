use std::collections::BTreeMap;

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::{Error, ExprPath, Ident, LitStr, Result};

use super::id::{self, Id, name_of};
use super::{check_separator, check_texts};
use crate::ast::{Event, Field, Input};
use crate::attr::PayloadSetting;

/// The version of events that have none.
const FIRST_VERSION: u32 = 1;

/// How an event of one type and version is decoded.
pub(crate) struct Arm<'a> {
    /// The variant's name; a struct has none.
    pub(crate) variant: Option<&'a Ident>,
    pub(crate) event_type: String,
    pub(crate) version: u32,
    pub(crate) how: How<'a>,
    span: Span,
}

pub(crate) enum How<'a> {
    /// The payload is the whole value's JSON.
    Json,
    /// The payload is the JSON of the content of the variant at this index, counted among the variants that serde knows.
    Content(u32),
    /// The variant's or the struct's function takes the payload.
    Function(&'a ExprPath),
    /// The enum's function takes the payload. It may return another variant, because it does not know the event type.
    CommonFunction(&'a ExprPath),
    /// A function takes an older event, parsed from JSON.
    Upcast(&'a ExprPath),
    /// A function takes a tombstone's aggregate id.
    FromId(&'a ExprPath),
    /// The parts of a tombstone's aggregate id are the fields.
    Id { fields: Vec<&'a Field<'a>>, separator: String },
}

/// Returns an arm for each event and for each of its older versions.
pub(crate) fn check<'a>(input: &'a Input<'a>) -> Result<Vec<Arm<'a>>> {
    check_texts(&input.defaults)?;
    if let (Some(upcast), true) = (input.defaults.upcasts.first(), input.is_enum) {
        let advice = "`upcast` on an enum does not say which variant it is for: move it to the variant";
        return Err(Error::new(upcast.span, advice));
    }
    let mut arms = Vec::new();
    let mut index = 0;
    for event in &input.events {
        check_event(input, event, index, &mut arms)?;
        index += u32::from(!event.is_skipped);
    }
    check_each_once(&arms)?;
    check_common_function(input, &arms)?;
    check_serde_into(input, &arms)?;
    Ok(arms)
}

fn check_event<'a>(
    input: &'a Input<'a>,
    event: &'a Event<'a>,
    index: u32,
    arms: &mut Vec<Arm<'a>>,
) -> Result<()> {
    let (own, defaults) = (&event.settings, &input.defaults);
    check_texts(own)?;
    let event_type = own.event_type.as_ref().or(defaults.event_type.as_ref());
    let event_type = event_type.map_or_else(|| event.ident.unraw().to_string(), LitStr::value);
    let version = own.version.or(defaults.version).unwrap_or(FIRST_VERSION);
    let variant = event.is_variant.then_some(event.ident);
    let function = own.decode.as_ref();
    // A variant with an encoding of its own also needs a decoding of its own.
    let common_function = defaults.decode.as_ref().filter(|_| own.payload.is_none());
    let any_function = function.map(How::Function).or_else(|| common_function.map(How::CommonFunction));
    let takes_bytes = any_function.is_some();
    let how = match own.payload.as_ref().or(defaults.payload.as_ref()) {
        Some(PayloadSetting::Tombstone) => {
            Some(function.map_or_else(|| tombstone(input, event), |it| Ok(How::FromId(it)))?)
        }
        Some(PayloadSetting::Function(_)) if !takes_bytes => return Err(no_counterpart(event)),
        _ if takes_bytes => any_function,
        _ if event.is_skipped => None,
        _ if input.is_read_whole => Some(How::Json),
        _ => Some(How::Content(index)),
    };
    let arm = |version, how, span| Arm { variant, event_type: event_type.clone(), version, how, span };
    arms.extend(how.map(|how| arm(version, how, event.ident.span())));
    for upcast in &own.upcasts {
        let how = if takes_bytes { How::Function(&upcast.function) } else { How::Upcast(&upcast.function) };
        arms.push(arm(upcast.version, how, upcast.span));
    }
    Ok(())
}

/// Decodes a tombstone from its aggregate id, so all of its fields must be part of the id.
fn tombstone<'a>(input: &'a Input<'a>, event: &'a Event<'a>) -> Result<How<'a>> {
    if event.fields.is_empty() {
        return Ok(How::Id { fields: Vec::new(), separator: String::new() });
    }
    let id = id::check(&input.defaults, event)?;
    check_separator(&event.settings, id.is_joined())?;
    let in_id = |field: &Field| id.fields().iter().any(|other| other.member == field.member);
    if let Some(field) = event.fields.iter().find(|field| !in_id(field)) {
        let advice = format!(
            "a tombstone has nothing to decode the field `{}` from: mark it `#[outbox(id)]`, remove it, or write \
             `decode = path::to::function`, which takes the aggregate id",
            name_of(&field.member),
        );
        return Err(Error::new(field.span, advice));
    }
    match id {
        Id::Fields { fields, separator } => Ok(How::Id { fields, separator }),
        Id::Function(_) => Ok(How::Id { fields: Vec::new(), separator: String::new() }),
    }
}

fn no_counterpart(event: &Event) -> Error {
    let advice = format!(
        "`{}` has a `payload` function but no counterpart that decodes it: write \
         `decode = path::to::function`",
        event.ident,
    );
    Error::new(event.ident.span(), advice)
}

/// Refuses an enum's function that nothing would call: nobody would notice a mistake in it.
fn check_common_function(input: &Input, arms: &[Arm]) -> Result<()> {
    let Some(function) = input.defaults.decode.as_ref().filter(|_| input.is_enum) else { return Ok(()) };
    if arms.iter().any(|arm| matches!(arm.how, How::CommonFunction(_))) {
        return Ok(());
    }
    let advice = "no variant uses this `decode`, because each has its own or is a tombstone: remove it, or move it to the variant \
                  that it is for";
    Err(Error::new_spanned(function, advice))
}

/// Refuses to read the contents of variants from what serde writes for another type.
fn check_serde_into(input: &Input, arms: &[Arm]) -> Result<()> {
    let Some(into) = input.serde_into.as_ref() else { return Ok(()) };
    if !arms.iter().any(|arm| matches!(arm.how, How::Content(_))) {
        return Ok(());
    }
    let advice = "with `into` alone, the payload that is emitted is another type's, and cannot be decoded as this enum: add serde's \
                  `from` or `try_from`, or write `#[outbox(decode = path::to::function)]`";
    Err(Error::new_spanned(into, advice))
}

fn check_each_once(arms: &[Arm]) -> Result<()> {
    let mut seen = BTreeMap::new();
    for Arm { variant, event_type, version, span, .. } in arms {
        if seen.insert((event_type, version), variant).is_some() {
            let advice = format!(
                "events of type `{event_type}` and version {version} are decoded in two ways: change the `type` or `version` of \
                 one of them (an event without `version` has version {FIRST_VERSION})"
            );
            return Err(Error::new(*span, advice));
        }
    }
    Ok(())
}
