"""Bytes and shapes to pictures and arrays, and back. numpy and Pillow are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._arguments import Embeds
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


def levels_to_numpy(data: bytearray, shape: list[int]) -> numpy.ndarray[Any, Any]:
    """Float32 from 0 to 1 out of bytes."""
    levels = import_numpy().frombuffer(data, dtype="uint8").reshape(shape)
    floats: numpy.ndarray[Any, Any] = (levels / 255.0).astype("float32")
    return floats


def to_pil(data: bytearray, shape: list[int]) -> list[PIL.Image.Image]:
    """Pictures from RGB bytes of shape ``(n, height, width, 3)``."""
    image = import_pil()
    count, height, width, _ = shape
    size = len(data) // count
    return [
        image.frombytes("RGB", (width, height), bytes(data[i * size : (i + 1) * size]))
        for i in range(count)
    ]


def to_pictures(raw: tuple[bytearray, list[int]], output_type: str) -> Any:
    """RGB bytes of shape ``(n, height, width, 3)`` as ``"pil"`` or ``"np"``."""
    check_output_type(output_type, "pil", "np")
    return to_pil(*raw) if output_type == "pil" else levels_to_numpy(*raw)


def check_output_type(output_type: str, *allowed: str) -> None:
    """Checks the name, and that its package is there: its absence shall be known before the run, not
    after it."""
    allowed = allowed or ("pil", "np", "latent")
    if output_type not in allowed:
        names = " or ".join(map(repr, allowed))
        raise InvalidArgumentError(f"output_type: expected {names}, found {output_type!r}")
    if output_type == "pil":
        import_pil()
    else:
        import_numpy()


def from_array(name: str, array: Any) -> tuple[bytes, list[int]]:
    """Bytes in C order and shape of a float32 array of any library, an argument of this name.

    Takes what has the buffer protocol (numpy arrays, ``array.array``, ``memoryview``) or
    ``__array__`` (PyTorch tensors on the CPU).
    """
    view = _view(name, "an array of float32", array)
    if view.format != "f":
        raise InvalidArgumentError(
            f"{name}: expected float32, found an array of format {view.format!r}"
        )
    return view.tobytes(), list(view.shape or ())


def from_embeds(
    prefix: str, embeds: Any, pooled: Any
) -> Embeds | None:
    """A prompt's embeddings and SDXL's pooled vector, as :func:`from_array`; ``prefix`` is that of
    the arguments' names."""
    if embeds is None:
        if pooled is not None:
            raise InvalidArgumentError(
                f"{prefix}pooled_prompt_embeds: expected {prefix}prompt_embeds beside it, found None"
            )
        return None
    name = f"{prefix}pooled_prompt_embeds"
    return (
        from_array(f"{prefix}prompt_embeds", embeds),
        None if pooled is None else from_array(name, pooled),
    )


def from_image(name: str, image: Any) -> tuple[bytes, int, int]:
    """RGB bytes, width and height of a ``PIL.Image.Image`` or of uint8 ``(height, width, 3)``."""
    if hasattr(image, "convert") and hasattr(image, "tobytes"):
        rgb = image.convert("RGB")
        return rgb.tobytes(), *rgb.size
    view = _view(name, "a picture of PIL or an array of uint8", image)
    shape = tuple(view.shape or ())
    if view.format != "B" or len(shape) != 3 or shape[2] != 3:
        found = f"an array of format {view.format!r} and shape {shape}"
        raise InvalidArgumentError(f"{name}: expected uint8 (height, width, 3), found {found}")
    return view.tobytes(), shape[1], shape[0]


def is_picture(image: Any) -> bool:
    """Whether it is one of PIL, or an array of uint8."""
    if hasattr(image, "convert") and hasattr(image, "tobytes"):
        return True
    view = _view("image", "a picture of PIL, an array of uint8, or latents of float32", image)
    return view.format == "B"


def from_mask(name: str, mask: Any) -> tuple[bytes, int, int]:
    """The same as :func:`from_image` of a grey picture: one of PIL, or uint8 ``(height, width)``."""
    if hasattr(mask, "convert") and hasattr(mask, "tobytes"):
        return from_image(name, mask.convert("L"))
    view = _view(name, "a picture of PIL or an array of uint8", mask)
    shape = tuple(view.shape or ())
    if view.format != "B" or len(shape) != 2:
        found = f"an array of format {view.format!r} and shape {shape}"
        raise InvalidArgumentError(f"{name}: expected uint8 (height, width), found {found}")
    levels = view.tobytes()
    return bytes(level for level in levels for _ in range(3)), shape[1], shape[0]


def _view(name: str, expected: str, array: Any) -> memoryview:
    try:
        return memoryview(array)
    except TypeError:
        if not hasattr(array, "__array__"):
            found = type(array).__name__
            raise TypeError(f"{name}: expected {expected}, found {found}") from None
        return memoryview(array.__array__())
