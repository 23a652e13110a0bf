//! docs/REQUEST.md has a row for each field of a request, with range, default, effect and source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use diffusion_tests::TestResult;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> TestResult {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sources(&path, found)?,
            false if path.extension().is_some_and(|ending| ending == "rs") => found.push(path),
            false => {}
        }
    }
    Ok(())
}

/// The names behind `pub fn` of the `impl GenerateRequest` blocks of a file, those of constructors apart.
fn methods(source: &str, setters: &mut BTreeSet<String>, constructors: &mut BTreeSet<String>) {
    for block in source.split("\nimpl GenerateRequest {\n").skip(1) {
        let block = block.split("\n}\n").next().unwrap_or_default();
        for signature in block.split("\n    pub fn ").skip(1) {
            let signature = signature.split('{').next().unwrap_or_default();
            let name = signature.split(['(', '<']).next().unwrap_or_default();
            let is_setter = signature.contains("self") && signature.contains("-> Self");
            let is_constructor = !signature.contains("self") && signature.contains("-> Self");
            match (is_setter, is_constructor) {
                (true, _) => setters.insert(name.to_owned()),
                (_, true) => constructors.insert(name.to_owned()),
                _ => continue,
            };
        }
    }
}

#[test]
fn every_field_has_a_row() -> TestResult {
    let mut files = Vec::new();
    sources(&root().join("diffusion-core/src/pipeline"), &mut files)?;
    let (mut setters, mut constructors) = (BTreeSet::new(), BTreeSet::new());
    for file in files {
        methods(&fs::read_to_string(file)?, &mut setters, &mut constructors);
    }
    assert!(
        setters.len() > 40 && constructors.len() == 5,
        "{setters:?} {constructors:?}"
    );

    let page = fs::read_to_string(root().join("docs/REQUEST.md"))?;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let (mut fields, mut made) = (BTreeSet::new(), BTreeSet::new());
    for row in rows {
        let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").collect();
        let name = cells[0].split(['`', '(']).next().unwrap_or_default();
        match cells.len() {
            2 => made.insert(name.to_owned()),
            5 => {
                let [_, range, default, effect, _] = cells[..] else {
                    continue;
                };
                for cell in [range, default, effect] {
                    assert!(!cell.trim().is_empty(), "{name}: an empty cell");
                }
                fields.insert(name.to_owned())
            }
            count => return Err(format!("{name}: {count} cells").into()),
        };
    }
    assert_eq!(fields, setters);
    assert_eq!(made, constructors);
    Ok(())
}
