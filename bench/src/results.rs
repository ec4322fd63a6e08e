//! `bench/RESULTS.md` and its plots.

mod markdown;
mod plots;

use std::error::Error;
use std::fs;
use std::path::Path;

use self::markdown::Page;
use crate::measured::Measured;

/// Writes the page and its plots anew.
pub(crate) fn write(measured: &[Measured]) -> Result<(), Box<dyn Error>> {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    write_to(bench, measured)
        .map_err(|error| format!("the results cannot be written to {}: {error}", bench.display()))?;
    eprintln!("written: {}", bench.join("RESULTS.md").display());
    Ok(())
}

const PLOTS: &str = "plots";

fn write_to(bench: &Path, measured: &[Measured]) -> Result<(), Box<dyn Error>> {
    let plots = bench.join(PLOTS);
    if plots.exists() {
        fs::remove_dir_all(&plots)?;
    }
    fs::create_dir(&plots)?;
    let mut page = Page::new();
    page.machines(measured);
    for each in measured {
        for report in &each.reports {
            let plots = plots::draw(&plots, report)?;
            page.report(report, &plots);
        }
        each.unfinished.iter().for_each(|unfinished| page.unfinished(unfinished));
    }
    fs::write(bench.join("RESULTS.md"), page.finish())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use outbox_tests::Folder;

    use super::*;
    use crate::machine::Machine;
    use crate::report::{Figure, Report};

    fn report(benchmark: &str, unit: &'static str, names: &[&str]) -> Report {
        let figures = names.iter().zip(1..).map(|(&name, n)| {
            Figure::new(name, unit, vec![f64::from(n), f64::from(n) * 1.5, f64::from(n) * 9.0]).at_least(2.0)
        });
        Report { benchmark: benchmark.into(), conditions: "200 rows".into(), figures: figures.collect() }
    }

    #[test]
    fn results_have_a_table_each_and_plots_and_say_what_is_missing() {
        let mut measured = Measured::new(Machine::here());
        measured.add("drain".into(), || report("drain", "events/s", &["bare producer", "relay, delete"]));
        measured.add("latency".into(), || report("latency", "ms", &["relay: p50", "relay: p99"]));
        measured.add("growth".into(), || report("growth", "events/s", &["payload 50 B", "payload 200 B"]));
        measured.add("idle".into(), || panic!("no extension\nand more"));
        let folder = Folder::new("results");
        write_to(folder.path(), &[measured]).unwrap();
        let page = fs::read_to_string(folder.path().join("RESULTS.md")).unwrap();
        for part in [
            "| bare producer | events/s | 1.500 | 1.000 | 9.000 | >= 2 | short |",
            "cargo run --release -p bench -- latency",
            "| librdkafka | ",
            "**It did not finish:**\n\n    no extension\n",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        for plot in ["drain", "latency", "growth-payload"] {
            assert!(page.contains(&format!("(plots/{plot}.svg)")), "{plot}: {page}");
            let svg = fs::read_to_string(folder.path().join(format!("plots/{plot}.svg"))).unwrap();
            assert!(svg.trim_end().ends_with("</svg>"));
        }
    }
}
