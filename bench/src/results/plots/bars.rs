//! A bar for each median, with a line from the least to the most.

use std::error::Error;
use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::FONT;
use crate::report::Figure;

const WIDTH: u32 = 900;
const BAR: u32 = 36;
const AROUND: u32 = 70;
const NAMES: u32 = 200;

/// Bars from `start` to the right, the first at the top, in these colours in turn.
pub(super) fn draw<X>(
    file: &Path,
    axis_name: &str,
    figures: &[&Figure],
    colours: &[RGBColor],
    start: f64,
    axis: X,
) -> Result<(), Box<dyn Error>>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let count = figures.len();
    let area = SVGBackend::new(file, (WIDTH, AROUND + BAR * count as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(NAMES)
        .build_cartesian_2d(axis, (0..count - 1).into_segmented())?;
    let name = |value: &SegmentValue<usize>| match value {
        SegmentValue::CenterOf(place) if *place < count => figures[count - 1 - place].name.clone(),
        _ => String::new(),
    };
    let font = (FONT, 16);
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_max_light_lines(0)
        .x_label_formatter(&|value| if *value < 10.0 { format!("{value}") } else { format!("{value:.0}") })
        .y_label_formatter(&name)
        .y_labels(count)
        .x_desc(axis_name)
        .label_style(font)
        .axis_desc_style(font)
        .draw()?;
    let beside = TextStyle::from(font.into_font()).pos(Pos::new(HPos::Left, VPos::Center));
    for (index, figure) in figures.iter().enumerate() {
        let place = count - 1 - index;
        let (bottom, middle) = (SegmentValue::Exact(place), SegmentValue::CenterOf(place));
        let top = if index == 0 { SegmentValue::Last } else { SegmentValue::Exact(place + 1) };
        let colour = colours[index % colours.len()];
        let mut bar = Rectangle::new([(start, bottom), (figure.median(), top)], colour.filled());
        bar.set_margin(6, 6, 0, 0);
        chart.draw_series([bar])?;
        let range = vec![(figure.min(), middle.clone()), (figure.max(), middle.clone())];
        chart.draw_series([PathElement::new(range, BLACK.stroke_width(2))])?;
        let [_, _, median, ..] = figure.cells();
        let text = Text::new(median, (8, 0), beside.clone());
        chart.draw_series([EmptyElement::at((figure.max(), middle)) + text])?;
    }
    area.present()?;
    Ok(())
}
