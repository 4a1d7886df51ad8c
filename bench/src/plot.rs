//! Figures drawn: of packets one line a row, over the number of flows; of the agent over the size of its table.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::{
    control::{Control, Size},
    measure::Figure,
    packets::Measured,
};

/// A line's name, and what it shows of a size.
type Row = (&'static str, fn(&Size) -> f64);

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

/// Draws what a load, a restart and a change of one weight take, over the number of real servers of all services. On
/// both axes a tenfold is the same length, so that what grows as the table does is a straight line of half a right
/// angle.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn growth(control: &Control, path: &Path) -> Result<()> {
    let rows: [Row; 3] = [
        ("load", |size| size.load * 1e3),
        ("restart", |size| size.restart * 1e3),
        ("one weight", |size| size.change[0]),
    ];
    let mut sizes: Vec<&Size> = control.sizes.iter().collect();
    sizes.sort_by_key(|size| size.destinations());
    let most = sizes.iter().map(|size| size.destinations()).max().unwrap_or(1);
    let all = sizes.iter().flat_map(|size| rows.map(|(_, of)| of(size)));
    let slowest = all.fold(10.0, f64::max);

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption("what a table of services costs the agent", ("sans-serif", 20))
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((500..2 * most).log_scale(), (1.0..slowest * 2.0).log_scale())
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc("real servers of all services")
        .y_desc("ms")
        .draw()
        .map_err(|error| failed(&error))?;
    for ((row, of), colour) in rows.iter().zip(COLOURS) {
        let points = sizes.iter().map(|size| (size.destinations(), of(size)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))
            .map_err(|error| failed(&error))?
            .label(*row)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
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
