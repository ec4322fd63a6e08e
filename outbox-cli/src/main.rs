//! The binary `outbox`: it runs the relay as a process, and does the operations around it.

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod command;

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
fn main() -> std::process::ExitCode {
    command::run()
}

#[cfg(not(any(feature = "mysql", feature = "postgres", feature = "sqlite")))]
fn main() -> std::process::ExitCode {
    eprintln!("outbox: built without a database: build it with the feature `postgres`, `mysql` or `sqlite`");
    std::process::ExitCode::FAILURE
}
