"""What a run starts from beside noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

from . import _arguments, _arrays
from .errors import InvalidArgumentError

__all__ = ["Hires"]

Upscaler: TypeAlias = Literal[
    "latent",
    "latent_nearest",
    "latent_antialiased",
    "latent_bicubic",
    "latent_bicubic_antialiased",
    "nearest",
    "bilinear",
    "bicubic",
    "lanczos",
]


@dataclass(frozen=True)
class Hires:
    """A second pass over the picture in a larger size, which keeps the composition that the model finds
    at the size that it knows: the cure for doubled heads. A1111's "Hires. fix".
    """

    width: SupportsIndex
    """In pixels, a multiple of 8."""

    height: SupportsIndex
    """As ``width``."""

    upscaler: Upscaler = "latent"
    """How the picture becomes larger: its latents, or its pixels by Pillow's filters."""

    strength: SupportsFloat = 0.7
    """How much the second pass changes, from 0 to 1."""

    num_inference_steps: SupportsIndex | None = None
    """The steps of which the second pass does its share. Default: those of the call."""

    prompt: str | None = None
    """The prompt of the second pass. Default: that of the call."""


def start(
    image: Any,
    mask_image: Any,
    noise: Any,
    margins: Any,
    variation: tuple[SupportsIndex, SupportsFloat] | None,
    hires: Hires | None,
    **others: Any,
) -> dict[str, Any]:
    """The arguments as the native half takes them."""
    pictures, latents = _pictures(image)
    sides = None
    if margins is not None:
        sides = tuple(_arguments.whole("margins", side) for side in margins)
        if len(sides) != 4:
            expected = "left, top, right and bottom"
            raise InvalidArgumentError(f"margins: expected {expected}, found {margins!r}")
    if variation is not None:
        seed, strength = variation
        variation = (_arguments.whole("variation", seed), strength)
    if hires is not None and not isinstance(hires, Hires):
        raise TypeError(f"hires: expected Hires, found {type(hires).__name__}")
    return others | {
        "pictures": pictures,
        "latents": latents,
        "noise": None if noise is None else _arrays.from_array("noise", noise),
        "mask": None if mask_image is None else _arrays.from_mask("mask_image", mask_image),
        "margins": sides,
        "variation": variation,
        "hires": None if hires is None else _second_pass(hires),
    }


def _pictures(image: Any) -> tuple[list[Any], Any]:
    """Pictures, or latents, which are float32 of four dimensions."""
    if image is None:
        return [], None
    if isinstance(image, (list, tuple)):
        return [_arrays.from_image("image", picture) for picture in image], None
    if _arrays.is_picture(image):
        return [_arrays.from_image("image", image)], None
    return [], _arrays.from_array("image", image)


def _second_pass(hires: Hires) -> tuple[Any, ...]:
    size = (_arguments.whole("width", hires.width), _arguments.whole("height", hires.height))
    steps = _arguments.optional_whole("num_inference_steps", hires.num_inference_steps)
    return size, hires.upscaler, hires.strength, steps, hires.prompt


def scales(scale: SupportsFloat | Iterable[SupportsFloat]) -> dict[str, Any]:
    """One scale of guidance, or some along the run."""
    if isinstance(scale, str):
        raise TypeError(f"guidance_scale: expected a number or some, found {scale!r}")
    if not isinstance(scale, Iterable):
        return {"scale": scale, "curve": []}
    curve = list(scale)
    if not curve:
        raise InvalidArgumentError("guidance_scale: expected a number or some, found none")
    return {"scale": curve[0], "curve": curve}
