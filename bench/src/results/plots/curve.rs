//! A line through the medians, and at each a line from the least to the most.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use super::{DARK, FONT, most};
use crate::report::Figure;

const SIZE: (u32, u32) = (700, 360);

/// Events per second as `grows` does: from figure to figure, each of which has its place at the end of its name.
pub(super) fn draw(file: &Path, grows: &str, figures: &[&Figure]) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let count = figures.len();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(80)
        .build_cartesian_2d((0..count - 1).into_segmented(), 0.0..1.1 * most(figures))?;
    let place = |value: &SegmentValue<usize>| match value {
        SegmentValue::CenterOf(index) => figures
            .get(*index)
            .and_then(|figure| figure.name.split(' ').nth(1))
            .unwrap_or_default()
            .to_owned(),
        _ => String::new(),
    };
    let font = (FONT, 16);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_max_light_lines(0)
        .x_label_formatter(&place)
        .x_labels(count)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .x_desc(grows)
        .y_desc("events/s")
        .label_style(font)
        .axis_desc_style(font)
        .draw()?;
    let at = |index, value| (SegmentValue::CenterOf(index), value);
    let medians = || figures.iter().enumerate().map(|(index, figure)| at(index, figure.median()));
    chart.draw_series(LineSeries::new(medians(), DARK.stroke_width(2)))?;
    chart.draw_series(medians().map(|point| Circle::new(point, 4, DARK.filled())))?;
    chart.draw_series(figures.iter().enumerate().map(|(index, figure)| {
        PathElement::new(vec![at(index, figure.min()), at(index, figure.max())], BLACK)
    }))?;
    area.present()?;
    Ok(())
}
