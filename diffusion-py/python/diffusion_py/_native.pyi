"""The compiled half of the package: bytes and shapes in and out."""

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal, SupportsFloat, TypedDict, final

import numpy

from ._arguments import LoraScale

__version__: str

def schedulers() -> list[str]:
    """The names of the schedulers, for ``Pipeline.generate``.

    Each may be followed by one of :func:`sigma_schedules`, as in ``"dpmpp_2m_karras"``.
    """

def sigma_schedules() -> list[str]:
    """The names of the curves of noise levels, to follow the name of a scheduler."""

def save_picture(
    image: tuple[bytes, int, int],
    path: str | PathLike[str],
    provenance: tuple[str | None, str | None],
) -> None: ...
def save_animation(
    frames: list[tuple[bytes, int, int]],
    path: str | PathLike[str],
    delay: SupportsFloat,
    plays: int,
) -> None: ...
def recall(path: str | PathLike[str]) -> tuple[str, str | None, list[str]]: ...
@final
class Progress:
    """Where a run is: the argument of the ``callback`` of ``Pipeline.generate``.

    It may be kept after the callback has returned; it then keeps its latents in memory.
    """

    @property
    def step(self) -> int:
        """Steps of this batch that are done, from 1."""

    @property
    def num_steps(self) -> int:
        """Steps of each batch."""

    @property
    def images(self) -> range:
        """Which of the call's pictures are in this batch."""

    @property
    def num_images(self) -> int:
        """Pictures of the whole call."""

    @property
    def sigma(self) -> float:
        """The noise level of the latents: they are clean ones plus ``sigma`` times unit noise."""

    @property
    def fraction(self) -> float:
        """The share of the whole call's steps that is done, from 0 to 1."""

    @property
    def pass_index(self) -> int:
        """The pass over the pictures, from 0: the second is that of :class:`Hires`."""

    @property
    def num_passes(self) -> int:
        """How many passes there are."""

    @property
    def elapsed(self) -> float:
        """Seconds that this pass has been at its steps."""

    @property
    def time_left(self) -> float:
        """Seconds that the rest of this pass's steps will take, if they go on as so far."""

    @property
    def latents(self) -> numpy.ndarray[Any, Any]:
        """The latents: float32, ``(batch, channels, height / 8, width / 8)``."""

    @property
    def denoised(self) -> numpy.ndarray[Any, Any]:
        """The current estimate of the clean latents, of the same shape."""

    def preview(self, output_type: Literal["pil", "np"] = "pil") -> Any:
        """What the batch's pictures will about look like, at the size of the latents, an eighth of each
        side: as ``Output.images``. It costs next to nothing; ``Pipeline.decode`` of ``denoised`` shows
        them in full."""

@final
class CancelToken:
    """Stops the calls that it is given to, from any thread, within one of their steps: ``cancel_token``
    of ``Pipeline.generate``."""

    def __init__(self) -> None: ...
    def cancel(self) -> None:
        """Stops the calls. Those that begin later end at once."""

    @property
    def is_cancelled(self) -> bool:
        """Whether ``cancel`` was called."""

@final
class NativeControlModel:
    @staticmethod
    def open(
        path: str | PathLike[str], is_adapter: bool, dtype: str | None, device: str
    ) -> NativeControlModel: ...

@final
class NativeSafetyChecker:
    @staticmethod
    def open(
        path: str | PathLike[str], dtype: str | None, device: str
    ) -> NativeSafetyChecker: ...
    def check(
        self, pictures: list[tuple[bytes, int, int]]
    ) -> list[tuple[list[float], list[int], list[float]]]: ...

@final
class NativeRequest:
    def __init__(
        self, plain: dict[str, Any], start: dict[str, Any], networks: dict[str, Any]
    ) -> None: ...

class NativeSampled(TypedDict):
    latents: tuple[bytearray, list[int]]
    estimate: tuple[bytearray, list[int]] | None
    seeds: list[int]
    warnings: list[str]
    encode_seconds: float
    sample_seconds: float
    provenance: list[tuple[str | None, str | None]]

@final
class NativePipeline:
    @staticmethod
    def load(
        path: str | PathLike[str],
        *,
        dtype: str | None,
        variant: str | None,
        revision: str | None,
        device: str,
        num_threads: int | None,
        quantize: str | None,
        vae: list[str],
        loras: list[tuple[str, LoraScale]],
        embeddings: list[tuple[str, str | None]],
    ) -> NativePipeline: ...
    @property
    def notes(self) -> list[str]: ...
    def set_loras(self, loras: list[tuple[str, LoraScale]], merged: bool) -> None: ...
    def clear_loras(self) -> None: ...
    def drop_text_encoders(self) -> None: ...
    def loras(self) -> list[tuple[str, int, list[str]]]: ...
    def add_embedding(self, path: str | PathLike[str], token: str | None) -> str: ...
    def open_control_net(self, path: str | PathLike[str]) -> NativeControlModel: ...
    def add_ip_adapter(
        self, path: str | PathLike[str], image_encoder: str | PathLike[str] | None
    ) -> None: ...
    def clear_ip_adapters(self) -> None: ...
    @property
    def default_size(self) -> tuple[int, int]: ...
    def memory_estimate(self, width: int, height: int, batch_size: int) -> int: ...
    def generate_latents(
        self, request: NativeRequest, callback: Callable[[Progress], object] | None
    ) -> NativeSampled: ...
    def interpolate(
        self,
        request: NativeRequest,
        keys: list[tuple[str, int]],
        frames_per_segment: int,
        closed: bool,
        callback: Callable[[Progress], object] | None,
    ) -> tuple[tuple[bytearray, list[int]], list[str]]: ...
    def decode(
        self,
        latents: bytes | bytearray,
        shape: list[int],
        rgb8: bool,
        request: NativeRequest | None,
    ) -> tuple[tuple[bytearray, list[int]], list[str]]: ...
