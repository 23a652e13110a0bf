"""What the tests share: the emoji model and the recorded runs of diffusers."""

import json
import struct
from pathlib import Path

import diffusion_py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "examples/models/emoji"
GOLDENS = ROOT / "tests/goldens"
SD15 = GOLDENS / "models/sd15"
PROMPT = "a red heart, flat style"


DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "|u1"}


def read_safetensors(path):
    """The tensors of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[start:end], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors, metadata):
    """A safetensors file of tensors and texts."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        dtype = names[tensor.dtype.str]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tiny_run(pipe, prompt="a heart", **arguments):
    """The latents of a run of the tiny models, in well under a second."""
    size = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}
    return pipe.generate(prompt, **{**size, "output_type": "latent", **arguments}).images


@pytest.fixture(scope="session")
def pipe():
    return diffusion_py.Pipeline.from_pretrained(EMOJI)


@pytest.fixture(scope="session")
def recorded():
    """A function from a case's name to its settings and tensors."""
    cases = {
        case["name"]: case for case in json.loads((GOLDENS / "runs.json").read_text())["cases"]
    }
    return lambda name: (cases[name], read_safetensors(GOLDENS / f"runs/{name}.safetensors"))


@pytest.fixture
def short():
    """Arguments of a run of a second or so."""
    return {"prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 5, "seed": 1}
