//! What `outbox debezium check` has found.

use diesel_outbox_relay::operate::Verdict;

use crate::command::doctor::mark;
use crate::command::failure::Failure;
use crate::command::output::print;

/// One thing that was checked.
#[derive(Debug)]
pub(super) struct Finding {
    verdict: Verdict,
    text: String,
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
        format!("{} {}\n", mark(self.verdict), self.text)
    }
}
