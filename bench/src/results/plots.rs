//! The plots of each benchmark.

mod bars;
mod curve;

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::report::{Figure, Report};

/// The curves of growth by the first word of their figures' names, and what grows.
const CURVES: [(&str, &str); 5] = [
    ("payload", "bytes of payload"),
    ("batch", "rows read at once"),
    ("workers", "workers"),
    ("shards", "shards that have rows"),
    ("backlog", "rows that wait"),
];

const FONT: &str = "sans-serif";
const DARK: RGBColor = RGBColor(31, 90, 140);
const LIGHT: RGBColor = RGBColor(120, 170, 210);

type Drawn = Result<Vec<String>, Box<dyn Error>>;

/// Draws the report's plots, if it has any, and returns the files' names.
pub(super) fn draw(folder: &Path, report: &Report) -> Drawn {
    match &*report.benchmark {
        "drain" => drain(folder, &measured(report, |figure| figure.unit == "events/s")),
        // Zero has no place on a logarithmic scale.
        "latency" => latency(folder, &measured(report, |figure| figure.unit == "ms" && figure.min() > 0.0)),
        "growth" => growth(folder, report),
        _ => Ok(Vec::new()),
    }
}

fn drain(folder: &Path, figures: &[&Figure]) -> Drawn {
    if figures.is_empty() {
        return Ok(Vec::new());
    }
    let name = "drain.svg".to_owned();
    bars::draw(&folder.join(&name), "events/s", figures, &[DARK], 0.0, 0.0..1.15 * most(figures))?;
    Ok(vec![name])
}

fn latency(folder: &Path, figures: &[&Figure]) -> Drawn {
    if figures.is_empty() {
        return Ok(Vec::new());
    }
    let name = "latency.svg".to_owned();
    let start = figures.iter().map(|figure| figure.min()).fold(f64::INFINITY, f64::min) / 2.0;
    let axis = (start..2.0 * most(figures)).log_scale();
    let axis_name = "ms from commit to consumer, on a logarithmic scale";
    bars::draw(&folder.join(&name), axis_name, figures, &[LIGHT, DARK], start, axis)?;
    Ok(vec![name])
}

fn growth(folder: &Path, report: &Report) -> Drawn {
    let mut names = Vec::new();
    for (curve, grows) in CURVES {
        let figures = measured(report, |figure| figure.name.split(' ').next() == Some(curve));
        if !figures.is_empty() {
            let name = format!("growth-{curve}.svg");
            curve::draw(&folder.join(&name), grows, &figures)?;
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns the wanted figures that have a place on an axis.
fn measured(report: &Report, wanted: impl Fn(&Figure) -> bool) -> Vec<&Figure> {
    let has_place = |figure: &Figure| figure.min().is_finite() && figure.max().is_finite();
    report.figures.iter().filter(|figure| has_place(figure) && wanted(figure)).collect()
}

fn most(figures: &[&Figure]) -> f64 {
    figures.iter().map(|figure| figure.max()).fold(0.0, f64::max)
}
