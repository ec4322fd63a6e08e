//! How values are written. An error says what a value must be, and does not repeat it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use diesel_outbox::__private::LONGEST_RETENTION;
use diesel_outbox_relay::TopicNaming;

/// A text that nobody is shown.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A property of librdkafka. Its value may be a secret.
#[derive(Debug, Clone)]
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) value: Secret,
}

impl FromStr for Property {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
        Ok(Self { name: name.to_owned(), value: Secret(value.to_owned()) })
    }
}

/// A length of time with its unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time(pub(crate) Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match humantime::parse_duration(text) {
            Ok(time) if time.is_zero() => Err("it must be greater than zero".into()),
            Ok(time) if time > LONGEST_RETENTION => Err("it must be at most 100 years".into()),
            Ok(time) => Ok(Self(time)),
            Err(error) => Err(format!("it must be a time with a unit, such as 500ms, 15s or 7d ({error})")),
        }
    }
}

/// A pattern for topics, as it was written and as the relay takes it.
#[derive(Debug, Clone)]
pub(crate) struct TopicPattern {
    pub(crate) text: String,
    pub(crate) naming: TopicNaming,
}

impl FromStr for TopicPattern {
    type Err = diesel_outbox_relay::TopicError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { naming: text.parse()?, text: text.to_owned() })
    }
}

/// Reads `true` or `false`.
pub(super) fn switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("it must be true or false"),
    }
}

/// Reads a number.
pub(super) fn whole<N: FromStr>(text: &str) -> Result<N, &'static str> {
    text.parse().map_err(|_| "it must be a whole number")
}

/// Reads an item of a list. Whoever takes the list skips empty items: `a, ` has one item.
pub(super) fn trimmed(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(text.trim().to_owned())
}
