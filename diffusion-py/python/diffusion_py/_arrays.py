"""Bytes and shapes to pictures and arrays, and back. numpy and Pillow are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy
    import PIL.Image


def import_numpy() -> Any:
    """The numpy module, or an ``ImportError`` that says how to get it."""
    try:
        import numpy
    except ImportError as error:
        raise ImportError(
            "this needs numpy, which is optional: pip install 'diffusion-py[numpy]'"
        ) from error
    return numpy


def import_pil() -> Any:
    """The ``PIL.Image`` module, or an ``ImportError`` that says how to get it."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError(
            'output_type="pil" needs Pillow, which is optional: '
            "pip install 'diffusion-py[pil]'; output_type=\"np\" needs numpy only"
        ) from error
    return PIL.Image


def to_numpy(data: bytearray, shape: list[int]) -> numpy.ndarray[Any, Any]:
    """A float32 array over ``data``, without a copy."""
    array: numpy.ndarray[Any, Any] = import_numpy().frombuffer(data, dtype="float32")
    return array.reshape(shape)


def to_pil(data: bytearray, shape: list[int]) -> list[PIL.Image.Image]:
    """Pictures from RGB bytes of shape ``(n, height, width, 3)``."""
    image = import_pil()
    count, height, width, _ = shape
    size = len(data) // count
    return [
        image.frombytes("RGB", (width, height), bytes(data[i * size : (i + 1) * size]))
        for i in range(count)
    ]


def from_array(latents: Any) -> tuple[bytes, list[int]]:
    """Bytes in C order and shape of a float32 array of any library.

    Takes what has the buffer protocol (numpy arrays, ``array.array``, ``memoryview``) or
    ``__array__`` (PyTorch tensors on the CPU).
    """
    try:
        view = memoryview(latents)
    except TypeError:
        if not hasattr(latents, "__array__"):
            raise TypeError(
                f"latents: expected an array of float32, found {type(latents).__name__}"
            ) from None
        view = memoryview(latents.__array__())
    if view.format != "f":
        raise InvalidArgumentError(
            f"latents: expected float32, found an array of format {view.format!r}"
        )
    return view.tobytes(), list(view.shape or ())
