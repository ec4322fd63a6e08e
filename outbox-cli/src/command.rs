//! The commands, from the arguments to the exit code.

mod args;
mod database;
mod dead_letters;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod debezium;
mod doctor;
mod explain;
mod failure;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod invocation;
mod layers;
mod log;
mod migrate;
mod moment;
mod origin;
mod outboxes;
mod output;
#[cfg(all(test, feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod properties;
mod prune;
mod relay;
mod replay;
mod report;
mod scheduled;
mod settings;
mod shell;
mod signals;
mod status;
#[cfg(feature = "opentelemetry")]
mod traces;
mod verify;
mod wal;

use std::process::ExitCode;

use self::args::{Action, DeadLetterAction};
use self::failure::Failure;
use self::invocation::{Invocation, InvocationError};

/// Runs what the arguments of the process ask for.
pub(crate) fn run() -> ExitCode {
    let invocation = match Invocation::read(std::env::args_os(), std::env::vars_os()) {
        Ok(invocation) => invocation,
        Err(InvocationError::CommandLine(error)) => {
            // If even this cannot be printed, nobody is left to read why.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(InvocationError::Setting(error)) => return failed(&error.into()),
    };
    match perform(&invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    output::say(&failure::in_one_line(failure));
    ExitCode::from(failure.exit_code())
}

fn perform(Invocation { action, origins }: &Invocation) -> Result<(), Failure> {
    log::start(action.common().log_format);
    match action {
        Action::Migrate { inbox_only, roles, common } => migrate::run(common, origins, *inbox_only, roles),
        Action::Relay(settings) => relay::run(settings, origins),
        Action::Lag { json, by: None, common, .. } => report::lag(common, origins, *json),
        Action::Lag { json, by: Some(by), common, topics } => {
            report::lag_by(common, origins, *by, &topics.topic, *json)
        }
        Action::Status { watch, json, common } => status::run(common, origins, *watch, *json),
        Action::DeadLetters { action: Some(DeadLetterAction::Drop { which, common }), .. } => {
            dead_letters::drop(common, origins, which)
        }
        Action::DeadLetters { action: None, listing, common } => dead_letters::list(common, origins, listing),
        Action::Requeue { which, common } => dead_letters::requeue(common, origins, which),
        Action::Prune(settings) => prune::run(settings, origins),
        Action::Replay(settings) => replay::run(settings, origins),
        Action::Verify(settings) => verify::run(settings, origins),
        Action::Explain(settings) => explain::run(settings, origins),
        Action::Doctor { json, settings } => doctor::run(settings, origins, *json),
        Action::Completions { shell, .. } => shell::completions(*shell),
        Action::Man { folder, .. } => shell::man(folder),
        Action::Scheduled { promote, json, common } => scheduled::run(common, origins, *promote, *json),
        Action::Wal(action) => wal::run(action, origins),
        #[cfg(any(feature = "mysql", feature = "postgres"))]
        Action::Debezium(action) => debezium::run(action, origins),
    }
}
