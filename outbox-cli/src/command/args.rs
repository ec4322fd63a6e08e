//! The command line.

use std::ffi::OsString;

use clap::builder::NonEmptyStringValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use diesel_outbox_relay::operate::Requeue;
use uuid::Uuid;

#[cfg(feature = "postgres")]
use super::debezium::{Debezium, Format};
use super::settings::{SETTINGS, Scope, Setting, Shape};

/// What is to be done, and the flags that say how.
pub(crate) struct Invocation {
    pub(crate) action: Action,
    pub(crate) flags: ArgMatches,
}

/// What is to be done.
pub(crate) enum Action {
    Migrate,
    Relay,
    Lag {
        json: bool,
    },
    DeadLetters {
        json: bool,
        limit: i64,
    },
    Requeue(Requeue),
    WalSetup,
    WalDrop,
    #[cfg(feature = "postgres")]
    Debezium(Debezium),
}

/// Reads the arguments.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Invocation, clap::Error> {
    let mut matches = command().try_get_matches_from(arguments).map_err(without_secrets)?;
    let (name, mut flags) = matches.remove_subcommand().unwrap_or_default();
    let (name, flags) = match flags.remove_subcommand() {
        Some((inner, flags)) => (format!("{name} {inner}"), flags),
        None => (name, flags),
    };
    let json = || flags.get_flag("json");
    let action = match name.as_str() {
        "migrate" => Action::Migrate,
        "relay" => Action::Relay,
        "lag" => Action::Lag { json: json() },
        "dead-letters" => {
            Action::DeadLetters { json: json(), limit: flags.get_one("limit").copied().unwrap_or(i64::MAX) }
        }
        "wal setup" => Action::WalSetup,
        "wal drop" => Action::WalDrop,
        #[cfg(feature = "postgres")]
        "debezium connector" => Action::Debezium(connector(&flags)),
        #[cfg(feature = "postgres")]
        "debezium sql" => Action::Debezium(Debezium::Sql),
        #[cfg(feature = "postgres")]
        "debezium check" => Action::Debezium(Debezium::Check),
        _ => Action::Requeue(requeue(&flags)),
    };
    Ok(Invocation { action, flags })
}

/// The whole command line, from which the help is made.
pub(crate) fn command() -> Command {
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("Prints JSON");
    let command = Command::new("outbox")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Brings the events of a transactional outbox to Kafka")
        .after_help(
            "A setting is taken from the command line, else from the environment, else from the file of --config.\n\
             Exit codes: 0 done, 1 failed, 2 used wrongly.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(operation("migrate", "Creates the tables, or brings them up to date", Scope::Every))
        .subcommand(operation("relay", "Brings events to Kafka until it is told to stop", Scope::Relay))
        .subcommand(
            operation("lag", "Tells how many events wait to be sent, and for how long", Scope::Every)
                .arg(json()),
        )
        .subcommand(
            operation("dead-letters", "Lists the events that Kafka will never take, and why", Scope::Every)
                .arg(json())
                .arg(
                    Arg::new("limit")
                        .long("limit")
                        .value_name("NUMBER")
                        .value_parser(value_parser!(i64).range(1..))
                        .default_value("100")
                        .help("The most to list"),
                ),
        )
        .subcommand(
            Command::new("wal")
                .about("Prepares PostgreSQL for a relay that reads its write-ahead log")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(operation(
                    "setup",
                    "Makes the publication and the replication slot: later events are read from the log",
                    Scope::Wal,
                ))
                .subcommand(operation(
                    "drop",
                    "Drops them again, when the relays have been stopped: all events are polled",
                    Scope::Wal,
                )),
        )
        .subcommand(
            operation("requeue", "Sends dead letters again, at their old place in the order", Scope::Every)
                .arg(Arg::new("all").long("all").action(ArgAction::SetTrue).help("All of them"))
                .arg(
                    Arg::new("id")
                        .long("id")
                        .value_name("UUID")
                        .value_parser(value_parser!(Uuid))
                        .help("The event with this id"),
                )
                .arg(
                    Arg::new("aggregate")
                        .long("aggregate")
                        .num_args(2)
                        .allow_hyphen_values(true)
                        .value_names(["TYPE", "ID"])
                        .value_parser(NonEmptyStringValueParser::new())
                        .help("All events of this aggregate"),
                )
                .group(ArgGroup::new("which").args(["all", "id", "aggregate"]).required(true)),
        );
    #[cfg(feature = "postgres")]
    let command = command.subcommand(debezium());
    command
}

#[cfg(feature = "postgres")]
fn debezium() -> Command {
    Command::new("debezium")
        .about("Prepares Debezium for relaying the outbox instead (PostgreSQL)")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            operation(
                "connector",
                "Prints the connector's configuration, without the database's password",
                Scope::Topic,
            )
            .arg(
                Arg::new("name")
                    .long("name")
                    .value_name("NAME")
                    .value_parser(connector_name)
                    .default_value("outbox")
                    .help(
                        "The connector's name, and the topic.prefix that its offsets and its heartbeats have",
                    ),
            )
            .arg(
                Arg::new("format")
                    .long("format")
                    .value_name("FORMAT")
                    .value_parser(["json", "properties"])
                    .default_value("json")
                    .help("json, to be posted to Connect, or properties, for a standalone worker"),
            ),
        )
        .subcommand(operation("sql", "Prints the SQL that an administrator runs first", Scope::Wal))
        .subcommand(operation(
            "check",
            "Tells what is wrong before Debezium starts, and what to do",
            Scope::Wal,
        ))
}

#[cfg(feature = "postgres")]
fn connector(flags: &ArgMatches) -> Debezium {
    let text = |name| flags.get_one::<String>(name).cloned().unwrap_or_default();
    let format = if text("format") == "properties" { Format::Properties } else { Format::Json };
    Debezium::Connector { name: text("name"), format }
}

/// Topics are named after it.
#[cfg(feature = "postgres")]
fn connector_name(name: &str) -> Result<String, &'static str> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.chars().all(is_good) {
        Ok(name.to_owned())
    } else {
        Err("use letters, digits, `.`, `_` and `-`")
    }
}

fn operation(name: &'static str, about: &'static str, scope: Scope) -> Command {
    Command::new(name)
        .about(about)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(value_parser!(OsString))
                .help("A TOML file with settings [env: OUTBOX_CONFIG]"),
        )
        .args(SETTINGS.iter().filter(|setting| setting.scope <= scope).map(argument))
}

fn argument(setting: &'static Setting) -> Arg {
    let variable = match setting.shape {
        Shape::Properties => format!("{}_<NAME>", setting.variable()),
        _ => setting.variable(),
    };
    let default = match setting.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let argument = Arg::new(setting.key)
        .long(setting.flag().trim_start_matches('-').to_owned())
        .value_name(setting.value)
        .help(format!("{} [env: {variable}]{default}", setting.help));
    match setting.shape {
        Shape::One => argument,
        Shape::List | Shape::Properties => argument.action(ArgAction::Append),
        Shape::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
    }
}

fn requeue(flags: &ArgMatches) -> Requeue {
    let aggregate: Vec<&String> = flags.get_many("aggregate").into_iter().flatten().collect();
    match (flags.get_one::<Uuid>("id"), aggregate.as_slice()) {
        (Some(id), _) => Requeue::Id(*id),
        (None, [aggregate_type, aggregate_id]) => Requeue::Aggregate {
            aggregate_type: (*aggregate_type).clone(),
            aggregate_id: (*aggregate_id).clone(),
        },
        _ => Requeue::All,
    }
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

#[cfg(test)]
mod tests;
