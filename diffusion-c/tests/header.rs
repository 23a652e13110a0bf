//! `include/diffusion.h` is what cbindgen makes of the sources, and is C99 and C++11.

use std::path::Path;
use std::process::Command;

const UPDATE: &str = "DIFFUSION_UPDATE_HEADER";

fn header_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include/diffusion.h")
}

#[test]
fn header_is_up_to_date() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))?;
    let mut made = Vec::new();
    cbindgen::generate_with_config(root, config)?.write(&mut made);
    let made = String::from_utf8(made)?;
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(header_path(), &made)?;
    }
    let committed = std::fs::read_to_string(header_path()).unwrap_or_default();
    assert!(
        committed.replace("\r\n", "\n") == made,
        "diffusion.h differs from what cbindgen makes of the sources; write it anew with \
         `{UPDATE}=1 cargo test -p diffusion-c`"
    );
    Ok(())
}

#[test]
#[cfg(unix)]
fn header_is_c99_and_cpp11() {
    for (compiler, language, standard) in [("gcc", "c", "-std=c99"), ("g++", "c++", "-std=c++11")] {
        let mut command = Command::new(compiler);
        command
            .args([standard, "-x", language, "-fsyntax-only"])
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"])
            .arg(header_path());
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => panic!("{compiler}: {error}; this test needs gcc and g++"),
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compiler} {standard}:\n{errors}");
    }
}
