//! What reads what users write, for the fuzz targets.

use std::ffi::OsString;

use super::database::OutboxDatabase;
use super::invocation::{Invocation, InvocationError};
use super::layers;

/// Reads the text of a file.
pub(crate) fn configuration(text: &str) {
    let _ = layers::from_text(text, "outbox.toml", &layers::Variables::new());
    let url = [("OUTBOX_DATABASE_URL".into(), "postgres://db/shop".into())];
    let _ = layers::from_text(text, "outbox.toml", &url.into());
}

/// Reads arguments and variables, one a line.
pub(crate) fn arguments(text: &str) {
    let (mut arguments, mut variables) = (vec!["outbox".to_owned()], Vec::new());
    for line in text.split('\n') {
        match line.split_once('=') {
            // A file could be any file of this machine.
            Some(("OUTBOX_CONFIG", _)) => {}
            Some((name, value)) if name.starts_with("OUTBOX_") => {
                variables.push((OsString::from(name), OsString::from(value)));
            }
            _ if line.starts_with("--c") => {}
            _ => arguments.push(line.to_owned()),
        }
    }
    match Invocation::read(arguments, variables.into_iter()) {
        Ok(Invocation { action, origins }) => {
            let _ = OutboxDatabase::chosen(&action.common().database, &origins);
        }
        Err(InvocationError::CommandLine(error)) => _ = error.to_string(),
        Err(InvocationError::Setting(error)) => _ = error.to_string(),
    }
}

/// Reads a URL.
pub(crate) fn database_url(text: &str) {
    const SECRET: &str = "S3CRET";
    // It is the password, whatever comes before and after it.
    let url = text.replacen("://", &format!("://ann:{SECRET}"), 1);
    let variables = [("OUTBOX_DATABASE_URL".into(), OsString::from(&url))];
    let read = Invocation::read(["outbox", "lag"], variables.into_iter());
    let problem = match read {
        Ok(Invocation { action, origins }) => {
            OutboxDatabase::chosen(&action.common().database, &origins).err().map(|error| error.to_string())
        }
        Err(InvocationError::CommandLine(error)) => Some(error.to_string()),
        Err(InvocationError::Setting(error)) => Some(error.to_string()),
    };
    let is_server = ["postgres://", "postgresql://", "mysql://", "mariadb://"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    assert!(!is_server || problem.is_none_or(|problem| !problem.contains(SECRET)), "{url}");
}
