#!/usr/bin/env bash
# Builds the wheel, installs it into a virtual environment of its own and runs the tests.
# Arguments go to pytest. Needs cargo and Python 3.10 or newer; PYTHON names another than python3.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${CARGO_TARGET_DIR:-$here/../target}"
target=$(cd "${CARGO_TARGET_DIR:-$here/../target}" && pwd)
# A relative one would mean another place from here on.
export CARGO_TARGET_DIR=$target
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONDONTWRITEBYTECODE=1

cd "$here"
venv=$target/py-venv
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --requirement tests/requirements.txt

# Of several wheels, say of two versions, pip would get them all.
rm -rf "$target/py-wheels"
"$venv/bin/maturin" build --release --locked \
    --interpreter "$venv/bin/python" --out "$target/py-wheels"
"$venv/bin/python" -m pip install --quiet --no-deps --no-index --force-reinstall \
    "$target"/py-wheels/*.whl

"$venv/bin/python" -m mypy --strict --cache-dir "$target/mypy-cache" \
    --python-executable "$venv/bin/python" -p diffusion_py
"$venv/bin/python" -m pytest "$@"
