//! The page.

use std::fmt::Write;

use super::PLOTS;
use crate::measured::{Measured, Unfinished};
use crate::report::{COLUMNS, Report};

pub(super) struct Page {
    text: String,
}

const HEAD: &str = "\
# Results

`cargo run --release -p bench -- all` measures everything here and writes this page. `results` writes it from files that `--json`
has written. Contenders take turns, round by round. A figure is the median of its rounds, and a ratio is taken in each round.
A plot has a bar or a point for each median, and a line from the least value to the greatest.
";

impl Page {
    pub(super) fn new() -> Self {
        Self { text: HEAD.to_owned() }
    }

    /// Writes a table for each machine. If there are several, it says what was measured on each.
    pub(super) fn machines(&mut self, measured: &[Measured]) {
        for each in measured {
            self.heading("Machine");
            if measured.len() > 1 {
                let reports = each.reports.iter().map(|report| &*report.benchmark);
                let unfinished = each.unfinished.iter().map(|unfinished| &*unfinished.benchmark);
                let names: Vec<&str> = reports.chain(unfinished).collect();
                self.line(format_args!("Of {}.\n", names.join(", ")));
            }
            self.line(format_args!("| | |\n| :-- | :-- |"));
            for (name, fact) in each.machine.facts() {
                self.line(format_args!("| {name} | {fact} |"));
            }
        }
    }

    pub(super) fn report(&mut self, report: &Report, plots: &[String]) {
        self.heading(&report.benchmark);
        let rounds = report.figures.iter().map(|figure| figure.values.len()).max().unwrap_or_default();
        self.line(format_args!("{}; {rounds} round(s).\n", report.conditions));
        self.line(format_args!("```sh\n{}\n```\n", command(&report.benchmark)));
        for plot in plots {
            let name = plot.trim_end_matches(".svg");
            self.line(format_args!("![{name}]({PLOTS}/{plot})\n"));
        }
        self.row(&COLUMNS);
        self.line(format_args!("| :-- | :-- | --: | --: | --: | :-- | :-- |"));
        report.rows().for_each(|row| self.row(&row));
    }

    /// Writes the reason, of which the first line is enough.
    pub(super) fn unfinished(&mut self, unfinished: &Unfinished) {
        self.heading(&unfinished.benchmark);
        let reason = unfinished.reason.lines().next().unwrap_or_default();
        self.line(format_args!("```sh\n{}\n```\n", command(&unfinished.benchmark)));
        self.line(format_args!("**It did not finish:**\n\n    {reason}"));
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn heading(&mut self, name: &str) {
        self.line(format_args!("\n## {name}\n"));
    }

    fn row(&mut self, cells: &[impl AsRef<str>]) {
        let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
        self.line(format_args!("| {} |", cells.join(" | ")));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes everything");
    }
}

fn command(benchmark: &str) -> String {
    format!("cargo run --release -p bench -- {benchmark}")
}
