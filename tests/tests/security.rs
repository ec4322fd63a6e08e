//! What roles may do, and what strangers cannot: other roles' functions and policies, whoever poses as a server, and whoever reads the log.

#[path = "security/denials.rs"]
mod denials;
#[path = "security/grants.rs"]
mod grants;
#[path = "security/names.rs"]
mod names;
#[path = "security/roles.rs"]
mod roles;
#[path = "security/row_security.rs"]
mod row_security;
#[path = "security/secrets.rs"]
mod secrets;
#[path = "security/tls.rs"]
mod tls;

use std::process::Command;
use std::time::Duration;

use outbox_tests::workspace_binary;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the binary, and returns whether it succeeded and what it printed.
fn outbox(url: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(workspace_binary("outbox"));
    let output = command.args(arguments).env("OUTBOX_DATABASE_URL", url).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// The same for a command that must succeed.
#[track_caller]
fn done(url: &str, arguments: &[&str]) -> String {
    let (done, text) = outbox(url, arguments);
    assert!(done, "{arguments:?}: {text}");
    text
}

/// The arguments of `outbox migrate --roles` for roles whose names begin like this.
fn role_arguments(prefix: &str) -> Vec<String> {
    let name = |role: &str| [format!("--{role}-role"), format!("{prefix}{role}")];
    let roles = ["emitter", "relay", "consumer", "migrator"].map(name).concat();
    [vec!["migrate".to_owned(), "--roles".to_owned()], roles].concat()
}
