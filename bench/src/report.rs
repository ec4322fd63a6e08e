//! Figures with their goals, and the rows that show them on the terminal.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What one benchmark found.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) benchmark: String,
    /// The rows, bytes and whatever else was chosen.
    pub(crate) conditions: String,
    pub(crate) figures: Vec<Figure>,
}

/// One thing that was measured in each round.
#[derive(Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) values: Vec<f64>,
    pub(crate) goal: Option<Goal>,
    /// The figure that shows, if it reaches its own goal, that this one's goal is beyond the machine.
    #[serde(default)]
    pub(crate) limit: Option<String>,
}

/// What the median should reach.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

impl Report {
    pub(crate) fn falls_short(&self) -> bool {
        self.figures.iter().any(|figure| self.verdict(figure) == SHORT)
    }

    /// Returns nothing if there is no goal.
    fn verdict(&self, figure: &Figure) -> &'static str {
        let is_limit = |other: &&Figure| figure.limit.as_ref() == Some(&other.name);
        match figure.reaches_goal() {
            None => "",
            Some(true) => "ok",
            Some(false)
                if self.figures.iter().find(is_limit).and_then(Figure::reaches_goal) == Some(true) =>
            {
                "at the limit"
            }
            // A limit is of interest only if a goal is not reached.
            Some(false) if self.limits_what_is_reached(figure) => "",
            Some(false) => SHORT,
        }
    }

    fn limits_what_is_reached(&self, limit: &Figure) -> bool {
        let mut limited =
            self.figures.iter().filter(|other| other.limit.as_ref() == Some(&limit.name)).peekable();
        limited.peek().is_some() && limited.all(|other| other.reaches_goal() == Some(true))
    }

    /// Returns each figure's name, unit, median, min, max, goal and whether it was reached.
    pub(crate) fn rows(&self) -> impl Iterator<Item = [String; 7]> {
        self.figures.iter().map(|figure| {
            let [name, unit, median, min, max, goal] = figure.cells();
            [name, unit, median, min, max, goal, self.verdict(figure).to_owned()]
        })
    }
}

const SHORT: &str = "short";

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        Self { name: name.into(), unit: unit.to_owned(), values, goal: None, limit: None }
    }

    /// Returns the speeds of contenders of which nothing else was measured, in events per second.
    pub(crate) fn speeds<const N: usize>(measured: Vec<[Vec<f64>; 1]>, names: [&str; N]) -> Vec<Self> {
        measured.into_iter().zip(names).map(|([speeds], name)| Self::new(name, "events/s", speeds)).collect()
    }

    /// Divides the first by the second, round by round, so that a slow round does not count.
    pub(crate) fn ratio(name: impl Into<String>, above: &Self, below: &Self) -> Self {
        let pairs = above.values.iter().zip(&below.values);
        Self::new(name, "ratio", pairs.map(|(above, below)| above / below).collect())
    }

    pub(crate) fn at_least(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtLeast(goal));
        self
    }

    pub(crate) fn at_most(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtMost(goal));
        self
    }

    /// Excuses the figure from its goal if that other figure reaches its own.
    pub(crate) fn limited_by(mut self, limit: &Self) -> Self {
        self.limit = Some(limit.name.clone());
        self
    }

    pub(crate) fn below(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::Below(goal));
        self
    }

    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        }
    }

    pub(crate) fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// Returns nothing if there is no goal. A figure that was not measured reaches none.
    pub(crate) fn reaches_goal(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::AtLeast(goal) => self.median() >= goal,
            Goal::AtMost(goal) => self.median() <= goal,
            Goal::Below(goal) => self.median() < goal,
        })
    }

    /// Returns name, unit, median, min, max and goal.
    pub(crate) fn cells(&self) -> [String; 6] {
        [
            self.name.clone(),
            self.unit.clone(),
            number(self.median()),
            number(self.min()),
            number(self.max()),
            self.goal.map(|goal| goal.to_string()).unwrap_or_default(),
        ]
    }
}

pub(crate) const COLUMNS: [&str; 7] = ["figure", "unit", "median", "min", "max", "goal", ""];

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(goal) => write!(f, ">= {goal}"),
            Self::AtMost(goal) => write!(f, "<= {goal}"),
            Self::Below(goal) => write!(f, "< {goal}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.benchmark, self.conditions)?;
        let head = COLUMNS.map(str::to_owned);
        let rows: Vec<[String; 7]> = self.rows().collect();
        let widths: [usize; 7] = std::array::from_fn(|column| {
            rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or_default()
        });
        for row in [&head].into_iter().chain(&rows) {
            let line: Vec<String> = row
                .iter()
                .zip(widths)
                .enumerate()
                .map(|(column, (cell, width))| match column {
                    2..=4 => format!("{cell:>width$}"),
                    _ => format!("{cell:<width$}"),
                })
                .collect();
            writeln!(f, "  {}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Writes only the digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1_000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round_and_judged_by_their_median() {
        let above = Figure::new("a", "events/s", vec![10.0, 50.0, 6.0]);
        let below = Figure::new("b", "events/s", vec![10.0, 100.0, 10.0]);
        let ratio = Figure::ratio("a / b", &above, &below).at_least(0.6);
        assert_eq!(ratio.values, [1.0, 0.5, 0.6]);
        assert_eq!(ratio.reaches_goal(), Some(true));
        assert_eq!(ratio.at_most(0.5).reaches_goal(), Some(false));
    }

    #[test]
    fn a_figure_that_shows_the_machines_limit_excuses_another_from_its_goal() {
        let report = |ratio, limit| {
            let limit = Figure::new("a / bare", "ratio", vec![limit]).at_least(0.9);
            let short = Figure::new("a / b", "ratio", vec![ratio]).at_least(0.9).limited_by(&limit);
            Report { benchmark: "x".into(), conditions: String::new(), figures: vec![short, limit] }
        };
        assert!(!report(0.5, 0.95).falls_short());
        assert!(report(0.5, 0.85).falls_short());
        assert!(!report(0.95, 0.85).falls_short());
    }

    #[test]
    fn what_was_not_measured_falls_short() {
        let figure = Figure::new("a", "ms", Vec::new()).at_most(1.0);
        assert!(
            Report { benchmark: "x".into(), conditions: String::new(), figures: vec![figure] }.falls_short()
        );
    }
}
