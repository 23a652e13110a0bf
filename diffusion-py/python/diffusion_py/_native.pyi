"""The compiled half of the package: bytes and shapes in and out."""

from collections.abc import Callable
from os import PathLike
from typing import Any, SupportsFloat, final

import numpy

from ._arguments import Embeds, LoraScale, Sizes

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
    def latents(self) -> numpy.ndarray[Any, Any]:
        """The latents: float32, ``(batch, channels, height / 8, width / 8)``."""

    @property
    def denoised(self) -> numpy.ndarray[Any, Any]:
        """The current estimate of the clean latents, of the same shape."""

@final
class NativeControlModel:
    @staticmethod
    def open(
        path: str | PathLike[str], is_adapter: bool, dtype: str | None, device: str
    ) -> NativeControlModel: ...

@final
class NativeRequest: ...

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
        vae: list[str],
        loras: list[tuple[str, LoraScale]],
        embeddings: list[tuple[str, str | None]],
    ) -> NativePipeline: ...
    @property
    def notes(self) -> list[str]: ...
    def set_loras(self, loras: list[tuple[str, LoraScale]], merged: bool) -> None: ...
    def clear_loras(self) -> None: ...
    def loras(self) -> list[tuple[str, int, list[str]]]: ...
    def add_embedding(self, path: str | PathLike[str], token: str | None) -> str: ...
    def open_control_net(self, path: str | PathLike[str]) -> NativeControlModel: ...
    def add_ip_adapter(
        self, path: str | PathLike[str], image_encoder: str | PathLike[str] | None
    ) -> None: ...
    def clear_ip_adapters(self) -> None: ...
    @property
    def default_size(self) -> tuple[int, int]: ...
    def generate_latents(
        self,
        prompt: str,
        *,
        prompt_2: str | None,
        negative_prompt: str | None,
        negative_prompt_2: str | None,
        prompt_syntax: str,
        clip_skip: int | None,
        prompt_embeds: Embeds | None,
        negative_prompt_embeds: Embeds | None,
        num_steps: int,
        guidance: tuple[SupportsFloat, list[SupportsFloat], Any, SupportsFloat, SupportsFloat],
        width: int | None,
        height: int | None,
        seed: int | None,
        num_images: int,
        batch_size: int,
        eta: SupportsFloat | None,
        scheduler_name: str | None,
        scheduler_config: str | None,
        latents: tuple[bytes, list[int]] | None,
        denoising_start: SupportsFloat | None,
        denoising_end: SupportsFloat | None,
        sizes: Sizes,
        negative_sizes: Sizes | None,
        aesthetic_score: SupportsFloat,
        negative_aesthetic_score: SupportsFloat,
        controls: list[
            tuple[
                NativeControlModel,
                tuple[bytes, int, int],
                SupportsFloat,
                SupportsFloat,
                SupportsFloat,
                bool,
            ]
        ],
        ip_adapter_images: list[tuple[list[tuple[bytes, int, int]], SupportsFloat]],
        start: dict[str, Any],
        callback: Callable[[Progress], object] | None,
    ) -> tuple[
        tuple[bytearray, list[int]],
        list[int],
        list[str],
        tuple[float, float],
        list[tuple[str | None, str | None]],
        NativeRequest,
    ]: ...
    def decode(
        self,
        latents: bytes | bytearray,
        shape: list[int],
        rgb8: bool,
        request: NativeRequest | None,
    ) -> tuple[tuple[bytearray, list[int]], list[str]]: ...
