//! What the settings are, whoever set them: the command line before the environment before the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::ArgMatches;

use super::layers::{self, Layer, PROPERTY};
use super::log::LogFormat;
use super::settings::{PREFIX, setting};
use super::value::{ConfigError, Origin, Source, Value};

/// The settings that were given. It has no `Debug`, as some of them are secrets.
pub(crate) struct Config {
    values: Layer,
}

/// About 100 years: enough for everybody, and clocks can be moved by it.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

impl Config {
    /// Reads all sources.
    pub(crate) fn load(
        flags: &ArgMatches,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let variables: BTreeMap<OsString, OsString> = variables.collect();
        let variable = |name: &str| variables.get(&OsString::from(name)).filter(|text| !text.is_empty());
        let mut values = Layer::new();
        if let Some(url) = variable("DATABASE_URL") {
            let origin = Origin { source: Source::Environment, name: "DATABASE_URL".into() };
            let url = url.to_str().ok_or_else(|| origin.wrong("it is not UTF-8"))?.to_owned();
            values.insert("database_url".into(), Value::one(url, origin));
        }
        let file = flags.get_one::<OsString>("config").or(variable(&format!("{PREFIX}CONFIG")));
        if let Some(file) = file {
            values.extend(layers::file(Path::new(file))?);
        }
        values.extend(layers::environment(variables.into_iter())?);
        values.extend(layers::flags(flags)?);
        Ok(Self { values })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).map(Value::text)
    }

    pub(crate) fn list(&self, key: &str) -> &[String] {
        self.get(key).map_or(&[], |value| &value.texts)
    }

    /// As the user would write it, also where it was not given.
    pub(crate) fn shown(&self, key: &str) -> &str {
        self.text(key).or(setting(key).map(|setting| setting.default)).unwrap_or_default()
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.parsed(key, |text| text.parse().map_err(|_| "it must be a whole number".into()))
    }

    pub(crate) fn switch(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.parsed(key, |text| match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("it must be true or false".into()),
        })
    }

    pub(crate) fn duration(&self, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.parsed(key, |text| match humantime::parse_duration(text) {
            Ok(time) if time.is_zero() => Err("it must be longer than nothing".into()),
            Ok(time) if time > LONGEST => Err("it must be shorter than 100 years".into()),
            Ok(time) => Ok(time),
            Err(error) => Err(format!("it must be a time with a unit, such as 500ms, 15s or 7d ({error})")),
        })
    }

    /// Reads a value that is no secret: the error repeats it.
    pub(crate) fn parsed<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = |problem| value.origin.wrong(format!("`{}` is wrong: {problem}", value.text()));
        parse(value.text()).map(Some).map_err(wrong)
    }

    /// Kafka's properties by name.
    pub(crate) fn properties(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().filter_map(|(key, value)| Some((key.strip_prefix(PROPERTY)?, value)))
    }

    pub(crate) fn log_format(&self) -> Result<LogFormat, ConfigError> {
        let format = self.parsed("log_format", |text| match text {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err("it must be human or json".into()),
        })?;
        Ok(format.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
