"""What the tests share: the emoji model and the recorded runs of diffusers."""

import json
import struct
from pathlib import Path

import diffusion_py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "examples/models/emoji"
PROMPT = "a red heart, flat style"


def read_safetensors(path):
    """The float32 tensors of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], "<f4").reshape(entry["shape"])
    return tensors


@pytest.fixture(scope="session")
def pipe():
    return diffusion_py.Pipeline.from_pretrained(EMOJI)


@pytest.fixture(scope="session")
def recorded():
    """A function from a case's name to its settings and tensors."""
    goldens = ROOT / "tests/goldens"
    cases = {
        case["name"]: case for case in json.loads((goldens / "runs.json").read_text())["cases"]
    }
    return lambda name: (cases[name], read_safetensors(goldens / f"runs/{name}.safetensors"))


@pytest.fixture
def short():
    """Arguments of a run of a second or so."""
    return {"prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 5, "seed": 1}
