"""Pictures that a run follows, and the networks that read them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeAlias

from . import _arrays
from ._arguments import Path
from ._native import NativeControlModel, NativePipeline
from .errors import InvalidArgumentError

__all__ = ["Control", "ControlNet", "T2IAdapter"]

Picture: TypeAlias = "tuple[bytes, int, int]"


class ControlNet:
    """A network that runs beside the UNet and follows a picture. Made by :meth:`open`.

    Calls and threads may share one.
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativeControlModel) -> None:
        self._native = native

    @classmethod
    def open(cls, path: Path, *, dtype: object = None, device: object = "cpu") -> ControlNet:
        """Loads a folder as diffusers saves it, one file, or an id of the Hugging Face Hub.

        Args:
            path: As in :meth:`Pipeline.from_pretrained`.
            dtype: As in :meth:`Pipeline.from_pretrained`.
            device: That of the pipeline.

        Raises:
            NotFoundError: There is no such path.
            FormatError: A file is damaged.
            WeightsError: Tensors are missing or do not fit.
        """
        return cls(_open(path, False, dtype, device))


class T2IAdapter:
    """A network that runs once and follows a picture. Made by :meth:`open`.

    Calls and threads may share one.
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativeControlModel) -> None:
        self._native = native

    @classmethod
    def open(cls, path: Path, *, dtype: object = None, device: object = "cpu") -> T2IAdapter:
        """Loads a folder or file; as :meth:`ControlNet.open`."""
        return cls(_open(path, True, dtype, device))


def _open(path: Path, is_adapter: bool, dtype: object, device: object) -> NativeControlModel:
    name = None if dtype is None else str(dtype)
    return NativeControlModel.open(path, is_adapter, name, str(device))


@dataclass(frozen=True)
class Control:
    """A picture that a run shall follow, and how: for ``control`` of :meth:`Pipeline.generate`."""

    model: ControlNet | T2IAdapter | Path
    """The network, or the path of a ControlNet, which is then loaded anew for each run."""

    image: Any
    """The picture, prepared as the network was trained (edges, depth, a pose): a
    ``PIL.Image.Image``, or uint8 ``(height, width, 3)`` as a numpy array or anything else with
    the buffer protocol. It is resized as diffusers does."""

    scale: SupportsFloat = 1.0
    """The strength."""

    start: SupportsFloat = 0.0
    """The share of the steps, from 0 to 1, that are done without it at first."""

    end: SupportsFloat = 1.0
    """The share of the steps, from ``start`` to 1, behind which it is left out."""

    guess_mode: bool = False
    """Whether a ControlNet is followed without the prompt's help; guidance of 3 to 5 suits."""


def controls(
    pipe: NativePipeline, values: Control | Iterable[Control]
) -> list[tuple[NativeControlModel, Picture, SupportsFloat, SupportsFloat, SupportsFloat, bool]]:
    """One control or several, as the native half takes them."""
    values = [values] if isinstance(values, Control) else list(values)
    found = []
    for control in values:
        if not isinstance(control, Control):
            raise TypeError(f"control: expected Control, found {type(control).__name__}")
        picture = _arrays.from_image("control", control.image)
        model = control.model
        if isinstance(model, (str, os.PathLike)):
            native = pipe.open_control_net(model)
        elif isinstance(model, (ControlNet, T2IAdapter)):
            native = model._native
        else:
            expected = "a ControlNet, a T2IAdapter or a path"
            raise TypeError(f"control: expected {expected}, found {type(model).__name__}")
        found.append(
            (native, picture, control.scale, control.start, control.end, control.guess_mode)
        )
    return found


def ip_adapter_images(
    images: Any, scale: SupportsFloat | Iterable[SupportsFloat]
) -> list[tuple[list[Picture], SupportsFloat]]:
    """A picture, or an entry for each IP-Adapter, with their strengths."""
    if images is None:
        return []
    each = list(images) if isinstance(images, (list, tuple)) else [images]
    scales = list(scale) if isinstance(scale, Iterable) else [scale] * len(each)
    if len(scales) != len(each):
        expected = f"a number, or one for each of {len(each)} adapters"
        raise InvalidArgumentError(f"ip_adapter_scale: expected {expected}, found {len(scales)}")
    pictures = [
        [
            _arrays.from_image("ip_adapter_image", image)
            for image in (entry if isinstance(entry, (list, tuple)) else [entry])
        ]
        for entry in each
    ]
    return list(zip(pictures, scales))
