//! The table of docs/faults.md that says what is promised.

use std::fmt::Write;

use crate::faults;
use crate::lanes::Source;

const BEGIN: &str = "<!-- promised: begin -->\n";
const END: &str = "<!-- promised: end -->";

/// Returns the page with the table of all faults.
///
/// # Panics
/// If the page has no place for the table.
pub fn write(page: &str) -> String {
    let mut table = String::from("| fault | on | promised |\n|---|---|---|\n");
    for fault in faults::all() {
        let on: Vec<&str> = Source::ALL
            .into_iter()
            .filter(|source| faults::applies(fault, *source))
            .map(Source::name)
            .collect();
        writeln!(table, "| {} | {} | {} |", fault.name, on.join(", "), fault.promise)
            .expect("write to a string");
    }
    let (before, rest) = page.split_once(BEGIN).expect("the mark before the table");
    let (_, after) = rest.split_once(END).expect("the mark after the table");
    format!("{before}{BEGIN}{table}{END}{after}")
}
