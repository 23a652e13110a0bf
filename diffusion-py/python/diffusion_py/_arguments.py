"""Arguments of users to what the native half takes."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

from .errors import InvalidArgumentError

Path: TypeAlias = "str | os.PathLike[str]"
Pair: TypeAlias = "tuple[SupportsIndex, SupportsIndex]"
Strength: TypeAlias = "SupportsFloat | Mapping[str, SupportsFloat]"
LoraScale: TypeAlias = "tuple[float, float, list[tuple[str, float]]]"
Embeds: TypeAlias = "tuple[tuple[bytes, list[int]], tuple[bytes, list[int]] | None]"
Sizes: TypeAlias = "tuple[tuple[int, int] | None, tuple[int, int], tuple[int, int] | None]"


def whole(name: str, value: SupportsIndex) -> int:
    """A number from 0 to 2**64 - 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, found {value!r}") from None
    if not 0 <= number < 2**64:
        raise InvalidArgumentError(f"{name}: expected a number from 0 to 2**64 - 1, found {number}")
    return number


def optional_whole(name: str, value: SupportsIndex | None) -> int | None:
    """The same, or nothing."""
    return None if value is None else whole(name, value)


def pair(name: str, value: Pair) -> tuple[int, int]:
    """Two whole numbers."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{name}: expected two numbers, found {value!r}") from None
    return whole(name, first), whole(name, second)


def sizes(prefix: str, original: Pair | None, crop: Pair, target: Pair | None) -> Sizes:
    """What SDXL is told, checked; ``prefix`` is that of the arguments' names."""
    return (
        None if original is None else pair(f"{prefix}original_size", original),
        pair(f"{prefix}crops_coords_top_left", crop),
        None if target is None else pair(f"{prefix}target_size", target),
    )


def paths(name: str, values: Path | Iterable[Path] | None) -> list[str]:
    """One path or several."""
    return [path for path, _ in with_paths(name, values, None)]


def with_paths(name: str, values: Any, default: Any) -> list[tuple[str, Any]]:
    """Paths, each with what stands beside it in a pair, or else with ``default``."""
    if values is None:
        return []
    if isinstance(values, (str, os.PathLike)):
        values = [values]
    found = []
    for value in values:
        path, beside = value if isinstance(value, tuple) and len(value) == 2 else (value, default)
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{name}: expected a path, found {path!r}")
        found.append((os.fspath(path), beside))
    return found


def loras(values: Any) -> list[tuple[str, LoraScale]]:
    """LoRAs with the strength in the UNet, that in the text encoders, and factors for blocks."""
    return [(path, lora_scale(strength)) for path, strength in with_paths("loras", values, 1.0)]


def lora_scale(strength: Strength) -> LoraScale:
    """A number for everything, or numbers for ``unet``, ``text_encoder`` and blocks of the UNet."""
    if not isinstance(strength, Mapping):
        return number("loras", strength), number("loras", strength), []
    numbers = {key: number(f"loras: {key}", value) for key, value in strength.items()}
    parts = numbers.pop("unet", 1.0), numbers.pop("text_encoder", 1.0)
    return *parts, list(numbers.items())


def number(name: str, value: SupportsFloat) -> float:
    """A number, not its text."""
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{name}: expected a number, found {value!r}")
    return float(value)


def scheduler(scheduler: str | Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    """A name, or a configuration as strict JSON."""
    config: Any = scheduler
    if isinstance(scheduler, str):
        if not scheduler.lstrip().startswith("{"):
            return scheduler, None
        try:
            config = json.loads(scheduler)
        except ValueError as error:
            raise InvalidArgumentError(
                f"scheduler: expected a name or JSON, found {error}"
            ) from None
    if config is None:
        return None, None
    if not isinstance(config, Mapping):
        found = type(config).__name__
        raise TypeError(f"scheduler: expected a name, a mapping or JSON, found {found}")
    # diffusers writes infinite values, such as `lambda_min_clipped`, which JSON does not have. They
    # mean "no limit", as null does.
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in config.items()
    }
    return None, json.dumps(finite)
