//! Where settings were given, and what can be wrong with them.

use std::collections::BTreeMap;
use std::fmt;

use super::settings;

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) layer: Layer,
    /// As the user would find it there.
    pub(crate) name: String,
}

/// The layers of settings. Each covers those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    Default,
    File,
    Environment,
    CommandLine,
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

/// The origins of all settings that were given, by their keys. The key of a property of Kafka is `kafka.` and its name.
#[derive(Debug, Default)]
pub(crate) struct Origins(BTreeMap<String, Origin>);

impl Origins {
    pub(super) fn insert(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }

    pub(crate) fn given(&self, key: &str) -> Option<&Origin> {
        self.0.get(key)
    }

    /// The origin of the value that counts: the default is one too.
    pub(crate) fn of(&self, key: &str) -> Origin {
        let default =
            || Origin { layer: Layer::Default, name: format!("the default of {}", settings::flag(key)) };
        self.given(key).cloned().unwrap_or_else(default)
    }
}

/// Why the settings cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("the file {file} cannot be read: {source}")]
    Unreadable { file: String, source: std::io::Error },
    #[error("{file}, line {line}: {problem}")]
    Syntax { file: String, line: usize, problem: String },
    #[error("`{key}` in {file} is not a setting. The settings are {}", keys())]
    UnknownKey { file: String, key: String },
    #[error("{origin}: {problem}")]
    Wrong { origin: Origin, problem: String },
    #[error("{origin} and {other} exclude each other: give only one of them")]
    Conflict { origin: Origin, other: Origin },
    #[error(
        "{what}: set {}, {} or `{key}` in the file of --config",
        settings::flag(key),
        settings::variable(key)
    )]
    Missing { what: &'static str, key: &'static str },
}

fn keys() -> String {
    settings::all().iter().map(|setting| setting.get_id().as_str()).collect::<Vec<_>>().join(", ")
}
