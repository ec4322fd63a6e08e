//! What `outbox debezium check` has found.

use crate::command::failure::Failure;
use crate::command::output::print;

/// One thing that was checked.
#[derive(Debug)]
pub(super) struct Finding {
    verdict: Verdict,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// Debezium can run, but something is not as it should be.
    Warn,
    /// Debezium cannot do its work.
    Fail,
}

pub(super) fn finding(verdict: Verdict, text: impl Into<String>) -> Finding {
    Finding { verdict, text: text.into() }
}

/// Prints a line for each. Fails if Debezium cannot do its work.
pub(super) fn report(findings: &[Finding]) -> Result<(), Failure> {
    let lines: String = findings.iter().map(Finding::line).collect();
    print(&lines)?;
    match findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        failed => Err(Failure::DebeziumCheck { failed }),
    }
}

impl Finding {
    fn line(&self) -> String {
        let mark = match self.verdict {
            Verdict::Passed => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        format!("{mark} {}\n", self.text)
    }
}
