//! The last stage, for a type with a mistake. It writes the error and an implementation in name only, so that no second error appears
//! where the type is emitted.

use proc_macro2::{TokenStream, TokenTree};
use quote::quote;
use syn::parse::{ParseStream, Parser};
use syn::{DeriveInput, Error, Meta, Path, Token};

use crate::expand::Krate;
use crate::{Derived, Library, attr};

pub(crate) fn expand(input: &DeriveInput, error: &Error, derived: Derived, library: Library) -> TokenStream {
    let error = error.to_compile_error();
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let krate = find_krate(input);
    let krate = Krate(krate.as_ref(), library);
    let (name, items) = match derived {
        Derived::Outbox => (
            quote!(OutboxEvent),
            quote! {
                fn to_record(&self) -> ::core::result::Result<#krate::Record, #krate::RecordError> {
                    ::core::unreachable!()
                }
            },
        ),
        Derived::Inbox => (
            quote!(InboxEvent),
            quote! {
                const EVENT_TYPES: &'static [&'static str] = &[];

                fn decode(_: &#krate::EncodedEvent<'_>) -> ::core::result::Result<Self, #krate::DecodeError> {
                    ::core::unreachable!()
                }
            },
        ),
    };
    quote! {
        #error

        #[automatically_derived]
        impl #impl_generics #krate::#name for #ident #ty_generics #where_clause {
            #items
        }
    }
}

/// Finds the value of `crate = ..`, even if its attribute is the broken one.
fn find_krate(input: &DeriveInput) -> Option<Path> {
    input.attrs.iter().filter(|attribute| attribute.path().is_ident("outbox")).find_map(|attribute| {
        let Meta::List(list) = &attribute.meta else { return None };
        scan_for_krate.parse2(list.tokens.clone()).ok()
    })
}

fn scan_for_krate(input: ParseStream) -> syn::Result<Path> {
    while !(input.peek(Token![crate]) && input.peek2(Token![=])) {
        input.parse::<TokenTree>()?;
    }
    input.parse::<Token![crate]>()?;
    let path = attr::krate(input)?;
    input.parse::<TokenStream>()?;
    Ok(path)
}
