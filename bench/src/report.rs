//! Medians, as rows on the terminal.

/// The rounds of one contender.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f64>,
}

impl Series {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, values: Vec::new() }
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        }
    }

    /// Prints name, median, least and most, and the ratio to another contender's median.
    pub(crate) fn print(&self, unit: &str, beside: Option<&Self>) {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ratio = beside
            .map(|other| format!("   {:.2} of {}", self.median() / other.median(), other.name))
            .unwrap_or_default();
        println!(
            "{:<28} median {:>9.0} {unit}   min {least:>9.0}   max {most:>9.0}{ratio}",
            self.name,
            self.median()
        );
    }
}
