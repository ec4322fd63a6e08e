//! `outbox completions` and `outbox man`

use std::path::Path;

use clap_complete::Shell;

use super::failure::Failure;
use super::invocation::command;
use super::output::print;

/// Prints what a shell needs to complete commands and flags.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "outbox", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes a page for each command into this folder.
pub(crate) fn man(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(Failure::Output)?;
    clap_mangen::generate_to(command(), folder).map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_for_each_shell_knows_the_commands_and_the_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "outbox", &mut script);
            let script = String::from_utf8(script).expect("UTF-8");
            for word in ["doctor", "dead-letters", "ready-timeout"] {
                assert!(script.contains(word), "{word} is not in the script for {shell}");
            }
        }
    }
}
