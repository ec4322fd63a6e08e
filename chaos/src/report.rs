//! The table of docs/faults.md, from what runs measured.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::faults;
use crate::lanes::Source;
use crate::run::Outcome;

const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->";

/// Returns the page with these outcomes in its table, each of a run with one fault. Rows of what was not measured now stay as they are.
///
/// # Panics
/// If the page has no place for the table.
pub fn write(page: &str, outcomes: &[Outcome]) -> String {
    let mut measured: BTreeMap<(&str, &str), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        if let [(fault, ..)] = outcome.faults[..] {
            measured.entry((fault, outcome.source.name())).or_default().push(outcome);
        }
    }
    let (before, rest) = page.split_once(BEGIN).expect("the mark before the table");
    let (old, after) = rest.split_once(END).expect("the mark after the table");
    let mut table = String::from(
        "| fault | source | runs | committed | lost | phantom | out of order | duplicates at most | flowed again after, at most |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for fault in faults::all() {
        for source in Source::ALL {
            let Some(runs) = measured.get(&(fault.name, source.name())) else {
                let begin = format!("| {} | {} | ", fault.name, source.name());
                table.extend(old.split_inclusive('\n').filter(|row| row.starts_with(&begin)));
                continue;
            };
            let sum = |of: fn(&Outcome) -> usize| runs.iter().map(|run| of(run)).sum::<usize>();
            let longest = runs.iter().map(|run| run.flowed_after).max().unwrap_or_default();
            let duplicates = runs.iter().map(|run| run.verdict.duplicates).max().unwrap_or_default();
            writeln!(
                table,
                "| {} | {} | {} | {} | {} | {}{} | {} | {duplicates} | {:.1} s |",
                fault.name,
                source.name(),
                runs.len(),
                sum(|run| run.verdict.committed),
                sum(|run| run.verdict.lost.len()),
                sum(|run| run.verdict.phantom.len()),
                match sum(|run| run.verdict.undone) {
                    0 => String::new(),
                    undone => format!(", and {undone} undone"),
                },
                sum(|run| run.verdict.reordered.len()),
                longest.as_secs_f64()
            )
            .expect("write to a string");
        }
    }
    format!("{before}{BEGIN}{table}{END}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_not_measured_anew_stay_unless_their_fault_is_gone() {
        let row = |fault: &str| format!("| {fault} | MariaDB | 1 | 2 | 0 | 0 | 0 | 0 | 0.1 s |\n");
        let page = format!("before {BEGIN}{}{}{END} after", row("broker killed"), row("renamed"));
        let written = write(&page, &[]);
        assert!(written.contains(&row("broker killed")), "{written}");
        assert!(!written.contains("renamed"), "{written}");
    }
}
