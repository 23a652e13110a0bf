"""What files say of their pictures, as arguments of a call."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import _native
from ._arguments import Path
from ._networks import SEAMLESS, DeepShrink
from ._start import Hires

__all__ = ["Recalled", "read_request"]


@dataclass(frozen=True)
class Recalled:
    """What :func:`read_request` found."""

    arguments: dict[str, Any]
    """Arguments of :meth:`Pipeline.generate`."""

    model: str | None
    """The name of the model."""

    warnings: list[str]
    """What keeps the arguments from giving the same picture: pictures, latents and LoRAs that must
    be given again, settings that are not known."""


def _same(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


def _sizes(prefix: str) -> Callable[[Any], dict[str, Any]]:
    names = [("original_size", "original"), ("crops_coords_top_left", "crop"), ("target_size", "target")]
    # Widths come first in the record.
    return lambda sizes: {
        prefix + name: tuple(reversed(sizes[part])) for name, part in names if sizes[part] is not None
    }


def _hires(hires: dict[str, Any]) -> dict[str, Any]:
    ((kind, filter),) = hires["upscaler"].items()
    # Bilinear interpolation is what has no name there.
    latent = f"latent_{filter}".replace("_bilinear", "")
    upscaler: Any = {"latents": latent, "pixels": filter}[kind]
    (width, height), strength = hires["size"], hires["strength"]
    return {"hires": Hires(width, height, upscaler, strength, hires["num_steps"], hires["prompt"])}


def _seamless(seamless: dict[str, bool]) -> dict[str, Any]:
    wanted = seamless["x"], seamless["y"]
    return {"seamless": next(name for name, found in SEAMLESS.items() if found == wanted)}


def _tiling(tiling: Any) -> dict[str, Any]:
    if isinstance(tiling, str):
        return {"vae_tiling": tiling}
    return {"vae_tiling": (tiling["tiles"]["size"], tiling["tiles"]["overlap"])}


def _deep_shrink(shrink: dict[str, Any]) -> dict[str, Any]:
    window = {"start": shrink["start"], "end": shrink["end"]}
    return {"deep_shrink": DeepShrink(**shrink["shrink"], **window)}


# Each field of a request that is data, and what it is in Python. A later one counts where two are the same.
FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    **{
        name: _same(name)
        for name in [
            "prompt",
            "prompt_2",
            "negative_prompt",
            "negative_prompt_2",
            "prompt_syntax",
            "clip_skip",
            "aesthetic_score",
            "negative_aesthetic_score",
            "width",
            "height",
            "guidance_scale",
            "guidance_rescale",
            "image_guidance_scale",
            "cfg_zero_star",
            "seed",
            "num_images",
            "batch_size",
            "eta",
            "scheduler",
            "resize_mode",
            "strength",
            "mask_blur",
            "paste_back",
            "masked_content",
            "denoising_start",
            "denoising_end",
            "deep_cache",
            "tgate",
            "token_merging",
            "pag_scale",
            "pag_adaptive_scale",
            "vae_slicing",
        ]
    },
    "num_steps": _same("num_inference_steps"),
    "only_masked": _same("padding_mask_crop"),
    "pag_layers": _same("pag_applied_layers"),
    "sizes": _sizes(""),
    "negative_sizes": _sizes("negative_"),
    "guidance_curve": lambda curve: {"guidance_scale": curve} if curve else {},
    "guidance_interval": lambda window: {"guidance_interval": (window["start"], window["end"])},
    "variation": lambda varied: {"variation": (varied["seed"], varied["strength"])},
    "margins": lambda sides: {"margins": tuple(sides[s] for s in ("left", "top", "right", "bottom"))},
    # The models that take instructions take a picture as one here.
    "is_instruction": lambda _: {},
    "hires": _hires,
    "deep_shrink": _deep_shrink,
    "seamless": _seamless,
    "vae_tiling": _tiling,
}


def arguments(fields: dict[str, Any]) -> dict[str, Any]:
    """A request's fields as arguments of a call."""
    unknown = fields.keys() - FIELDS.keys()
    if unknown:
        raise TypeError(f"fields without an argument: {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {}
    for name, convert in FIELDS.items():
        if fields.get(name) is not None:
            found |= convert(fields[name])
    return found


def read_request(path: Path) -> Recalled:
    """Reads how a picture came about: what this library writes, or A1111 and programs like it.

    >>> found = diffusion_py.read_request("heart.png")
    >>> again = pipe.generate(**found.arguments)

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is not a picture, or says nothing.
    """
    text, model, warnings = _native.recall(path)
    return Recalled(arguments(json.loads(text)), model, warnings)
