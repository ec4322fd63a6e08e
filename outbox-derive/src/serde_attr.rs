//! How serde's own attributes change the name of a variant in JSON. Serde itself reports mistakes in them.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{Attribute, Data, DeriveInput, Meta};

/// Returns whether serde does not put an enum's content under the name of its variant.
pub(crate) fn is_untagged(node: &DeriveInput) -> bool {
    let Data::Enum(data) = &node.data else { return false };
    says(&node.attrs, &["untagged", "tag"])
        || data.variants.iter().any(|variant| says(&variant.attrs, &["untagged"]))
}

/// Returns whether a `#[serde(..)]` has one of these keys.
pub(crate) fn says(attributes: &[Attribute], keys: &[&str]) -> bool {
    keys.iter().any(|key| find(attributes, key).is_some())
}

/// Returns this key, if a `#[serde(..)]` has it.
pub(crate) fn find(attributes: &[Attribute], key: &str) -> Option<Ident> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("serde") => {
            found(list.tokens.clone()).find(|found| found == key)
        }
        _ => None,
    })
}

/// Returns the keys: the first token, and the one behind each comma.
fn found(tokens: TokenStream) -> impl Iterator<Item = Ident> {
    let mut is_key = true;
    tokens.into_iter().filter_map(move |token| {
        let was_key = std::mem::replace(
            &mut is_key,
            matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ','),
        );
        match token {
            TokenTree::Ident(ident) if was_key => Some(ident),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use syn::{DeriveInput, parse_quote};

    #[test]
    fn keys_are_found_beside_others_and_values_are_none() {
        let untagged: DeriveInput = parse_quote!(
            #[serde(rename_all = "a", untagged)]
            enum Event {}
        );
        let tagged: DeriveInput = parse_quote!(
            #[serde(deny_unknown_fields)]
            #[serde(tag = "type")]
            enum Event {}
        );
        let partly: DeriveInput = parse_quote!(
            enum Event {
                #[serde(untagged)]
                A(u8),
            }
        );
        let plain: DeriveInput = parse_quote! {
            #[serde(rename(serialize = "tag", deserialize = "untagged"))]
            enum Event { #[serde(rename = "tag")] A }
        };
        assert!(super::is_untagged(&untagged) && super::is_untagged(&tagged) && super::is_untagged(&partly));
        assert!(!super::is_untagged(&plain));
    }
}
