"""The pipeline that users call, over the native one."""

from __future__ import annotations

import json
import math
import operator
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, SupportsIndex

from . import _arrays
from ._native import NativePipeline, Progress
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from os import PathLike

    import numpy

__all__ = ["Output", "Pipeline"]

OutputType = Literal["pil", "np", "latent"]


@dataclass(frozen=True)
class Output:
    """The result of :meth:`Pipeline.generate`."""

    # `Any`, because a union would make every caller narrow it.
    images: Any
    """By ``output_type``: ``"pil"``: a list of ``PIL.Image.Image`` (RGB); ``"np"``: a float32 array
    ``(n, height, width, 3)`` from 0 to 1; ``"latent"``: a float32 array
    ``(n, channels, height / 8, width / 8)`` of clean latents, scaled for the UNet."""

    seeds: list[int]
    """The seed of each picture: a call with it and ``num_images=1`` gives the same again."""

    warnings: list[str]
    """What did not stop the run and should be known, such as a prompt that was cut."""

    timings: dict[str, float]
    """Seconds: ``"encode"`` (tokenizer and text encoder), ``"sample"`` (all steps of all pictures),
    ``"decode"`` (autoencoder)."""


class Pipeline:
    """A Stable Diffusion model, loaded. Made by :meth:`from_pretrained`.

    A pipeline does not change: threads may share one and call it at the same time. The GIL is
    released while it loads and runs.
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativePipeline) -> None:
        self._native = native

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        dtype: object = None,
        variant: str | None = None,
        device: object = "cpu",
    ) -> Pipeline:
        """Loads a model folder in the diffusers layout.

        Args:
            path: The folder with ``model_index.json``.
            dtype: The number format that weights are held in: ``"float32"``, ``"float16"``,
                ``"bfloat16"``, or an object that prints as one, such as ``torch.float16``. On the
                CPU the arithmetic is float32 in all three. Default: float32 on the CPU, float16
                elsewhere.
            variant: Prefers weight files of this variant, such as ``"fp16"``.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"metal"``, or an object that prints as
                one, such as ``torch.device("cuda")``.

        Raises:
            NotFoundError: The folder or a part of it is missing.
            FormatError: A file is damaged.
            WeightsError: Tensors do not fit their configuration.
            UnsupportedError: This version does not know the model, or this build or machine
                lacks the device.
            InvalidArgumentError: ``dtype`` or ``device`` is not one of the names above.
        """
        name = None if dtype is None else str(dtype)
        return cls(NativePipeline.load(path, name, variant, str(device)))

    @property
    def default_size(self) -> tuple[int, int]:
        """``(width, height)`` of pictures of calls that name no size, in pixels."""
        return self._native.default_size

    def generate(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        num_inference_steps: SupportsIndex = 50,
        guidance_scale: SupportsFloat = 7.5,
        width: SupportsIndex | None = None,
        height: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        num_images: SupportsIndex = 1,
        batch_size: SupportsIndex = 1,
        eta: SupportsFloat | None = None,
        scheduler: str | Mapping[str, Any] | None = None,
        latents: Any = None,
        output_type: OutputType = "pil",
        callback: Callable[[Progress], object] | None = None,
    ) -> Output:
        """Makes pictures from a prompt.

        Args:
            prompt: What the pictures shall show. Tokens above the model's limit are left out and
                told in ``Output.warnings``.
            negative_prompt: What they shall not show; it counts where guidance is on. None means nothing, which
                SDXL is told by zeros and the other models by the empty text.
            num_inference_steps: Number of steps, from 1 to the model's timesteps (1000).
            guidance_scale: How far the pictures follow the prompt (classifier-free guidance),
                finite and at least 0. At most 1 means without guidance, in half the time.
            width: In pixels, a multiple of the autoencoder's factor (8). Default: that of the
                model.
            height: As ``width``.
            seed: The seed of the first picture, from 0 to 2**64 - 1; the next pictures have the
                seeds that follow. The noise is that of a ``torch.Generator("cpu")`` with this seed;
                its lower 32 bits count. Default: a random one, told in ``Output.seeds``.
            num_images: Number of pictures, at least 1.
            batch_size: How many of them are worked on at once, at least 1. More is faster on a GPU
                and takes more memory; 1 gives each picture the same bits whatever stands beside it.
            eta: The share of fresh noise in each step, from 0 to 1, for schedulers that have one
                (DDIM, TCD, the ancestral ones and those of stochastic equations). Default: the
                scheduler's own.
            scheduler: A name of :func:`schedulers`, a label of A1111 or a diffusers class, with one
                of :func:`sigma_schedules` at its end for other noise levels (``"euler"``,
                ``"DPM++ 2M Karras"``, ``"DDIMScheduler"``); or a diffusers scheduler configuration
                as a mapping or as JSON, where the model's own speaks for absent fields, which may
                hold ``sigmas`` or ``timesteps`` of your own. Default: the model's own.
            latents: The noise to start from, in place of the seed's: float32 of unit variance,
                ``(num_images, channels, height / 8, width / 8)``, as a numpy array, a PyTorch
                tensor on the CPU, or anything else with the buffer protocol or ``__array__``. It
                sets the size, where ``width`` and ``height`` do not.
            output_type: What ``Output.images`` holds: ``"pil"`` (needs Pillow), ``"np"`` or
                ``"latent"`` (both need numpy).
            callback: Called with a :class:`Progress` after each step, in the calling thread. If it
                returns ``False`` the run stops with :class:`Cancelled`; an exception that it raises
                stops the run and comes out of this call. Ctrl-C, too, takes effect between steps.

        Raises:
            InvalidArgumentError: An argument is out of range or does not fit the model.
            UnsupportedError: This version does not know the scheduler, or cannot make pictures from
                a prompt alone with this model.
            OutOfMemoryError: The pictures would not fit into memory.
            Cancelled: ``callback`` returned ``False``.
            DeviceError: The device failed.
            ImportError: ``output_type`` needs a package that is not installed.
        """
        _check_output_type(output_type)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function, found {type(callback).__name__}")
        name, config = _scheduler(scheduler)
        raw, seeds, texts, (encode, sample) = self._native.generate_latents(
            prompt,
            negative_prompt=negative_prompt,
            num_steps=_whole("num_inference_steps", num_inference_steps),
            guidance_scale=guidance_scale,
            width=None if width is None else _whole("width", width),
            height=None if height is None else _whole("height", height),
            seed=None if seed is None else _whole("seed", seed),
            num_images=_whole("num_images", num_images),
            batch_size=_whole("batch_size", batch_size),
            eta=eta,
            scheduler_name=name,
            scheduler_config=config,
            latents=None if latents is None else _arrays.from_array(latents),
            callback=callback,
        )
        start = time.perf_counter()
        if output_type == "latent":
            images = _arrays.to_numpy(*raw)
        else:
            images, more = self._decode(*raw, output_type)
            texts += more
        timings = {"encode": encode, "sample": sample, "decode": time.perf_counter() - start}
        return Output(images, seeds, texts, timings)

    def decode(
        self, latents: numpy.ndarray[Any, Any] | Any, output_type: Literal["pil", "np"] = "pil"
    ) -> Any:
        """Makes pictures from latents: from those of ``output_type="latent"``, or a preview from
        ``Progress.denoised``.

        Args:
            latents: Float32, ``(n, channels, height / 8, width / 8)``, scaled for the UNet; of the
                types that :meth:`generate` takes.
            output_type: ``"pil"`` or ``"np"``.

        Returns:
            As ``Output.images``. What the caller should know comes as a Python warning.

        Raises:
            InvalidArgumentError: The shape or type does not fit.
            DeviceError: The device failed.
            ImportError: ``output_type`` needs a package that is not installed.
        """
        _check_output_type(output_type, "pil", "np")
        images, texts = self._decode(*_arrays.from_array(latents), output_type)
        for text in texts:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return images

    def _decode(
        self, data: bytes | bytearray, shape: list[int], output_type: str
    ) -> tuple[Any, list[str]]:
        raw, texts = self._native.decode(data, shape, output_type == "pil")
        to_images = _arrays.to_pil if output_type == "pil" else _arrays.to_numpy
        return to_images(*raw), texts

    def __repr__(self) -> str:
        width, height = self.default_size
        return f"<diffusion_py.Pipeline, {width} x {height}>"


def _check_output_type(output_type: str, *allowed: str) -> None:
    # The packages are imported here too: their absence shall be known before the run, not after it.
    allowed = allowed or ("pil", "np", "latent")
    if output_type not in allowed:
        names = " or ".join(map(repr, allowed))
        raise InvalidArgumentError(f"output_type: expected {names}, found {output_type!r}")
    if output_type == "pil":
        _arrays.import_pil()
    else:
        _arrays.import_numpy()


def _whole(name: str, value: SupportsIndex) -> int:
    number = operator.index(value)
    if not 0 <= number < 2**64:
        raise InvalidArgumentError(f"{name}: expected a number from 0 to 2**64 - 1, found {number}")
    return number


def _scheduler(scheduler: str | Mapping[str, Any] | None) -> tuple[str | None, str | None]:
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
