//! The curves of noise levels, as a picture.
//!
//! `cargo run --release --example sigma_schedules` draws what every `SigmaSchedule` with a name makes of
//! Stable Diffusion's noise levels, and writes `docs/images/sigma_schedules.svg`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diffusion_core::scheduler::from_config;
use diffusion_core::{NoiseSchedule, SigmaSchedule};
use plotters::prelude::*;
use serde_json::{Value, json};

/// Panels side by side, so that lines stay apart.
const PANELS: usize = 2;
const SIZE: (u32, u32) = (1240, 600);
/// The noise levels on the vertical axis.
const RANGE: (f64, f64) = (0.02, 20.0);
/// Okabe and Ito's colours, which the colour-blind can tell apart, too.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Plots the curves of noise levels.
#[derive(Parser)]
struct Args {
    /// Number of steps.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Where the SVG goes. Default: docs/images/sigma_schedules.svg of this repository.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// One line of the plot, for all names that mean the same levels.
struct Curve {
    names: Vec<String>,
    sigmas: Vec<f64>,
}

/// The levels above 0 by the names of their curves, in the order of the documentation.
fn curves(steps: usize) -> Result<Vec<Curve>, Box<dyn Error>> {
    let noise = NoiseSchedule::from_json(&json!({
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }))?;
    let native = ["leading", "linspace", "trailing"].map(|spacing| {
        let config = json!({"timestep_spacing": spacing, "steps_offset": 1});
        (format!("native, {spacing}"), config)
    });
    let named = SigmaSchedule::NAMED.map(|(name, _)| name).into_iter();
    let named = named
        // The native one is there in its spacings; flow is for models of another kind.
        .filter(|name| !matches!(*name, "native" | "flow"))
        .map(|name| (name.to_owned(), json!({"sigma_schedule": name})));

    let mut curves: Vec<Curve> = Vec::new();
    for (name, mut config) in native.into_iter().chain(named) {
        config["_class_name"] = Value::from("EulerDiscreteScheduler");
        let mut sigmas = from_config(&config)?.sigmas(&noise, steps)?;
        sigmas.retain(|&sigma| sigma > 0.0);
        match curves.iter_mut().find(|c| look_alike(&c.sigmas, &sigmas)) {
            Some(curve) => curve.names.push(name),
            None => curves.push(Curve {
                names: vec![name],
                sigmas,
            }),
        }
    }
    Ok(curves)
}

/// Whether two lines would cover each other.
fn look_alike(a: &[f64], b: &[f64]) -> bool {
    let mut pairs = a.iter().zip(b);
    a.len() == b.len() && pairs.all(|(a, b)| (a / b).ln().abs() < 0.02)
}

fn draw(curves: &[Curve], steps: usize, svg: &mut String) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("Noise levels of Stable Diffusion over {steps} steps");
    let root = root.titled(&title, ("sans-serif", 22))?;
    let areas = root.split_evenly((1, PANELS));
    for (area, curves) in areas
        .iter()
        .zip(curves.chunks(curves.len().div_ceil(PANELS)))
    {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..steps as f64, (RANGE.0..RANGE.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc("sigma")
            .max_light_lines(1)
            .light_line_style(BLACK.mix(0.06))
            .bold_line_style(BLACK.mix(0.15))
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|sigma| format!("{sigma}"))
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 16))
            .draw()?;
        for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
            let points = curve.sigmas.iter().zip(0..);
            let points = points.map(|(&sigma, step)| (f64::from(step), sigma));
            let style = color.stroke_width(2).filled();
            chart
                .draw_series(LineSeries::new(points, style).point_size(3))?
                .label(curve.names.join(" = "))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .legend_area_size(30)
            .margin(12)
            .background_style(WHITE.mix(0.9))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 15))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let docs = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/images/sigma_schedules.svg"
    );
    let path = args.output.unwrap_or_else(|| docs.into());
    let mut svg = String::new();
    draw(&curves(args.steps)?, args.steps, &mut svg)?;
    std::fs::write(&path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
