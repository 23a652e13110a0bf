"""Stable Diffusion in Rust: a prompt becomes a picture.

>>> import diffusion_py
>>> pipe = diffusion_py.Pipeline.from_pretrained("examples/models/emoji")
>>> out = pipe.generate("a red heart, flat style", num_inference_steps=25, guidance_scale=5, seed=1)
>>> out.save("heart.png")

Importing the package imports neither numpy nor Pillow; each is needed only for the outputs that
are made of it.
"""

from ._controls import Control, ControlNet, T2IAdapter
from ._files import Provenance, save_animation, save_picture
from ._native import CancelToken, Progress, __version__, schedulers, sigma_schedules
from ._networks import DeepShrink
from ._output import LoraReport, Output
from ._pipeline import Pipeline
from ._recall import Recalled, read_request
from ._safety import SafetyChecker, SafetyReport
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
    "CancelToken",
    "Cancelled",
    "Control",
    "ControlNet",
    "DeepShrink",
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
    "SafetyChecker",
    "SafetyReport",
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
