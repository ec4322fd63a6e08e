use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{GenericArgument, GenericParam, Generics, PathArguments, Type};

use super::Krate;
use crate::valid::{Arm, Event, EventPayload, Header, How};

/// Returns the bounds that the implementation needs on a generic type. The compiler itself checks types that do not depend on a
/// parameter.
pub(super) fn bounds(generics: &Generics, events: &[Event], krate: Krate) -> Vec<TokenStream> {
    let parameters = parameters(generics);
    let is_json = |event: &Event| matches!(event.payload, EventPayload::Json | EventPayload::Content);
    let serialized = !parameters.is_empty() && events.iter().any(is_json);
    let serialize = serialized.then(|| quote!(Self: #krate::__private::Serialize));

    let displays = each(events.iter().flat_map(displayed), &parameters);
    serialize.into_iter().chain(displays.into_iter().map(|ty| quote!(#ty: ::core::fmt::Display))).collect()
}

/// Returns the bounds that decoding needs.
pub(super) fn decoding_bounds(generics: &Generics, arms: &[Arm], krate: Krate) -> Vec<TokenStream> {
    let parameters = parameters(generics);
    let is_json = |arm: &Arm| matches!(arm.how, How::Json | How::Content(_));
    let deserialized = !parameters.is_empty() && arms.iter().any(is_json);
    let deserialize = deserialized.then(|| quote!(Self: #krate::__private::DeserializeOwned));

    let parsed = arms.iter().flat_map(|arm| match &arm.how {
        How::Id { fields, .. } => fields.as_slice(),
        _ => &[],
    });
    let parses = each(parsed.map(|field| field.ty), &parameters);
    deserialize.into_iter().chain(parses.into_iter().map(|ty| quote!(#ty: ::core::str::FromStr))).collect()
}

fn parameters(generics: &Generics) -> BTreeSet<String> {
    let name = |parameter: &GenericParam| match parameter {
        GenericParam::Type(parameter) => Some(parameter.ident.to_string()),
        GenericParam::Const(parameter) => Some(parameter.ident.to_string()),
        GenericParam::Lifetime(_) => None,
    };
    generics.params.iter().filter_map(name).collect()
}

/// Returns those types that depend on a parameter, each once.
fn each<'a>(types: impl Iterator<Item = &'a Type>, parameters: &BTreeSet<String>) -> Vec<TokenStream> {
    let mut seen = BTreeSet::new();
    types
        .map(ToTokens::to_token_stream)
        .filter(|ty| mentions(ty.clone(), parameters) && seen.insert(ty.to_string()))
        .collect()
}

/// Returns the types whose values become text.
fn displayed<'a>(event: &'a Event<'a>) -> impl Iterator<Item = &'a Type> {
    let ids = event.id.fields().iter().map(|field| field.ty);
    let headers = event.headers.iter().filter_map(Header::whole_field).map(|field| field.ty);
    ids.chain(headers.map(|ty| inside_option(ty).unwrap_or(ty)))
}

fn mentions(tokens: TokenStream, names: &BTreeSet<String>) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => names.contains(&ident.to_string()),
        TokenTree::Group(group) => mentions(group.stream(), names),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

/// Returns `T` if the type is written as `Option<T>`.
pub(super) fn inside_option(ty: &Type) -> Option<&Type> {
    let path = match ty {
        Type::Path(ty) => &ty.path,
        // The type comes from a `macro_rules!` macro.
        Type::Group(group) => return inside_option(&group.elem),
        _ => return None,
    };
    let last = path.segments.last().filter(|segment| segment.ident == "Option")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first() {
        Some(GenericArgument::Type(inside)) => Some(inside),
        _ => None,
    }
}
