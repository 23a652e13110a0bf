//! The arrows between the rooms of diffusion-core point one way.

use std::fs;
use std::path::Path;

use diffusion_tests::TestResult;

/// Each room and the rooms that it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("clip_vocab", &[]),
    ("config", &["error"]),
    ("device", &["error"]),
    ("rng", &["error"]),
    ("media", &["error"]),
    ("nn", &["error", "device"]),
    ("model", &["error", "clip_vocab", "config", "device", "nn"]),
    (
        "weights",
        &["error", "clip_vocab", "config", "device", "nn"],
    ),
    ("denoise", &["error", "config", "device", "nn", "model"]),
    // Solvers never see a model.
    ("scheduler", &["error", "config", "denoise", "rng"]),
    (
        "pipeline",
        &[
            "error",
            "config",
            "device",
            "rng",
            "media",
            "nn",
            "model",
            "weights",
            "denoise",
            "scheduler",
        ],
    ),
];

/// The paths behind `crate::` in a source text, without its tests and comments.
fn used_paths(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':'))
                .collect()
        })
        .collect()
}

fn check_file(room: &str, path: &Path, problems: &mut Vec<String>) -> TestResult {
    let (_, allowed) = ARROWS
        .iter()
        .find(|(name, _)| *name == room)
        .ok_or_else(|| format!("the room {room} has no entry in ARROWS"))?;
    for used in used_paths(&fs::read_to_string(path)?) {
        let is_own = used == room || used.starts_with(&format!("{room}::"));
        let is_allowed = allowed
            .iter()
            .any(|name| used == *name || used.starts_with(&format!("{name}::")));
        if !is_own && !is_allowed {
            problems.push(format!("{}: {room} must not use {used}", path.display()));
        }
    }
    Ok(())
}

fn check_folder(room: &str, folder: &Path, problems: &mut Vec<String>) -> TestResult {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            check_folder(room, &path, problems)?;
        } else {
            check_file(room, &path, problems)?;
        }
    }
    Ok(())
}

#[test]
fn arrows_point_one_way() -> TestResult {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../diffusion-core/src");
    let mut problems = Vec::new();
    let mut rooms = 0;
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        let room = path
            .file_stem()
            .and_then(|name| name.to_str())
            .ok_or("not a name")?
            .to_owned();
        if room == "lib" {
            continue;
        }
        rooms += 1;
        match path.is_dir() {
            true => check_folder(&room, &path, &mut problems)?,
            false => check_file(&room, &path, &mut problems)?,
        }
    }
    assert_eq!(rooms, ARROWS.len(), "rooms of the crate");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[test]
fn a_path_is_read_from_code_alone() {
    let source = "use crate::nn::{Linear};\n// crate::pipeline\nfn f(x: crate::model::Vae) {}\n\
                  #[cfg(test)]\nuse crate::pipeline;";
    assert_eq!(used_paths(source), ["nn::", "model::Vae"]);
}
