//! Where settings come from: the file, the environment, the command line. Each is a layer; later ones cover earlier
//! ones.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::ArgMatches;

use super::settings::{PREFIX, SETTINGS, Setting, Shape, setting};
use super::value::{ConfigError, Origin, Source, Value};

/// Values by key. A property of Kafka has a key of its own, `kafka.` and its name.
pub(crate) type Layer = BTreeMap<String, Value>;

/// What a property's key begins with.
pub(crate) const PROPERTY: &str = "kafka.";

/// What the command line says.
pub(crate) fn flags(matches: &ArgMatches) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for setting in &SETTINGS {
        // A command knows its own settings only.
        let Ok(Some(texts)) = matches.try_get_many::<String>(setting.key) else { continue };
        let origin = Origin { source: Source::Flag, name: setting.flag() };
        if setting.shape == Shape::Properties {
            for text in texts {
                let (name, value) =
                    text.split_once('=').ok_or_else(|| origin.wrong("write it as NAME=VALUE"))?;
                let origin = Origin { name: format!("{} {name}", origin.name), ..origin.clone() };
                layer.insert(format!("{PROPERTY}{name}"), Value::one(value, origin));
            }
        } else {
            layer.insert(setting.key.to_owned(), value(setting, texts.cloned(), origin));
        }
    }
    Ok(layer)
}

/// What the environment says. A variable that is empty counts as not set.
pub(crate) fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for (name, text) in variables {
        let Ok(name) = name.into_string() else { continue };
        let Some(key) = name.strip_prefix(PREFIX).map(str::to_lowercase) else { continue };
        let origin = Origin { source: Source::Environment, name };
        let property = key.strip_prefix("kafka_").map(|property| property.replace('_', "."));
        let setting = setting(&key).filter(|setting| setting.shape != Shape::Properties);
        if text.is_empty() || (property.is_none() && setting.is_none()) {
            continue;
        }
        let text = text.into_string().map_err(|_| origin.wrong("it is not UTF-8"))?;
        if let Some(property) = property {
            layer.insert(format!("{PROPERTY}{property}"), Value::one(text, origin));
        } else if let Some(setting) = setting {
            layer.insert(key, value(setting, [text], origin));
        }
    }
    Ok(layer)
}

/// What the file says.
pub(crate) fn file(path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { file: path.display().to_string(), source })?;
    toml(&path.display().to_string(), &text)
}

fn toml(file: &str, text: &str) -> Result<Layer, ConfigError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error itself would print the line, and that may hold a secret.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        ConfigError::Syntax {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            problem: error.message().to_owned(),
        }
    })?;
    let mut layer = Layer::new();
    for (key, content) in table {
        let setting = setting(&key)
            .ok_or_else(|| ConfigError::UnknownKey { file: file.to_owned(), key: key.clone() })?;
        let origin = |name: &str| Origin { source: Source::File, name: format!("`{name}` in {file}") };
        match (setting.shape, content) {
            (Shape::Properties, toml::Value::Table(properties)) => {
                for (name, content) in flattened(properties) {
                    let key = format!("{PROPERTY}{name}");
                    let origin = origin(&key);
                    let text = scalar(content).ok_or_else(|| origin.wrong("write a text or a number"))?;
                    layer.insert(key, Value::one(text, origin));
                }
            }
            (Shape::Properties, _) => {
                return Err(origin(&key).wrong("write a table: [kafka], then lines like \"linger.ms\" = 5"));
            }
            (Shape::List, toml::Value::Array(items)) => {
                let texts: Option<Vec<String>> = items.into_iter().map(scalar).collect();
                let texts = texts.ok_or_else(|| origin(&key).wrong("write an array of texts"))?;
                let value = value(setting, texts, origin(&key));
                layer.insert(key, value);
            }
            (_, content) => {
                let text = scalar(content).ok_or_else(|| origin(&key).wrong("write a text or a number"))?;
                let value = value(setting, [text], origin(&key));
                layer.insert(key, value);
            }
        }
    }
    Ok(layer)
}

/// TOML reads `linger.ms = 5` as a table `linger`; its name is `linger.ms` all the same.
fn flattened(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut flat = Vec::new();
    for (name, content) in table {
        match content {
            toml::Value::Table(inner) => {
                flat.extend(
                    flattened(inner).into_iter().map(|(rest, value)| (format!("{name}.{rest}"), value)),
                );
            }
            content => flat.push((name, content)),
        }
    }
    flat
}

fn scalar(content: toml::Value) -> Option<String> {
    match content {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        _ => None,
    }
}

fn value(setting: &Setting, texts: impl IntoIterator<Item = String>, origin: Origin) -> Value {
    let texts = texts.into_iter();
    let texts = if setting.shape == Shape::List {
        texts
            .flat_map(|text| text.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>())
            .filter(|text| !text.is_empty())
            .collect()
    } else {
        texts.collect()
    };
    Value { texts, origin }
}
