//! Several databases in the file: `[[database]]`, once for each.

use std::ffi::OsStr;

use super::{Variables, scalar};
use crate::command::origin::{ConfigError, Layer, Origin};
use crate::command::settings::{DatabaseTable, Secret};

pub(super) const KEY: &str = "database";

pub(super) fn read(
    content: toml::Value,
    file: &str,
    variables: &Variables,
) -> Result<Vec<DatabaseTable>, ConfigError> {
    const FORM: &str = "write [[database]], and below it url = .. or url_env = .., and schema = ..";
    let origin = Origin { layer: Layer::File, name: format!("`{KEY}` in {file}") };
    let toml::Value::Array(tables) = content else { return Err(origin.wrong(FORM)) };
    let table = |(number, table)| match table {
        toml::Value::Table(table) => database(table, file, number + 1, variables),
        _ => Err(origin.wrong(FORM)),
    };
    tables.into_iter().enumerate().map(table).collect()
}

fn database(
    table: toml::Table,
    file: &str,
    number: usize,
    variables: &Variables,
) -> Result<DatabaseTable, ConfigError> {
    let origin = |key: &str| Origin {
        layer: Layer::File,
        name: format!("`{key}` of the `[[{KEY}]]` number {number} in {file}"),
    };
    let (mut url, mut schema) = (None, None);
    for (key, content) in table {
        let origin = origin(&key);
        let given = match key.as_str() {
            "url" => scalar(content).ok_or_else(|| origin.wrong("write a text"))?,
            "url_env" => variable(content, &origin, variables)?,
            "schema" => {
                schema = Some((schemas(content).map_err(|problem| origin.wrong(problem))?, origin));
                continue;
            }
            _ => {
                return Err(
                    origin.wrong("it is not a setting of a database: those are url, url_env and schema")
                );
            }
        };
        if let Some((_, other)) = url.replace((given, origin.clone())) {
            return Err(ConfigError::Conflict { origin, other });
        }
    }
    let (url, url_origin) = url.ok_or_else(|| {
        origin("url").wrong("it is missing: write the URL, or in url_env the variable that has it")
    })?;
    Ok(DatabaseTable { url: Secret::from(url), origin: url_origin, schema })
}

/// The text of the variable that is named here.
fn variable(content: toml::Value, origin: &Origin, variables: &Variables) -> Result<String, ConfigError> {
    let name = scalar(content).ok_or_else(|| origin.wrong("write the name of a variable"))?;
    match variables.get(OsStr::new(&name)).map(|text| text.clone().into_string()) {
        Some(Ok(text)) => Ok(text),
        Some(Err(_)) => Err(origin.wrong(format!("the variable {name} is not UTF-8"))),
        None => Err(origin.wrong(format!("the variable {name} is not set"))),
    }
}

fn schemas(content: toml::Value) -> Result<Vec<String>, &'static str> {
    let schemas: Vec<String> = match content {
        toml::Value::Array(items) => {
            items.into_iter().map(scalar).collect::<Option<_>>().ok_or("write an array of texts")?
        }
        content => scalar(content).ok_or("write a text")?.split(',').map(str::to_owned).collect(),
    };
    Ok(schemas.iter().map(|schema| schema.trim().to_owned()).collect())
}
