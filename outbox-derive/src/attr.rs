//! The first stage: the content of each `#[outbox(..)]`, key by key.

use proc_macro2::Span;
use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Error, ExprPath, LitInt, LitStr, Member, Path, Result, Token, parenthesized, token};

/// The settings from the attributes of a type or of a variant.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) aggregate: Option<LitStr>,
    pub(crate) event_type: Option<LitStr>,
    pub(crate) version: Option<u32>,
    pub(crate) id: Option<Id>,
    pub(crate) separator: Option<LitStr>,
    pub(crate) headers: Vec<Constant>,
    /// A function that makes headers.
    pub(crate) header_function: Option<ExprPath>,
    pub(crate) event_id: Option<ExprPath>,
    pub(crate) payload: Option<PayloadSetting>,
    pub(crate) decode: Option<ExprPath>,
    pub(crate) upcasts: Vec<Upcast>,
    pub(crate) krate: Option<Path>,
}

/// The settings from the attributes of a field.
#[derive(Default)]
pub(crate) struct FieldSettings {
    /// The place of `id` in the source.
    pub(crate) id: Option<Span>,
    /// The place of `event_id` in the source.
    pub(crate) event_id: Option<Span>,
    pub(crate) header: Option<FieldHeader>,
}

pub(crate) enum Id {
    Function(ExprPath),
    Fields(Vec<Member>),
}

pub(crate) enum PayloadSetting {
    Function(ExprPath),
    Tombstone,
}

/// A header on the type or the variant: `"name" = value`.
pub(crate) struct Constant {
    pub(crate) name: LitStr,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    Text(LitStr),
    Path(ExprPath),
    Nested(Nested),
}

/// A value within one of the event's fields: `self.context.tenant`.
pub(crate) struct Nested {
    pub(crate) field: Member,
    pub(crate) rest: Vec<Member>,
}

/// The function that decodes an older version: `1 = path::to::function`.
pub(crate) struct Upcast {
    pub(crate) version: u32,
    pub(crate) span: Span,
    pub(crate) function: ExprPath,
}

/// A header from a field: `header`, or `header = "name"`.
pub(crate) struct FieldHeader {
    pub(crate) span: Span,
    pub(crate) name: Option<LitStr>,
}

/// The item that has the attribute, which decides the keys that it accepts.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Type,
    Variant,
}

impl Place {
    fn known(self) -> &'static str {
        match self {
            Self::Type => {
                "a type accepts `aggregate`, `type`, `version`, `id`, `separator`, `event_id`, `header`, `headers`, \
                 `payload`, `tombstone`, `decode`, `upcast` and `crate`"
            }
            Self::Variant => {
                "a variant accepts `aggregate`, `type`, `version`, `id`, `separator`, `event_id`, `header`, `headers`, \
                 `payload`, `tombstone`, `decode` and `upcast`"
            }
        }
    }
}

impl Settings {
    pub(crate) fn parse(attributes: &[Attribute], place: Place) -> Result<Self> {
        let mut settings = Self::default();
        each_key(attributes, |meta| settings.parse_key(meta, place))?;
        Ok(settings)
    }

    fn parse_key(&mut self, meta: &ParseNestedMeta, place: Place) -> Result<()> {
        match key(meta).as_str() {
            "aggregate" => set(&mut self.aggregate, meta, text(meta, "order")?),
            "type" => set(&mut self.event_type, meta, text(meta, "OrderPlaced")?),
            "version" => set(&mut self.version, meta, version(meta)?),
            "id" => set(&mut self.id, meta, id(meta)?),
            "separator" => set(&mut self.separator, meta, text(meta, "-")?),
            "header" => {
                self.headers.extend(constants(meta)?);
                Ok(())
            }
            "headers" => set(&mut self.header_function, meta, function(meta)?),
            "event_id" => set(&mut self.event_id, meta, function(meta)?),
            "decode" => set(&mut self.decode, meta, function(meta)?),
            "upcast" => {
                self.upcasts.extend(upcasts(meta)?);
                Ok(())
            }
            "payload" => self.set_payload(meta, PayloadSetting::Function(function(meta)?)),
            "tombstone" => {
                alone(meta)?;
                self.set_payload(meta, PayloadSetting::Tombstone)
            }
            "crate" if place == Place::Type => set(&mut self.krate, meta, krate(meta.input)?),
            _ => Err(unknown(meta, place.known())),
        }
    }

    fn set_payload(&mut self, meta: &ParseNestedMeta, payload: PayloadSetting) -> Result<()> {
        match (&self.payload, &payload) {
            (Some(PayloadSetting::Function(_)), PayloadSetting::Tombstone)
            | (Some(PayloadSetting::Tombstone), PayloadSetting::Function(_)) => Err(Error::new_spanned(
                &meta.path,
                "a tombstone has no payload: write either `payload = function` or `tombstone`",
            )),
            _ => set(&mut self.payload, meta, payload),
        }
    }
}

impl FieldSettings {
    pub(crate) fn parse(attributes: &[Attribute]) -> Result<Self> {
        let mut settings = Self::default();
        each_key(attributes, |meta| match key(meta).as_str() {
            "id" => {
                alone(meta)?;
                set(&mut settings.id, meta, meta.path.span())
            }
            "event_id" => {
                alone(meta)?;
                set(&mut settings.event_id, meta, meta.path.span())
            }
            "header" => set(&mut settings.header, meta, field_header(meta)?),
            _ => Err(unknown(meta, "a field accepts `id`, `event_id` and `header`")),
        })?;
        Ok(settings)
    }
}

fn each_key(
    attributes: &[Attribute],
    mut parse: impl FnMut(&ParseNestedMeta<'_>) -> Result<()>,
) -> Result<()> {
    attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("outbox"))
        .try_for_each(|attribute| attribute.parse_nested_meta(|meta| parse(&meta)))
}

fn key(meta: &ParseNestedMeta) -> String {
    meta.path.get_ident().map(ToString::to_string).unwrap_or_default()
}

fn set<T>(slot: &mut Option<T>, meta: &ParseNestedMeta, value: T) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(Error::new_spanned(&meta.path, format!("`{}` is set twice: keep one", key(meta))));
    }
    Ok(())
}

fn unknown(meta: &ParseNestedMeta, known: &str) -> Error {
    Error::new_spanned(&meta.path, format!("unknown attribute: {known}"))
}

/// Parses the value after `=`. The error says what to write.
fn value<T: Parse>(meta: &ParseNestedMeta, advice: impl FnOnce() -> String) -> Result<T> {
    meta.value().and_then(T::parse).map_err(|error| Error::new(error.span(), advice()))
}

fn text(meta: &ParseNestedMeta, example: &str) -> Result<LitStr> {
    value(meta, || format!("write a string: `{} = \"{example}\"`", key(meta)))
}

fn function(meta: &ParseNestedMeta) -> Result<ExprPath> {
    value(meta, || {
        format!("write the path of a function, without quotes: `{} = path::to::function`", key(meta))
    })
}

fn version(meta: &ParseNestedMeta) -> Result<u32> {
    let advice = || "write a whole number up to 4294967295, without quotes: `version = 2`".to_owned();
    let literal: LitInt = value(meta, advice)?;
    literal.base10_parse().map_err(|_| Error::new_spanned(&literal, advice()))
}

fn id(meta: &ParseNestedMeta) -> Result<Id> {
    let advice = "write the names of fields, `id(order_id, line)`, or the path of a function, \
                  `id = path::to::function`; `id` alone is for a field";
    if meta.input.peek(token::Paren) {
        let members: Punctuated<Member, Token![,]> = parenthesized(meta, advice)?;
        if members.is_empty() {
            return Err(Error::new_spanned(&meta.path, advice));
        }
        Ok(Id::Fields(members.into_iter().collect()))
    } else if meta.input.peek(Token![=]) {
        Ok(Id::Function(function(meta)?))
    } else {
        Err(Error::new_spanned(&meta.path, advice))
    }
}

fn constants(meta: &ParseNestedMeta) -> Result<Punctuated<Constant, Token![,]>> {
    let advice = "write a name and a value, `header(\"source\" = \"web\")`; the value may also be the path of a constant, or lie in a \
         field: `self.context.tenant`";
    if meta.input.peek(token::Paren) {
        parenthesized(meta, advice)
    } else {
        Err(Error::new_spanned(&meta.path, advice))
    }
}

fn upcasts(meta: &ParseNestedMeta) -> Result<Punctuated<Upcast, Token![,]>> {
    let advice =
        "write an older version and the path of a function, without quotes: `upcast(1 = path::to::function)`";
    if meta.input.peek(token::Paren) {
        parenthesized(meta, advice)
    } else {
        Err(Error::new_spanned(&meta.path, advice))
    }
}

fn field_header(meta: &ParseNestedMeta) -> Result<FieldHeader> {
    let span = meta.path.span();
    if meta.input.is_empty() || meta.input.peek(Token![,]) {
        return Ok(FieldHeader { span, name: None });
    }
    let advice = || "write `header`, or `header = \"name\"` for a name other than the field's".to_owned();
    Ok(FieldHeader { span, name: Some(value(meta, advice)?) })
}

/// Parses what follows `crate`: `= path`, or the path in a string.
pub(crate) fn krate(input: ParseStream) -> Result<Path> {
    let path = input.parse::<Token![=]>().and_then(|_| {
        if input.peek(LitStr) {
            input.parse::<LitStr>()?.parse_with(Path::parse_mod_style)
        } else {
            Path::parse_mod_style(input)
        }
    });
    path.map_err(|error| {
        Error::new(error.span(), "write the path of diesel-outbox: `crate = renamed_outbox`")
    })
}

fn alone(meta: &ParseNestedMeta) -> Result<()> {
    if meta.input.is_empty() || meta.input.peek(Token![,]) {
        return Ok(());
    }
    let key = key(meta);
    Err(Error::new_spanned(&meta.path, format!("`{key}` takes no value here: write `{key}` alone")))
}

/// Parses the list in the parentheses that follow. The error says what to write.
fn parenthesized<T: Parse>(meta: &ParseNestedMeta, advice: &str) -> Result<Punctuated<T, Token![,]>> {
    let content;
    parenthesized!(content in meta.input);
    Punctuated::parse_terminated(&content).map_err(|error| Error::new(error.span(), advice))
}

impl Parse for Constant {
    fn parse(input: ParseStream) -> Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![=]>()?;
        let value = if input.peek(LitStr) {
            Value::Text(input.parse()?)
        } else if input.peek(Token![self]) {
            Value::Nested(input.parse()?)
        } else {
            Value::Path(input.parse()?)
        };
        Ok(Self { name, value })
    }
}

impl Parse for Nested {
    fn parse(input: ParseStream) -> Result<Self> {
        input.parse::<Token![self]>()?;
        input.parse::<Token![.]>()?;
        let field = input.parse()?;
        let mut rest = Vec::new();
        while input.peek(Token![.]) {
            input.parse::<Token![.]>()?;
            rest.push(input.parse()?);
        }
        Ok(Self { field, rest })
    }
}

impl Parse for Upcast {
    fn parse(input: ParseStream) -> Result<Self> {
        let literal: LitInt = input.parse()?;
        input.parse::<Token![=]>()?;
        Ok(Self { version: literal.base10_parse()?, span: literal.span(), function: input.parse()? })
    }
}
