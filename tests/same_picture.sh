#!/usr/bin/env bash
# One seed, one picture: the examples in Rust, C and Python write the same pixels, with a LoRA too. Needs what
# diffusion-py/test.sh leaves behind: the virtual environment with the wheel in it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${CARGO_TARGET_DIR:-$root/target}"
target=$(cd "${CARGO_TARGET_DIR:-$root/target}" && pwd)
export CARGO_TARGET_DIR=$target
out=$target/same-picture
python=$target/py-venv/bin/python
mkdir -p "$out"
cd "$root"

cargo build --release --locked --example txt2img
cargo build --release --locked -p diffusion-c
gcc -std=c99 -Idiffusion-c/include examples/c/txt2img.c -o "$out/txt2img" \
    -L"$target/release" -ldiffusion -Wl,-rpath,"$target/release"

# A name for the pictures, a model, and a LoRA if there is a third argument.
draw() {
    local name=$1 model=$2 prompt="a red heart, flat style"
    local lora=("${@:3}")
    local options=(--model "$model" --guidance 5 --seed 1 "${lora[@]/#/--lora=}")
    "$target/release/examples/txt2img" "$prompt" "${options[@]}" -o "$out/$name-rust.png"
    "$out/txt2img" "$model" "$prompt" "$out/$name-c.ppm" 1 "${lora[@]}" >/dev/null
    "$python" examples/python/txt2img.py "$prompt" "${options[@]}" -o "$out/$name-python.png" \
        >/dev/null
}

tiny=tests/goldens/models/sd15
draw emoji examples/models/emoji
draw tiny $tiny
draw lora $tiny tests/goldens/loras/kohya_a.safetensors

"$python" - "$out" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image

out = Path(sys.argv[1])


def picture(name):
    return Image.open(out / name).convert("RGB")


seen = {}
for name, size in [("emoji", 128), ("tiny", 64), ("lora", 64)]:
    rust = picture(f"{name}-rust.png")
    assert rust.size == (size, size)
    seen[name] = rust.tobytes()
    assert len(set(seen[name])) > 16, "an empty picture"
    others = [f"{name}-c.ppm", f"{name}-python.png"]
    different = [other for other in others if picture(other).tobytes() != seen[name]]
    if different:
        sys.exit(f"other pixels than Rust's: {different}")
assert seen["lora"] != seen["tiny"], "the LoRA changed nothing"
PYTHON
echo "same picture: ok"
