"""What happens within the networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

from . import _arguments
from .errors import InvalidArgumentError

__all__ = ["DeepShrink"]

Seamless: TypeAlias = "bool | Literal['x', 'y']"

VaeTiling: TypeAlias = "Literal['off', 'auto'] | tuple[SupportsIndex, SupportsFloat]"

# Both directions of each, x before y.
SEAMLESS: dict[bool | str, tuple[bool, bool]] = {
    False: (False, False),
    True: (True, True),
    "x": (True, False),
    "y": (False, True),
}


@dataclass(frozen=True)
class DeepShrink:
    """Smaller inner levels in the first part of a run, so that a picture larger than those that the model
    knows is laid out as one. Kohya's Deep Shrink.
    """

    block: SupportsIndex = 3
    """Behind which output of the UNet's way down, as ComfyUI counts its input blocks: 3 is the first
    downsampling in Stable Diffusion."""

    factor: SupportsFloat = 2.0
    """What both sides are divided by, from 1 to 16."""

    after_skip: bool = True
    """Whether the skip keeps its size."""

    start: SupportsFloat = 0.0
    """From which share of the model's timesteps on, from 0 (pure noise) to 1."""

    end: SupportsFloat = 0.35
    """To which."""


def networks(
    *,
    pag_scale: SupportsFloat,
    pag_adaptive_scale: SupportsFloat,
    pag_applied_layers: str | Iterable[str],
    deep_shrink: DeepShrink | None,
    deep_cache: SupportsIndex,
    tgate: SupportsIndex | None,
    token_merging: SupportsFloat,
    seamless: Seamless,
    vae_tiling: VaeTiling | None,
    vae_slicing: bool,
) -> dict[str, Any]:
    """The arguments as the native half takes them."""
    layers = pag_applied_layers
    return {
        "pag": (pag_scale, pag_adaptive_scale, [layers] if isinstance(layers, str) else list(layers)),
        "deep_shrink": None if deep_shrink is None else _shrink(deep_shrink),
        "deep_cache": _arguments.whole("deep_cache", deep_cache),
        "tgate": _arguments.optional_whole("tgate", tgate),
        "token_merging": token_merging,
        "seamless": _directions(seamless),
        "vae_tiling": _tiling(vae_tiling),
        "vae_slicing": vae_slicing,
    }


def _shrink(shrink: DeepShrink) -> tuple[int, SupportsFloat, bool, SupportsFloat, SupportsFloat]:
    if not isinstance(shrink, DeepShrink):
        raise TypeError(f"deep_shrink: expected DeepShrink, found {type(shrink).__name__}")
    block = _arguments.whole("deep_shrink block", shrink.block)
    return block, shrink.factor, shrink.after_skip, shrink.start, shrink.end


def _directions(seamless: Seamless) -> tuple[bool, bool]:
    if not isinstance(seamless, (bool, str)):
        raise TypeError(f"seamless: expected a bool, 'x' or 'y', found {type(seamless).__name__}")
    if seamless not in SEAMLESS:
        raise InvalidArgumentError(f"seamless: expected a bool, 'x' or 'y', found {seamless!r}")
    return SEAMLESS[seamless]


def _tiling(tiling: VaeTiling | None) -> str | tuple[int, SupportsFloat] | None:
    if tiling is None or isinstance(tiling, str):
        return tiling
    try:
        size, overlap = tiling
    except (TypeError, ValueError):
        expected = "'off', 'auto', or a tile's side and overlap"
        raise TypeError(f"vae_tiling: expected {expected}, found {tiling!r}") from None
    return _arguments.whole("vae_tiling", size), overlap
