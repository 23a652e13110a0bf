"""Stable Diffusion in Rust: a prompt becomes a picture.

>>> import diffusion_py
>>> pipe = diffusion_py.Pipeline.from_pretrained("examples/models/emoji")
>>> out = pipe.generate("a red heart, flat style", num_inference_steps=25, guidance_scale=5, seed=1)
>>> out.save("heart.png")

Importing the package imports neither numpy nor Pillow; each is needed only for the outputs that
are made of it.
"""

from ._controls import Control, ControlNet, T2IAdapter
from ._files import Provenance, Recalled, read_request, save_animation, save_picture
from ._native import Progress, __version__, schedulers, sigma_schedules
from ._pipeline import LoraReport, Output, Pipeline
from ._start import Hires
from .errors import (
    Cancelled,
    DeviceError,
    DiffusionError,
    FormatError,
    InvalidArgumentError,
    IoError,
    NotFoundError,
    OutOfMemoryError,
    UnsupportedError,
    WeightsError,
)

__all__ = [
    "Cancelled",
    "Control",
    "ControlNet",
    "DeviceError",
    "DiffusionError",
    "FormatError",
    "Hires",
    "InvalidArgumentError",
    "IoError",
    "LoraReport",
    "NotFoundError",
    "Output",
    "OutOfMemoryError",
    "Pipeline",
    "Progress",
    "Provenance",
    "Recalled",
    "T2IAdapter",
    "UnsupportedError",
    "WeightsError",
    "__version__",
    "read_request",
    "save_animation",
    "save_picture",
    "schedulers",
    "sigma_schedules",
]
