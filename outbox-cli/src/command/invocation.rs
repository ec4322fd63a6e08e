//! What a user asked for, from all layers: the command line covers the environment, which covers the file.
//!
//! The arguments are read twice. From the first reading come the file's name and what the flags set. What only the file or
//! a variable sets is then put before the flags, as if it had been written there, so that every value is read by the same
//! rules. An error names the place where the user wrote the value.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use super::args::{Action, CommandLine};
use super::layers::{self, Values, property_key};
use super::origin::{ConfigError, Layer, Origin, Origins};
use super::settings::{self, PROPERTIES, Property};

/// What a user asked for.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) action: Action,
    pub(crate) origins: Origins,
}

/// Why nothing can be done.
#[derive(Debug)]
pub(crate) enum InvocationError {
    /// The command line is wrong, or asks for the help.
    CommandLine(clap::Error),
    Setting(ConfigError),
}

impl From<ConfigError> for InvocationError {
    fn from(error: ConfigError) -> Self {
        Self::Setting(error)
    }
}

impl Invocation {
    /// Reads the arguments and the variables of a process, and the file that one of them names.
    pub(crate) fn read(
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, InvocationError> {
        let mut arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let command = command();
        let flags = command
            .clone()
            .try_get_matches_from(&arguments)
            .map_err(|error| invocation_error(error, None))?;
        let (depth, operation, flags) = operation(&command, &flags);
        let file = flags.get_one::<PathBuf>("config");
        let (values, databases) = layers::read(file.map(PathBuf::as_path), variables)?;
        let (added, origins) = layered(operation, flags, &values);
        // The names of the commands come first: no flag goes before them.
        let place = (1 + depth).min(arguments.len());
        arguments.splice(place..place, added);
        let matches = command
            .try_get_matches_from(arguments)
            .map_err(|error| invocation_error(error, Some(&origins)))?;
        let CommandLine { mut action } = CommandLine::from_arg_matches(&matches)
            .map_err(|error| invocation_error(error, Some(&origins)))?;
        action.common_mut().database.databases = databases;
        Ok(Self { action, origins })
    }
}

/// The command line, whose help names the variables.
pub(super) fn command() -> Command {
    let mut keys: Vec<_> = settings::all().iter().map(|setting| setting.get_id().clone()).collect();
    keys.push("config".into());
    with_variables(CommandLine::command(), &keys)
}

fn with_variables(command: Command, keys: &[clap::Id]) -> Command {
    command
        .mut_args(|argument| {
            if !keys.contains(argument.get_id()) {
                return argument;
            }
            let key = argument.get_id().as_str();
            let name = if key == PROPERTIES { "_<NAME>" } else { "" };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let help = format!("{help} [env: {}{name}]", settings::variable(key));
            argument.help(help)
        })
        .mut_subcommands(|command| with_variables(command, keys))
}

/// The innermost command that was given, how many names it took, and its flags.
fn operation<'a>(command: &'a Command, flags: &'a ArgMatches) -> (usize, &'a Command, &'a ArgMatches) {
    let inner = flags.subcommand().and_then(|(name, flags)| Some((command.find_subcommand(name)?, flags)));
    match inner {
        Some((command, flags)) => {
            let (depth, command, flags) = operation(command, flags);
            (depth + 1, command, flags)
        }
        None => (0, command, flags),
    }
}

/// What the layers below the command line set, as arguments, and where everything was set.
fn layered(operation: &Command, flags: &ArgMatches, values: &Values) -> (Vec<OsString>, Origins) {
    let mut origins = Origins::default();
    for (key, given) in values {
        origins.insert(key, given.origin.clone());
    }
    let mut arguments = Vec::new();
    for argument in operation.get_arguments() {
        let key = argument.get_id().as_str();
        if key == PROPERTIES {
            // Each is a setting of its own. Of those with the same name the last one counts.
            let properties =
                values.iter().filter_map(|(key, given)| Some((key.strip_prefix("kafka.")?, given)));
            arguments.extend(
                properties.map(|(name, given)| format!("--{PROPERTIES}={name}={}", given.text).into()),
            );
            for Property { name, .. } in flags.get_many(key).into_iter().flatten() {
                origins.insert(&property_key(name), on_command_line(format!("--{PROPERTIES} {name}")));
            }
        } else if flags.value_source(key) == Some(ValueSource::CommandLine) {
            origins.insert(key, on_command_line(settings::flag(key)));
        } else if let Some(given) = values.get(key) {
            arguments.push(format!("{}={}", settings::flag(key), given.text).into());
        }
    }
    (arguments, origins)
}

fn on_command_line(name: String) -> Origin {
    Origin { layer: Layer::CommandLine, name }
}

/// The error in our words, if it is about the value of a setting; else in clap's. Without origins, all values are the command
/// line's.
fn invocation_error(error: clap::Error, origins: Option<&Origins>) -> InvocationError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let key: String = context(ContextKind::InvalidArg)
        .and_then(|argument| argument.strip_prefix("--"))
        .map(|argument| argument.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect())
        .unwrap_or_default();
    let key = key.replace('-', "_");
    let problem = match (error.kind(), error.get(ContextKind::ValidValue)) {
        (ErrorKind::ValueValidation, _) => std::error::Error::source(&error).map(ToString::to_string),
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(values))) if !values.is_empty() => {
            Some(format!("it must be {}", values.join(" or ")))
        }
        _ => None,
    };
    let value = context(ContextKind::InvalidValue).filter(|value| !value.is_empty());
    let (Some(problem), Some(value)) = (problem, value) else {
        return InvocationError::CommandLine(without_secrets(error));
    };
    if !settings::all().iter().any(|setting| setting.get_id() == key.as_str()) {
        return InvocationError::CommandLine(without_secrets(error));
    }
    let origin = origins.and_then(|origins| origins.given(&key)).cloned();
    let origin = origin.unwrap_or_else(|| on_command_line(settings::flag(&key)));
    // The value may be a secret.
    if key == PROPERTIES {
        return origin.wrong(problem).into();
    }
    origin.wrong(format!("`{value}` is wrong: {problem}")).into()
}

/// An argument in the wrong place may hold a password.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(text)) = error.get(kind) {
            let end = ["://", "="].iter().filter_map(|mark| text.find(mark)).min();
            if let Some(shown) = end.and_then(|end| text.get(..end)) {
                let shown = ContextValue::String(format!("{shown}.."));
                error.insert(kind, shown);
            }
        }
    }
    error
}

/// The settings of a relay that is given these flags and variables.
#[cfg(test)]
pub(crate) fn given(
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> (Box<settings::RelaySettings>, Origins) {
    let variables = variables.iter().map(|(name, text)| (name.into(), text.into()));
    match Invocation::read(["outbox", "relay"].iter().chain(arguments), variables) {
        Ok(Invocation { action: Action::Relay(settings), origins }) => (settings, origins),
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests;
