//! The second stage: the type as the user wrote it, with its attributes.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, Generics, Ident, Member, Path, Result, Type};

use crate::attr::{FieldSettings, Place, Settings};
use crate::expand::Krate;
use crate::{Library, serde_attr};

pub(crate) struct Input<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) generics: &'a Generics,
    krate: Option<Path>,
    library: Library,
    /// An enum's settings for all of its variants.
    pub(crate) defaults: Settings,
    /// The struct, or the enum's variants.
    pub(crate) events: Vec<Event<'a>>,
    pub(crate) is_enum: bool,
    /// Whether the payload is what serde writes for the whole value. If not, it is the content of the variant, without the name
    /// that serde gives it, because the event type says that already.
    pub(crate) is_written_whole: bool,
    /// The same for reading.
    pub(crate) is_read_whole: bool,
    /// Serde's `into`, by which it writes the value as another type.
    pub(crate) serde_into: Option<Ident>,
}

pub(crate) struct Event<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) is_variant: bool,
    /// Whether serde never reads the variant.
    pub(crate) is_skipped: bool,
    pub(crate) settings: Settings,
    pub(crate) fields: Vec<Field<'a>>,
}

pub(crate) struct Field<'a> {
    pub(crate) member: Member,
    pub(crate) ty: &'a Type,
    /// The field's name in the generated code. No path of the user's can refer to it. Its span is that of the type.
    pub(crate) binding: Ident,
    /// The place of the field in the source.
    pub(crate) span: Span,
    pub(crate) settings: FieldSettings,
}

impl<'a> Input<'a> {
    pub(crate) fn parse(node: &'a DeriveInput, library: Library) -> Result<Self> {
        let DeriveInput { ident, generics, .. } = node;
        let mut settings = Settings::parse(&node.attrs, Place::Type)?;
        let krate = settings.krate.take();
        let (defaults, events) = match &node.data {
            Data::Struct(data) => {
                let fields = Field::parse_all(&data.fields)?;
                (
                    Settings::default(),
                    vec![Event { ident, is_variant: false, is_skipped: false, settings, fields }],
                )
            }
            Data::Enum(data) => {
                (settings, data.variants.iter().map(Event::parse_variant).collect::<Result<_>>()?)
            }
            Data::Union(data) => {
                let advice = "a union cannot be an event: make it a struct or an enum";
                return Err(Error::new_spanned(data.union_token, advice));
            }
        };
        let is_enum = matches!(node.data, Data::Enum(_));
        let is_whole = !is_enum || serde_attr::is_untagged(node);
        let serde_into = serde_attr::find(&node.attrs, "into");
        Ok(Self {
            ident,
            generics,
            krate,
            library,
            defaults,
            events,
            is_enum,
            is_written_whole: is_whole || serde_into.is_some(),
            is_read_whole: is_whole || serde_attr::says(&node.attrs, &["from", "try_from"]),
            serde_into,
        })
    }

    pub(crate) fn krate(&self) -> Krate<'_> {
        Krate(self.krate.as_ref(), self.library)
    }
}

impl<'a> Event<'a> {
    fn parse_variant(node: &'a syn::Variant) -> Result<Self> {
        Ok(Self {
            ident: &node.ident,
            is_variant: true,
            is_skipped: serde_attr::says(&node.attrs, &["skip", "skip_deserializing"]),
            settings: Settings::parse(&node.attrs, Place::Variant)?,
            fields: Field::parse_all(&node.fields)?,
        })
    }
}

impl<'a> Field<'a> {
    fn parse_all(fields: &'a Fields) -> Result<Vec<Self>> {
        let parse = |(position, (member, node)): (usize, (Member, &'a syn::Field))| {
            let span = Span::mixed_site().located_at(node.ty.span());
            let binding = Ident::new(&format!("field_{position}"), span);
            let place = node.ident.as_ref().map_or_else(|| node.ty.span(), Ident::span);
            let settings = FieldSettings::parse(&node.attrs)?;
            Ok(Self { member, ty: &node.ty, binding, span: place, settings })
        };
        fields.members().zip(fields).enumerate().map(parse).collect()
    }
}
