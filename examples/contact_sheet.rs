//! Pictures in a grid: any two fields of a request against each other, all else alike.
//!
//! `cargo run --release --example contact_sheet -- "a red heart, flat style" --y
//! scheduler=euler,dpmpp_2m_karras,unipc` makes `sheet.png` with the small model beside this file;
//! `--model` takes any folder in the diffusers layout.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use diffusion_core::{Device, GenerateRequest, Pipeline, RgbImage, device, media};
use diffusion_examples::emoji_model;
use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::Rgb;
use image::imageops::{self, FilterType};
use indicatif::ProgressBar;

/// The rows where none are given.
const SCHEDULERS: &str =
    "scheduler=ddim,euler,euler_ancestral,heun,dpmpp_2m,dpmpp_2m_karras,dpmpp_2m_sde,unipc";

const WHITE: Rgb<u8> = Rgb([255; 3]);
const BLACK: Rgb<u8> = Rgb([0; 3]);
const RED: Rgb<u8> = Rgb([176, 0, 32]);
/// Pixels between cells, and around labels.
const GAP: u32 = 4;
/// The most letters in a line beside a row.
const ROW_LETTERS: usize = 24;
/// Width of a letter and height of a line, in pixels of the font.
const LETTER: (u32, u32) = (8, 10);

/// Makes a grid of pictures: any two fields of a request against each other.
#[derive(Parser)]
struct Args {
    /// What the pictures shall show.
    prompt: String,
    /// The columns, as FIELD=VALUE,VALUE,... Fields: scheduler, steps, guidance_scale, seed, eta,
    /// negative_prompt, prompt. Values that have commas in them stand between | instead.
    #[arg(long, default_value = "steps=5,10,20,30")]
    x: Axis,
    /// The rows, in the same way.
    #[arg(long, default_value = SCHEDULERS)]
    y: Axis,
    /// A model folder in the diffusers layout. Default: the small emoji model of this repository.
    #[arg(long)]
    model: Option<PathBuf>,
    /// What the pictures shall not show.
    #[arg(long, default_value = "")]
    negative: String,
    /// Number of steps, where no axis says.
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// How far the pictures follow the prompt. Default: 5 for the emoji model, 7.5 for others.
    #[arg(long)]
    guidance: Option<f64>,
    /// Size in pixels, as 512 or 768x512 (width x height). Default: the model's own.
    #[arg(long, value_delimiter = 'x')]
    size: Vec<usize>,
    /// The seed of all pictures, where no axis says.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The share of fresh noise from 0 to 1, for schedulers that have one. Default: the scheduler's own.
    #[arg(long)]
    eta: Option<f64>,
    /// A scheduler by name, where no axis says. Default: the model's own.
    #[arg(long)]
    scheduler: Option<String>,
    /// The number format that weights are held in: f32, f16 or bf16. Default: f32 on the CPU, f16 elsewhere.
    #[arg(long)]
    dtype: Option<String>,
    /// cpu, cuda or metal, with a number as cuda:1 if there are several.
    #[arg(long, default_value = "cpu", value_parser = device::parse_device)]
    device: Device,
    /// Width of a cell in pixels. Default: as the pictures come.
    #[arg(long, value_parser = clap::value_parser!(u32).range(32..=4096))]
    cell: Option<u32>,
    /// Where the PNG goes.
    #[arg(short, long, default_value = "sheet.png")]
    output: PathBuf,
}

/// A field of the request and the values that it takes along the rows or columns.
#[derive(Clone)]
struct Axis {
    field: String,
    values: Vec<String>,
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.split_once('=');
        let (field, values) = split.ok_or("expected FIELD=VALUE,VALUE,...")?;
        let separator = if values.contains('|') { '|' } else { ',' };
        let values = values.split(separator);
        Ok(Self {
            field: field.trim().to_owned(),
            values: values.map(|value| value.trim().to_owned()).collect(),
        })
    }
}

impl Axis {
    /// The request with this axis's value of that number.
    fn apply(&self, index: usize, request: GenerateRequest) -> Result<GenerateRequest, String> {
        let value = &self.values[index];
        Ok(match self.field.as_str() {
            "scheduler" => request.scheduler_name(value),
            "steps" => request.num_steps(self.number(index)?),
            "guidance_scale" => request.guidance_scale(self.number(index)?),
            "seed" => request.seed(self.number(index)?),
            "eta" => request.eta(self.number(index)?),
            "negative_prompt" => request.negative_prompt(value),
            "prompt" => request.prompt(value),
            other => {
                return Err(format!(
                    "{other:?} is no axis; take scheduler, steps, guidance_scale, seed, eta, \
                     negative_prompt or prompt"
                ));
            }
        })
    }

    fn number<T: FromStr>(&self, index: usize) -> Result<T, String> {
        let (field, value) = (&self.field, &self.values[index]);
        let error = |_| format!("{field}: expected a number, found {value:?}");
        value.parse().map_err(error)
    }

    /// What stands beside each row or above each column, in lines of at most `width` letters.
    fn labels(&self, width: usize) -> Vec<Vec<String>> {
        let label = |value: &String| match self.field.as_str() {
            "scheduler" | "prompt" => wrap(value, width),
            field => wrap(&format!("{} {value}", field.replace('_', " ")), width),
        };
        self.values.iter().map(label).collect()
    }
}

/// Text in lines of at most `width` letters, broken between words where that is possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for part in letters.chunks(width.max(1)) {
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + part.len() <= width => {
                    line.push(' ');
                    line.extend(part);
                }
                _ => lines.push(part.iter().collect()),
            }
        }
    }
    lines
}

/// Writes lines of text with their upper left corner at `(x, y)`, and each pixel of the font `scale` large.
fn write(sheet: &mut RgbImage, lines: &[String], (x, y): (u32, u32), scale: u32, color: Rgb<u8>) {
    for (line, row) in lines.iter().zip(0..) {
        for (letter, column) in line.chars().zip(0..) {
            let glyph = BASIC_FONTS.get(letter).or_else(|| LATIN_FONTS.get(letter));
            // A box stands for letters that the font lacks.
            let bits = glyph.unwrap_or([0x7e; 8]);
            for i in 0..(8 * scale).pow(2) {
                let (dx, dy) = (i % (8 * scale), i / (8 * scale));
                let x = x + column * LETTER.0 * scale + dx;
                let y = y + row * LETTER.1 * scale + dy;
                let is_ink = bits[(dy / scale) as usize] >> (dx / scale) & 1 == 1;
                if is_ink && x < sheet.width() && y < sheet.height() {
                    sheet.put_pixel(x, y, color);
                }
            }
        }
    }
}

/// The pictures, or why there are none, row after row, with labels above and beside them.
fn draw(
    x: &Axis,
    y: &Axis,
    cells: &[Result<RgbImage, String>],
    width: Option<u32>,
) -> diffusion_core::Result<RgbImage> {
    let mut sizes = cells.iter().flatten().map(RgbImage::dimensions);
    let size = sizes.next().unwrap_or((128, 128));
    let width = width.unwrap_or(size.0);
    let height = (size.1 * width / size.0).max(1);
    let scale = (width / 192).clamp(1, 4);
    let (letter, line) = (LETTER.0 * scale, LETTER.1 * scale);
    let letters = (width / letter) as usize;

    let (columns, rows) = (x.labels(letters), y.labels(ROW_LETTERS));
    let longest = rows.iter().flatten().map(|line| line.chars().count());
    let left = GAP * 2 + longest.max().unwrap_or(0) as u32 * letter;
    let top = GAP * 2 + columns.iter().map(Vec::len).max().unwrap_or(0) as u32 * line;
    let corner = |column: usize, row: usize| {
        let (column, row) = (column as u32, row as u32);
        (left + column * (width + GAP), top + row * (height + GAP))
    };

    let fitted: Vec<RgbImage> = cells
        .iter()
        .map(|cell| match cell {
            Ok(picture) => imageops::resize(picture, width, height, FilterType::Triangle),
            Err(error) => {
                let mut cell = RgbImage::from_pixel(width, height, WHITE);
                let mut lines = wrap(error, letters);
                lines.truncate((height / line) as usize);
                write(&mut cell, &lines, (0, 0), scale, RED);
                cell
            }
        })
        .collect();
    let pictures = media::grid(&fitted, columns.len(), GAP)?;
    let (right, bottom) = corner(columns.len(), rows.len());
    let mut sheet = RgbImage::from_pixel(right, bottom, WHITE);
    for (i, label) in columns.iter().enumerate() {
        write(&mut sheet, label, (corner(i, 0).0, GAP), scale, BLACK);
    }
    for (i, label) in rows.iter().enumerate() {
        let top = corner(0, i).1 + height.saturating_sub(label.len() as u32 * line) / 2;
        write(&mut sheet, label, (GAP, top), scale, BLACK);
    }
    imageops::replace(&mut sheet, &pictures, left.into(), top.into());
    Ok(sheet)
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let (x, y) = (args.x, args.y);
    if x.field == y.field {
        return Err(format!("both axes vary {}; give --x or --y another field", x.field).into());
    }
    let guidance = if args.model.is_none() { 5.0 } else { 7.5 };
    let mut request = GenerateRequest::txt2img(args.prompt)
        .negative_prompt(args.negative)
        .num_steps(args.steps)
        .guidance_scale(args.guidance.unwrap_or(guidance))
        .seed(args.seed);
    request = match args.size[..] {
        [] => request,
        [side] => request.size(side, side),
        [width, height] => request.size(width, height),
        _ => return Err("--size: expected a size such as 512 or 768x512".into()),
    };
    if let Some(eta) = args.eta {
        request = request.eta(eta);
    }
    if let Some(scheduler) = args.scheduler {
        request = request.scheduler_name(scheduler);
    }
    // All of them before the model is read: a mistake shows at once.
    let mut requests = Vec::new();
    for row in 0..y.values.len() {
        for column in 0..x.values.len() {
            requests.push(x.apply(column, y.apply(row, request.clone())?)?);
        }
    }

    let mut builder = Pipeline::builder()
        .weights(args.model.unwrap_or_else(emoji_model))
        .device(args.device);
    if let Some(dtype) = &args.dtype {
        builder = builder.dtype(device::parse_dtype(dtype)?);
    }
    let pipe = builder.build()?;
    let bar = ProgressBar::new(requests.len() as u64);
    let mut cells = Vec::new();
    for (request, i) in requests.iter().zip(0..) {
        let cell = match pipe.generate(request) {
            Ok(mut output) => output.images.pop().ok_or("no picture".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &cell {
            let count = x.values.len();
            let cell = format!("{}, {}", y.values[i / count], x.values[i % count]);
            bar.suspend(|| eprintln!("warning: {cell}: {error}"));
        }
        cells.push(cell);
        bar.inc(1);
    }
    bar.finish();
    if cells.iter().all(Result::is_err) {
        return Err("no picture could be made; the warnings above say why".into());
    }
    let path = args.output.display();
    media::save(&draw(&x, &y, &cells, args.cell)?, &args.output, None)?;
    println!("{path}");
    Ok(())
}

fn main() -> ExitCode {
    diffusion_examples::finish(run(Args::parse()))
}
