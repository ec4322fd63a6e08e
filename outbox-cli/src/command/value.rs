//! What was given for a setting, where, and what can be wrong with it.

use std::fmt;

use super::settings::{SETTINGS, setting};

/// What was given for a setting.
pub(crate) struct Value {
    pub(crate) texts: Vec<String>,
    pub(crate) origin: Origin,
}

impl Value {
    pub(crate) fn one(text: impl Into<String>, origin: Origin) -> Self {
        Self { texts: vec![text.into()], origin }
    }

    /// A setting that is no list has exactly one.
    pub(crate) fn text(&self) -> &str {
        self.texts.first().map_or("", String::as_str)
    }
}

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) source: Source,
    /// As the user would find it there.
    pub(crate) name: String,
}

impl Origin {
    pub(crate) fn wrong(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::Wrong { origin: self.clone(), problem: problem.into() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The sources of settings; each covers those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    File,
    Environment,
    Flag,
}

/// Why the settings cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("the file {file} cannot be read: {source}")]
    Unreadable { file: String, source: std::io::Error },
    #[error("{file}, line {line}: {problem}")]
    Syntax { file: String, line: usize, problem: String },
    #[error("`{key}` in {file} is no setting; those are {}", known())]
    UnknownKey { file: String, key: String },
    #[error("{origin}: {problem}")]
    Wrong { origin: Origin, problem: String },
    #[error("{origin} and {other} exclude each other: give one of them")]
    Conflict { origin: Origin, other: Origin },
    #[error("{what}: {}", ways(key))]
    Missing { what: &'static str, key: &'static str },
}

fn known() -> String {
    SETTINGS.map(|setting| setting.key).join(", ")
}

fn ways(key: &str) -> String {
    setting(key).map_or_else(String::new, |setting| {
        format!("set {}, {} or `{key}` in the file of --config", setting.flag(), setting.variable())
    })
}
