//! The JSON of a variant is its content alone, because the event type already says which variant it is. Serde's derive writes
//! `{"Placed":{..}}`, and only another attribute on the type could change that. So the serializer here leaves out the name, and the
//! deserializer supplies it, around the type's own implementation. All of serde's attributes keep their meaning.

mod read;
mod write;

pub(crate) use self::read::from_content;
pub(crate) use self::write::to_content;
