use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};

use super::bounds::decoding_bounds;
use super::{Krate, place};
use crate::ast::{Field, Input};
use crate::valid::{Arm, How, name_of};

pub(crate) fn expand(input: &Input, arms: &[Arm]) -> TokenStream {
    let Input { ident, generics, .. } = input;
    let krate = input.krate();
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let predicates = where_clause.iter().flat_map(|clause| &clause.predicates);
    let bounds = decoding_bounds(generics, arms, krate);
    let mut types: Vec<&str> = Vec::new();
    for arm in arms {
        if !types.contains(&arm.event_type.as_str()) {
            types.push(&arm.event_type);
        }
    }
    let event = Ident::new("event", Span::mixed_site());
    let by_type = types.iter().map(|event_type| {
        let mut of_type: Vec<&Arm> = arms.iter().filter(|arm| arm.event_type == *event_type).collect();
        of_type.sort_by_key(|arm| arm.version);
        let versions: Vec<u32> = of_type.iter().map(|arm| arm.version).collect();
        let decoded = of_type.iter().map(|arm| decoded(arm, input, &event, krate));
        quote! {
            #event_type => match #krate::__private::version(#event) {
                #(#versions => { #decoded })*
                _ => ::core::result::Result::Err(#event.unknown_version(&[#(#versions),*])),
            },
        }
    });
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::InboxEvent for #ident #ty_generics
        where
            #(#predicates,)*
            #(#bounds,)*
        {
            const EVENT_TYPES: &'static [&'static str] = &[#(#types),*];

            fn decode(
                #event: &#krate::EncodedEvent<'_>,
            ) -> ::core::result::Result<Self, #krate::DecodeError> {
                match #event.event_type() {
                    #(#by_type)*
                    _ => ::core::result::Result::Err(#event.unknown_type(Self::EVENT_TYPES)),
                }
            }
        }
    }
}

fn decoded(arm: &Arm, input: &Input, event: &Ident, krate: Krate) -> TokenStream {
    let function = |function: &syn::ExprPath, name: &str| {
        let (span, krate, name) = (place(function), krate.at(function), format_ident!("{name}"));
        quote_spanned!(span=> #krate::__private::#name::<Self, _>(#event, #function))
    };
    match &arm.how {
        How::Function(path) => function(path, "decode"),
        How::CommonFunction(path) => checked(&function(path, "decode"), arm, input, event, krate),
        How::Upcast(path) => {
            let (span, krate) = (place(path), krate.at(path));
            quote_spanned!(span=> #krate::__private::upcast::<Self, _, _>(#event, #path))
        }
        How::FromId(path) => function(path, "from_id"),
        How::Json => {
            let (span, path) = (place(input.ident), krate.at(input.ident));
            let decoded = quote_spanned!(span=> <Self as #path::__private::FromJson>::from_json(#event));
            checked(&decoded, arm, input, event, krate)
        }
        How::Content(index) => {
            let (span, path) = (place(input.ident), krate.at(input.ident));
            let decoded =
                quote_spanned!(span=> <Self as #path::__private::FromJson>::from_content(#event, #index));
            checked(&decoded, arm, input, event, krate)
        }
        How::Id { fields, separator } => from_parts(arm, fields, separator, event, krate),
    }
}

/// Checks that the value is the variant that the event type names, because serde or the enum's function may have chosen another one.
fn checked(decoded: &TokenStream, arm: &Arm, input: &Input, event: &Ident, krate: Krate) -> TokenStream {
    let Some(variant) = arm.variant.filter(|_| input.events.len() > 1) else { return decoded.clone() };
    let value = Ident::new("value", Span::mixed_site());
    quote! {
        let #value = #decoded?;
        let is_it = match #value {
            Self::#variant { .. } => true,
            _ => false,
        };
        #krate::__private::check(#event, #value, is_it)
    }
}

fn from_parts(arm: &Arm, fields: &[&Field], separator: &str, event: &Ident, krate: Krate) -> TokenStream {
    let variant = arm.variant.map(|variant| quote!(::#variant));
    if fields.is_empty() {
        return quote!(::core::result::Result::Ok(Self #variant {}));
    }
    let members = fields.iter().map(|field| &field.member);
    let bindings: Vec<&Ident> = fields.iter().map(|field| &field.binding).collect();
    let values = fields.iter().map(|Field { member, ty, binding, .. }| {
        let (span, krate, name) = (place(ty), krate.at(ty), name_of(member));
        quote_spanned!(span=> #krate::__private::id_part(#event, #binding, #name)?)
    });
    quote! {
        let [#(#bindings),*] = #krate::__private::id_parts(#event, #separator)?;
        ::core::result::Result::Ok(Self #variant { #(#members: #values),* })
    }
}
