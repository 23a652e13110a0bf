#!/usr/bin/env bash
# One seed, one picture: the examples in Rust, C and Python write the same pixels. Needs what
# diffusion-py/test.sh leaves behind: the virtual environment with the wheel in it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${CARGO_TARGET_DIR:-$root/target}"
target=$(cd "${CARGO_TARGET_DIR:-$root/target}" && pwd)
export CARGO_TARGET_DIR=$target
out=$target/same-picture
mkdir -p "$out"
cd "$root"

prompt="a red heart, flat style"
cargo build --release --locked --example txt2img
cargo build --release --locked -p diffusion-c
"$target/release/examples/txt2img" "$prompt" --seed 1 -o "$out/rust.png"
gcc -std=c99 -Idiffusion-c/include examples/c/txt2img.c -o "$out/txt2img" \
    -L"$target/release" -ldiffusion -Wl,-rpath,"$target/release"
"$out/txt2img" examples/models/emoji "$prompt" "$out/c.ppm" 1 >/dev/null
"$target/py-venv/bin/python" examples/python/txt2img.py "$prompt" --seed 1 -o "$out/python.png" \
    >/dev/null

"$target/py-venv/bin/python" - "$out" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image

out = Path(sys.argv[1])
pictures = {name: Image.open(out / name) for name in ["rust.png", "c.ppm", "python.png"]}
pixels = {name: picture.convert("RGB").tobytes() for name, picture in pictures.items()}
assert all(picture.size == (128, 128) for picture in pictures.values())
assert len(set(pixels["rust.png"])) > 16, "an empty picture"
different = [name for name in pixels if pixels[name] != pixels["rust.png"]]
sys.exit(f"other pixels than Rust's: {different}" if different else 0)
PYTHON
echo "same picture: ok"
