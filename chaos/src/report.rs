//! The table of docs/faults.md, from what runs measured.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::faults;
use crate::lanes::Source;
use crate::run::Outcome;

const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->";

/// Returns the page with the table of these outcomes, each of a run with one fault. Rows of what was not measured now are left out.
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
    let mut table = String::from(
        "| fault | source | runs | committed | lost | phantom | out of order | duplicates at most | flowed again after, at most |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for fault in faults::all() {
        for source in Source::ALL {
            let Some(runs) = measured.get(&(fault.name, source.name())) else { continue };
            let sum = |of: fn(&Outcome) -> usize| runs.iter().map(|run| of(run)).sum::<usize>();
            let longest = runs.iter().map(|run| run.flowed_after).max().unwrap_or_default();
            let duplicates = runs.iter().map(|run| run.verdict.duplicates).max().unwrap_or_default();
            writeln!(
                table,
                "| {} | {} | {} | {} | {} | {} | {} | {duplicates} | {:.1} s |",
                fault.name,
                source.name(),
                runs.len(),
                sum(|run| run.verdict.committed),
                sum(|run| run.verdict.lost.len()),
                sum(|run| run.verdict.phantom.len()),
                sum(|run| run.verdict.reordered.len()),
                longest.as_secs_f64()
            )
            .expect("write to a string");
        }
    }
    let (before, rest) = page.split_once(BEGIN).expect("the mark before the table");
    let (_, after) = rest.split_once(END).expect("the mark after the table");
    format!("{before}{BEGIN}{table}{END}{after}")
}
