"""Pictures and animations into files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

from . import _arguments, _arrays, _native
from ._arguments import Path
from .errors import InvalidArgumentError

__all__ = ["Provenance", "save_animation", "save_picture"]


@dataclass(frozen=True)
class Provenance:
    """How a picture came about, as text for its file: an entry of ``Output.provenance``. Empty texts are none."""

    parameters: str = ""
    """A1111's form, which most programs read: the prompt, the negative prompt, a line of settings."""

    record: str = ""
    """This library's form: JSON with all arguments that are data."""


def save_picture(image: Any, path: Path, provenance: Provenance | None = None) -> None:
    """Writes a picture, with how it came about, as PNG, JPEG or lossless WebP by the path's ending.

    Args:
        image: A ``PIL.Image.Image``, or uint8 ``(height, width, 3)`` with the buffer protocol.
        path: Where it goes.
        provenance: What its file says of it: an entry of ``Output.provenance``.

    Raises:
        UnsupportedError: Another ending, or texts of more than the 64 KiB that JPEG has for them.
        IoError: The file cannot be written.
    """
    said = provenance or Provenance()
    raw = _arrays.from_image("image", image)
    _native.save_picture(raw, path, (said.parameters or None, said.record or None))


def save_animation(
    frames: Iterable[Any], path: Path, delay: SupportsFloat = 0.08, plays: SupportsIndex = 0
) -> None:
    """Writes frames of one size as ``.webp`` or ``.png`` (APNG), both without loss, or ``.gif``.

    Args:
        frames: Pictures of the types that :func:`save_picture` takes.
        path: Where they go.
        delay: Seconds that each stands, from 0.001 to 65.
        plays: How often all are shown, up to 65535; 0 means without end.

    Raises:
        InvalidArgumentError: No frames, frames of several sizes, or a delay out of range.
        UnsupportedError: Another ending.
        IoError: The file cannot be written.
    """
    count = _arguments.whole("plays", plays)
    if count > 65535:
        raise InvalidArgumentError(f"plays: expected a number from 0 to 65535, found {count}")
    raw = [_arrays.from_image("frames", frame) for frame in frames]
    _native.save_animation(raw, path, delay, count)
