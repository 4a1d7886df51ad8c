//! Figures drawn: one line a row, over the number of flows.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::{measure::Figure, packets::Measured};

const SIZE: (u32, u32) = (1000, 640);
/// Colours that are told apart on paper, too (Okabe and Ito's, without yellow).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

/// Draws every row of which there are figures for at least three numbers of flows.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn draw(measured: &Measured, path: &Path) -> Result<()> {
    let mut rows: Vec<(&str, Vec<&Figure>)> = Vec::new();
    for figure in measured.figures.iter().filter(|figure| figure.services == 64) {
        match rows.iter_mut().find(|(row, _)| *row == figure.row) {
            Some((_, figures)) => figures.push(figure),
            None => rows.push((figure.row, vec![figure])),
        }
    }
    rows.retain(|(_, figures)| figures.len() >= 3);
    let all = || rows.iter().flat_map(|(_, figures)| figures);
    let most = all().map(|figure| figure.p90).fold(1.0, f64::max);
    let flows = all().map(|figure| figure.flows).max().unwrap_or(1);

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption(
            "ns a packet, net of a program that does nothing",
            ("sans-serif", 20),
        )
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((1..2 * flows).log_scale(), 0.0..most * 1.05)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc("flows")
        .y_desc("ns")
        .draw()
        .map_err(|error| failed(&error))?;
    for ((row, figures), colour) in rows.iter().zip(COLOURS.iter().cycle()) {
        let points = figures.iter().map(|figure| (figure.flows, figure.median));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))
            .map_err(|error| failed(&error))?
            .label(*row)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}
