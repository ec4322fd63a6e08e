//! The JSON of a variant: its content alone, because the event type says already which variant it is. Serde's derive writes
//! `{"Placed":{..}}`, and nothing but another attribute on the type could change that, so the name is left out while the
//! type's own implementation is at work. All of serde's attributes keep their meaning.

mod read;
mod write;

pub(crate) use self::read::from_content;
pub(crate) use self::write::to_content;
