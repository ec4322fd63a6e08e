//! The fourth stage: the implementation.

mod bounds;
mod decode;

use std::collections::BTreeMap;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::Path;
use syn::spanned::Spanned;

use self::bounds::{bounds, inside_option};
pub(crate) use self::decode::expand as expand_decoding;
use crate::Library;
use crate::ast::{Field, Input};
use crate::attr::Value;
use crate::valid::{Event, EventId, EventPayload, Header, Id, Source};

pub(crate) fn expand(input: &Input, events: &[Event]) -> TokenStream {
    let Input { ident, generics, .. } = input;
    let krate = input.krate();
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let predicates = where_clause.iter().flat_map(|clause| &clause.predicates);
    let bounds = bounds(generics, events, krate);
    let arms = events.iter().map(|event| arm(event, ident, krate));
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::OutboxEvent for #ident #ty_generics
        where
            #(#predicates,)*
            #(#bounds,)*
        {
            fn to_record(&self) -> ::core::result::Result<#krate::Record, #krate::RecordError> {
                match *self {
                    #(#arms)*
                }
            }
        }
    }
}

fn arm(event: &Event, ident: &Ident, krate: Krate) -> TokenStream {
    let Event { aggregate, event_type, .. } = event;
    let variant = event.variant.map(|variant| quote!(::#variant));
    let fields: BTreeMap<&Ident, &Field> = event.fields().map(|field| (&field.binding, field)).collect();
    let members = fields.values().map(|field| &field.member);
    let bindings = fields.keys();

    // No path of the user's can refer to this name.
    let record = Ident::new("record", Span::mixed_site());
    let id = id(&event.id, krate);
    let event_id = event_id(&event.event_id, krate).map(|id| quote!(let #record = #record.with_id(#id);));
    let version = event.version.map(|version| quote!(let #record = #record.version(#version);));
    let headers = event.headers.iter().map(|each| header(each, &record, krate));
    let more_headers = event.header_function.map(|function| {
        let (span, krate) = (place(function), krate.at(function));
        quote_spanned!(span=> let #record = #krate::__private::Headers::add_to(#function(self), #record);)
    });
    let payload = payload(&event.payload, ident, &record, krate);
    quote! {
        Self #variant { #(#members: ref #bindings,)* .. } => {
            let #record = #krate::Record::new(#aggregate, #id, #event_type);
            #event_id
            #version
            #(#headers)*
            #more_headers
            #payload
        }
    }
}

fn id(id: &Id, krate: Krate) -> TokenStream {
    match id {
        Id::Function(function) => {
            let (span, text) = (place(function), text(function, &quote!(&id), krate));
            quote_spanned!(span=> { let id = #function(self); #text })
        }
        Id::Fields { fields, separator } => {
            let parts = fields.iter().map(|Field { ty, binding, .. }| text(ty, binding, krate));
            match fields.len() {
                1 => quote!(#(#parts)*),
                _ => quote!([#(#parts),*].join(#separator)),
            }
        }
    }
}

fn event_id(id: &EventId, krate: Krate) -> Option<TokenStream> {
    match id {
        EventId::New => None,
        EventId::Function(function) => {
            let (span, krate) = (place(function), krate.at(function));
            Some(quote_spanned!(span=> #krate::__private::EventId::event_id(&#function(self))))
        }
        EventId::Field(Field { ty, binding, .. }) => {
            let (span, krate) = (place(ty), krate.at(ty));
            Some(quote_spanned!(span=> #krate::__private::EventId::event_id(#binding)))
        }
    }
}

fn header(header: &Header, record: &Ident, krate: Krate) -> TokenStream {
    let Header { name, source, .. } = header;
    let value = match source {
        Source::Constant(Value::Text(text)) => text.to_token_stream(),
        Source::Constant(Value::Path(path)) => text(path, &quote!(&#path), krate),
        // Such a value belongs to a field and never gets here.
        Source::Constant(Value::Nested(_)) => TokenStream::new(),
        Source::Field(Field { ty, binding, .. }) => text(ty, binding, krate),
        Source::Nested(Field { binding, .. }, rest) => {
            let last = rest.last().map_or_else(|| binding.to_token_stream(), ToTokens::to_token_stream);
            text(&last, &quote!(&#binding #(.#rest)*), krate)
        }
    };
    match source {
        Source::Field(Field { ty, binding, .. }) if inside_option(ty).is_some() => quote! {
            let #record = match *#binding {
                ::core::option::Option::Some(ref #binding) => #record.header(#name, #value),
                ::core::option::Option::None => #record,
            };
        },
        _ => quote!(let #record = #record.header(#name, #value);),
    }
}

fn payload(payload: &EventPayload, ident: &Ident, record: &Ident, krate: Krate) -> TokenStream {
    match payload {
        EventPayload::Json => {
            let (span, krate) = (place(ident), krate.at(ident));
            quote_spanned!(span=> #krate::__private::Json::json(self, #record))
        }
        EventPayload::Content => {
            let (span, krate) = (place(ident), krate.at(ident));
            quote_spanned!(span=> #krate::__private::Json::content(self, #record))
        }
        EventPayload::Function(function) => {
            let (span, krate) = (place(function), krate.at(function));
            quote_spanned! {span=>
                let payload = #function(self);
                #krate::__private::Payload::into_bytes(payload).map(|bytes| #record.with_payload(bytes))
            }
        }
        EventPayload::Tombstone => quote!(::core::result::Result::Ok(#record)),
    }
}

/// Formats a value as text. If its type cannot be formatted, the compiler's error points at `source`.
fn text(source: &impl ToTokens, value: &impl ToTokens, krate: Krate) -> TokenStream {
    let (span, krate) = (place(source), krate.at(source));
    quote_spanned!(span=> #krate::__private::Text::text(#value))
}

/// Returns the place of the user's code, for the compiler's errors. The code itself remains generated code, to which the user's
/// lints do not apply.
fn place(source: &impl ToTokens) -> Span {
    Span::call_site().located_at(source.span())
}

/// The path of the crate that has the traits: the one that the user named, or else that of the library.
#[derive(Clone, Copy)]
pub(crate) struct Krate<'a>(pub(crate) Option<&'a Path>, pub(crate) Library);

impl Krate<'_> {
    fn at(self, source: &impl ToTokens) -> TokenStream {
        self.spanned(place(source))
    }

    fn spanned(self, span: Span) -> TokenStream {
        match self {
            Self(Some(path), _) => path.to_token_stream(),
            Self(None, Library::Diesel) => quote_spanned!(span=> ::diesel_outbox),
            Self(None, Library::SeaOrm) => quote_spanned!(span=> ::sea_orm_outbox),
            Self(None, Library::Kafka) => quote_spanned!(span=> ::diesel_outbox_kafka),
        }
    }
}

impl ToTokens for Krate<'_> {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(self.spanned(Span::call_site()));
    }
}
