//! `include/diffusion.h` is what cbindgen makes of the sources, and is C99 and C++11.

use std::error::Error;
use std::path::Path;

const UPDATE: &str = "DIFFUSION_UPDATE_HEADER";

fn made_of_sources() -> Result<String, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))?;
    let mut made = Vec::new();
    cbindgen::generate_with_config(root, config)?.write(&mut made);
    Ok(String::from_utf8(made)?)
}

#[test]
fn header_is_up_to_date() -> Result<(), Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/diffusion.h");
    let made = made_of_sources()?;
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &made)?;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed.replace("\r\n", "\n") == made,
        "diffusion.h differs from what cbindgen makes of the sources; write it anew with \
         `{UPDATE}=1 cargo test -p diffusion-c`"
    );
    Ok(())
}

#[test]
#[cfg(unix)]
fn header_is_c99_and_cpp11() -> Result<(), Box<dyn Error>> {
    use std::io::Write;
    use std::process::{Command, Stdio};

    let made = made_of_sources()?;
    for (compiler, language, standard) in [("gcc", "c", "-std=c99"), ("g++", "c++", "-std=c++11")] {
        let mut child = Command::new(compiler)
            .args([standard, "-x", language, "-fsyntax-only"])
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{compiler}: {e}; this test needs gcc and g++"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(made.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compiler} {standard}:\n{errors}");
    }
    Ok(())
}
