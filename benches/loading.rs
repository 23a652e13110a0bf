//! How long a checkpoint of SD 1.5's size takes to be ready, against a plain read of the file, and how much
//! memory at the peak. Each turn is a process of its own.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use diffusion_benches::peak_memory;
use diffusion_core::Pipeline;
use diffusion_core::device::parse_dtype;
use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Tells a child process what to do: this variable holds `read` or a number format.
const TASK: &str = "DIFFUSION_LOADING_TASK";
const TASKS: [&str; 3] = ["read", "f16", "bf16"];
const ROUNDS: usize = 5;

fn main() -> Result {
    let folder = std::env::temp_dir().join("diffusion-loading");
    let path = folder.join("sd15-f16.safetensors");
    if let Ok(task) = std::env::var(TASK) {
        return turn(&task, &path);
    }
    fs::create_dir_all(&folder)?;
    let bytes = write_model(&path)?;
    let mut turns: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        for task in TASKS {
            let found = child(task)?;
            // The first round warms the page cache.
            if round > 0 {
                turns.entry(task).or_default().push(found);
            }
        }
    }
    fs::remove_dir_all(&folder)?;
    let median = |task: &str, of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = turns[task].iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!("{} MiB, medians of {ROUNDS}", bytes >> 20);
    for task in TASKS {
        let (seconds, peak) = (median(task, |turn| turn.0), median(task, |turn| turn.1));
        println!(
            "{task:5} {seconds:6.2} s, {:.2} of a plain read; peak {:5.0} MiB, {:.2} of the weights",
            seconds / median("read", |turn| turn.0),
            peak / 1024.0 / 1024.0,
            peak / bytes as f64,
        );
    }
    Ok(())
}

fn child(task: &str) -> Result<(f64, f64)> {
    let output = Command::new(std::env::current_exe()?)
        .env(TASK, task)
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    match numbers[..] {
        [seconds, peak] => Ok((seconds, peak)),
        _ => Err(format!("{task}: {text} {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Prints seconds and the highest resident memory in bytes.
fn turn(task: &str, path: &Path) -> Result {
    let start = Instant::now();
    let seconds = match task {
        "read" => {
            let bytes = fs::read(path)?;
            let seconds = start.elapsed();
            assert!(!bytes.is_empty());
            seconds
        }
        dtype => {
            let builder = Pipeline::builder().weights(path).dtype(parse_dtype(dtype)?);
            let pipeline = builder.build()?;
            let seconds = start.elapsed();
            assert_eq!(pipeline.default_size(), (512, 512));
            seconds
        }
    };
    let peak = peak_memory().ok_or("no VmHWM in /proc/self/status")?;
    println!("{} {}", seconds.as_secs_f64(), peak);
    Ok(())
}

/// Writes SD 1.5 in one file with random numbers, and returns the size of its weights.
fn write_model(path: &Path) -> Result<u64> {
    let names =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/full_size_names.json.gz");
    let models: Value = serde_json::from_reader(GzDecoder::new(File::open(names)?))?;
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(models["sd15"]["file"].clone())?;
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in &shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let tensor = json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), tensor);
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut state = 1u64;
    for _ in 0..end / 2 {
        // Numerical Recipes' generator; the sign, seven bits of the mantissa, and a size around 0.01.
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let bits = (state >> 48) as u16 & 0x807f | 0x2100;
        file.write_all(&bits.to_le_bytes())?;
    }
    file.flush()?;
    Ok(end as u64)
}
