//! A chart of an hour as inline SVG. The texts stand beside it as HTML, so that they keep their size however wide the chart is.

use std::fmt::Write;

use diesel_outbox_relay::History;
use maud::{Markup, html};

/// The chart's own units: a point is one wide.
const HEIGHT: f64 = 100.0;

pub(super) struct Chart<'a> {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    /// How a value is written.
    pub(super) shown: &'a dyn Fn(f64) -> String,
    pub(super) series: Vec<Series>,
}

pub(super) struct Series {
    name: &'static str,
    values: Vec<Option<f64>>,
    is_area: bool,
    is_dashed: bool,
}

impl Series {
    pub(super) fn area(name: &'static str, values: Vec<Option<f64>>) -> Self {
        Self { name, values, is_area: true, is_dashed: false }
    }

    pub(super) fn line(name: &'static str, values: Vec<Option<f64>>, is_dashed: bool) -> Self {
        Self { name, values, is_area: false, is_dashed }
    }

    fn last(&self) -> Option<f64> {
        self.values.last().copied().flatten()
    }

    fn most(&self) -> Option<f64> {
        self.values.iter().flatten().copied().reduce(f64::max)
    }

    /// The line, with a gap where nothing is known, and the area below it. The newest point is at the right end.
    fn paths(&self, top: f64) -> (String, String) {
        let (mut line, mut area) = (String::new(), String::new());
        let first = History::POINTS.saturating_sub(self.values.len());
        let mut began = None;
        for (place, value) in self.values.iter().enumerate() {
            let x = first + place;
            let Some(value) = value else {
                close(&mut area, began.take(), x);
                continue;
            };
            let y = HEIGHT - value.max(0.0) / top * HEIGHT;
            // Writing to a text cannot fail.
            let _ = match began {
                None => write!(line, "M{x} {y:.1}h1"),
                Some(_) => write!(line, "L{} {y:.1}", x + 1),
            };
            let _ = match began {
                None => write!(area, "M{x} {HEIGHT}V{y:.1}h1"),
                Some(_) => write!(area, "L{} {y:.1}", x + 1),
            };
            began.get_or_insert(x);
        }
        close(&mut area, began, History::POINTS);
        (line, area)
    }
}

fn close(area: &mut String, began: Option<usize>, end: usize) {
    if began.is_some() {
        let _ = write!(area, "L{end} {HEIGHT}Z");
    }
}

/// A round number that is not smaller.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|times| times * unit)
        .find(|top| *top >= value * (1.0 - 1e-9))
        .unwrap_or(value)
}

impl Chart<'_> {
    pub(super) fn markup(&self) -> Markup {
        let most = self.series.iter().filter_map(Series::most).reduce(f64::max);
        let top = round_up(most.unwrap_or_default());
        let value = |value: Option<f64>| value.map_or("–".to_owned(), |value| (self.shown)(value));
        let spoken = self.series.iter().map(|series| {
            format!("{}: now {}, at most {}", series.name, value(series.last()), value(series.most()))
        });
        let spoken = format!(
            "{}, {}, over the last hour. {}.",
            self.title,
            self.unit,
            spoken.collect::<Vec<_>>().join("; ")
        );
        html! {
            figure id={ "chart-" (self.id) } {
                figcaption {
                    h3 { (self.title) }
                    p.unit { (self.unit) }
                    dl.legend {
                        @for series in &self.series {
                            div { dt { span.key.dashed[series.is_dashed] aria-hidden="true" {} (series.name) } dd { (value(series.last())) } }
                        }
                        div { dt { "at most" } dd { (value(most)) } }
                    }
                }
                div.plot {
                    svg viewBox={ "0 0 " (History::POINTS) " 100" } preserveAspectRatio="none" role="img" aria-label=(spoken) {
                        @for y in [0, 50, 100] { path.grid d={ "M0 " (y) "H" (History::POINTS) } {} }
                        @for series in &self.series {
                            @let (line, area) = series.paths(top);
                            @if series.is_area { path.area d=(area) {} }
                            path.line.dashed[series.is_dashed] d=(line) {}
                        }
                    }
                    p.scale aria-hidden="true" { span { (value(Some(top))) } span { (value(Some(top / 2.0))) } span { "0" } }
                }
                p.axis aria-hidden="true" { span { "1 h ago" } span { "30 m" } span { "now" } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_gap_where_nothing_is_known_and_ends_at_the_right() {
        let series = Series::area("x", vec![Some(0.0), Some(10.0), None, Some(5.0)]);
        let (line, area) = series.paths(10.0);
        assert_eq!(line, "M356 100.0h1L358 0.0M359 50.0h1");
        assert_eq!(area, "M356 100V100.0h1L358 0.0L358 100ZM359 100V50.0h1L360 100Z");
        assert_eq!(Series::area("x", Vec::new()).paths(1.0), (String::new(), String::new()));
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        assert_eq!([0.0, 0.03, 1.0, 1.1, 42.0, 5_001.0].map(round_up), [1.0, 0.05, 1.0, 2.0, 50.0, 10_000.0]);
    }
}
