use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};

/// Encodes headers for the column `headers`: as one JSON object in the headers' order, or `None` if there are no headers.
#[must_use]
pub fn encode_headers(headers: &[(String, String)]) -> Option<String> {
    if headers.is_empty() {
        return None;
    }
    let mut json = Vec::with_capacity(64);
    let mut serializer = serde_json::Serializer::new(&mut json);
    let mut map = (&mut serializer).serialize_map(Some(headers.len())).ok()?;
    for (name, value) in headers {
        map.serialize_entry(name, value).ok()?;
    }
    map.end().ok()?;
    String::from_utf8(json).ok()
}

/// Decodes the headers of a column `headers`, in the order in which the column has them.
///
/// A value that is not a JSON string becomes its JSON text, so that rows that other programs have written work as well.
///
/// # Errors
/// [`HeadersError`] if the text is not a JSON object.
pub fn decode_headers(json: &str) -> Result<Vec<(String, String)>, HeadersError> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let headers = deserializer.deserialize_map(Pairs).map_err(HeadersError)?;
    deserializer.end().map_err(HeadersError)?;
    Ok(headers)
}

/// The error for a column `headers` that does not hold a JSON object.
#[derive(Debug, thiserror::Error)]
#[error("the column `headers` does not hold a JSON object of header names and values: {0}")]
pub struct HeadersError(serde_json::Error);

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut headers = Vec::with_capacity(map.size_hint().unwrap_or(4));
        while let Some((name, value)) = map.next_entry::<String, serde_json::Value>()? {
            let text = match value {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            };
            headers.push((name, text));
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_odd_characters_survive() {
        let headers: Vec<(String, String)> = [("z", "1"), ("a", "\"q\" \\ ü\n\0"), ("", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let json = encode_headers(&headers).unwrap();
        assert_eq!(decode_headers(&json).unwrap(), headers);
        assert_eq!(encode_headers(&[]), None);
    }

    #[test]
    fn other_json_values_are_sent_as_their_text() {
        let headers = decode_headers(r#"{"n": 1.5, "b": true, "o": {"k": [1]}}"#).unwrap();
        let values: Vec<&str> = headers.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["1.5", "true", r#"{"k":[1]}"#]);
    }

    #[test]
    fn a_headers_column_that_is_not_an_object_is_an_error() {
        for bad in ["[1]", "\"text\"", "{", "{} {}"] {
            let error = decode_headers(bad).unwrap_err().to_string();
            assert!(error.contains("does not hold a JSON object"), "{bad}: {error}");
        }
    }
}
