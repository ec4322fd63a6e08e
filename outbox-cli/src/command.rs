//! The commands, from the arguments to the exit code.

mod args;
mod config;
mod database;
#[cfg(feature = "postgres")]
mod debezium;
mod failure;
mod layers;
mod log;
mod migrate;
mod output;
mod relay;
mod report;
mod settings;
mod value;
mod wal;

use std::process::ExitCode;

use self::args::Action;
use self::config::Config;
use self::failure::Failure;

/// Runs what the arguments of the process ask for.
pub(crate) fn run() -> ExitCode {
    let invocation = match args::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Nobody is left to tell where even this cannot be printed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = Config::load(&invocation.flags, std::env::vars_os())
        .map_err(Failure::from)
        .and_then(|config| perform(&invocation.action, &config));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::tell(&failure::in_one_line(&failure));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn perform(action: &Action, config: &Config) -> Result<(), Failure> {
    log::start(config.log_format()?);
    match action {
        Action::Migrate => migrate::run(config),
        Action::Relay => relay::run(config),
        Action::Lag { json } => report::lag(config, *json),
        Action::DeadLetters { json, limit } => report::dead_letters(config, *json, *limit),
        Action::Requeue(which) => report::requeue(config, which),
        Action::WalSetup => wal::setup(config),
        Action::WalDrop => wal::drop(config),
        #[cfg(feature = "postgres")]
        Action::Debezium(what) => debezium::run(config, what),
    }
}
