//! What the file and the environment set. The command line covers both.

mod database_tables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::Arg;

use super::origin::{ConfigError, Layer, Origin};
use super::settings::{self, DatabaseTable, PREFIX, PROPERTIES};

/// A value as it was written, and where.
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// The variables of the process that have a text.
pub(super) type Variables = BTreeMap<OsString, OsString>;

/// Values by key. The key of a property of Kafka is `kafka.` and its name.
pub(super) type Values = BTreeMap<String, Given>;

/// The key of the property with this name.
pub(super) fn property_key(name: &str) -> String {
    format!("{PROPERTIES}.{name}")
}

/// What the file and the variables set: the variables cover the file. A variable that is empty counts as not set. Also returns the
/// databases of the file, if it has several.
pub(super) fn read(
    file: Option<&Path>,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Values, Vec<DatabaseTable>), ConfigError> {
    let variables: Variables = variables.filter(|(_, text)| !text.is_empty()).collect();
    let mut values = Values::new();
    // A variable that other programs use, too, is the last resort.
    if let Some(url) = variables.get(&OsString::from("DATABASE_URL")) {
        values.insert("database_url".into(), from_variable("DATABASE_URL", url.clone())?);
    }
    let named = variables.get(&OsString::from(settings::variable("config"))).map(Path::new);
    let mut databases = Vec::new();
    if let Some(file) = file.or(named) {
        let in_file;
        (in_file, databases) = from_file(file, &variables)?;
        values.extend(in_file);
    }
    if !databases.is_empty() {
        // The last resort.
        values.retain(|_, given| given.origin.name != "DATABASE_URL");
    }
    values.extend(from_environment(variables)?);
    Ok((values, databases))
}

fn from_environment(variables: Variables) -> Result<Values, ConfigError> {
    let settings = settings::all();
    let mut values = Values::new();
    for (name, text) in variables {
        let Ok(name) = name.into_string() else { continue };
        let Some(key) = name.strip_prefix(PREFIX).map(str::to_lowercase) else { continue };
        if let Some(property) = key.strip_prefix("kafka_") {
            values.insert(property_key(&property.replace('_', ".")), from_variable(&name, text)?);
        } else if key != PROPERTIES && settings.iter().any(|setting| setting.get_id() == key.as_str()) {
            values.insert(key, from_variable(&name, text)?);
        }
    }
    Ok(values)
}

fn from_variable(name: &str, text: OsString) -> Result<Given, ConfigError> {
    let origin = Origin { layer: Layer::Environment, name: name.to_owned() };
    match text.into_string() {
        Ok(text) => Ok(Given { text, origin }),
        Err(_) => Err(origin.wrong("it is not UTF-8")),
    }
}

fn from_file(path: &Path, variables: &Variables) -> Result<(Values, Vec<DatabaseTable>), ConfigError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => from_text(&text, &file, variables),
        Err(source) => Err(ConfigError::Unreadable { file, source }),
    }
}

/// What the text of this file sets.
pub(super) fn from_text(
    text: &str,
    file: &str,
    variables: &Variables,
) -> Result<(Values, Vec<DatabaseTable>), ConfigError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error itself would print the line, and that may hold a secret.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        ConfigError::Syntax {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            problem: error.message().to_owned(),
        }
    })?;
    let settings = settings::all();
    let (mut values, mut databases) = (Values::new(), Vec::new());
    for (key, content) in table {
        let origin = |key: &str| Origin { layer: Layer::File, name: format!("`{key}` in {file}") };
        if key == database_tables::KEY {
            databases = database_tables::read(content, file, variables)?;
            continue;
        }
        let Some(setting) = settings.iter().find(|setting| setting.get_id() == key.as_str()) else {
            return Err(ConfigError::UnknownKey { file: file.to_owned(), key });
        };
        if key != PROPERTIES {
            let origin = origin(&key);
            let text = text_of(setting, content).map_err(|problem| origin.wrong(problem))?;
            values.insert(key, Given { text, origin });
            continue;
        }
        let toml::Value::Table(properties) = content else {
            return Err(origin(&key).wrong("write a table: [kafka], then lines like linger.ms = 5"));
        };
        for (name, content) in flattened(properties) {
            let key = property_key(&name);
            let origin = origin(&key);
            let text = scalar(content).ok_or_else(|| origin.wrong("write a text or a number"))?;
            values.insert(key, Given { text, origin });
        }
    }
    match values.get("database_url") {
        Some(given) if !databases.is_empty() => Err(ConfigError::Conflict {
            origin: given.origin.clone(),
            other: Origin { layer: Layer::File, name: format!("`[[database]]` in {file}") },
        }),
        _ => Ok((values, databases)),
    }
}

/// The value as the command line would have it.
fn text_of(setting: &Arg, content: toml::Value) -> Result<String, &'static str> {
    match (setting.get_value_delimiter(), content) {
        (Some(_), toml::Value::Array(items)) => {
            let items: Option<Vec<String>> = items.into_iter().map(scalar).collect();
            Ok(items.ok_or("write an array of texts")?.join(","))
        }
        (_, content) => scalar(content).ok_or("write a text or a number"),
    }
}

/// TOML reads `linger.ms = 5` as a table `linger`. The property's name is `linger.ms` all the same.
fn flattened(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut flat = Vec::new();
    for (name, content) in table {
        match content {
            toml::Value::Table(inner) => {
                let inner = flattened(inner).into_iter();
                flat.extend(inner.map(|(rest, value)| (format!("{name}.{rest}"), value)));
            }
            content => flat.push((name, content)),
        }
    }
    flat
}

pub(super) fn scalar(content: toml::Value) -> Option<String> {
    match content {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        _ => None,
    }
}
