"""What runs and changes result in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _files
from ._arguments import Path
from ._files import Provenance

__all__ = ["LoraReport", "Output"]


@dataclass(frozen=True)
class Output:
    """The result of :meth:`Pipeline.generate`."""

    # `Any`, because a union would make every caller narrow it.
    images: Any
    """By ``output_type``: ``"pil"``: a list of ``PIL.Image.Image`` (RGB); ``"np"``: a float32 array
    ``(n, height, width, 3)`` from 0 to 1; ``"latent"``: a float32 array
    ``(n, channels, height / 8, width / 8)`` of latents, scaled for the UNet: clean ones, or after
    ``denoising_end`` clean ones plus the noise that is left."""

    seeds: list[int]
    """The seed of each picture: a call with it and ``num_images=1`` gives the same again."""

    warnings: list[str]
    """What did not stop the run and should be known, such as a prompt that was cut."""

    timings: dict[str, float]
    """Seconds: ``"encode"`` (tokenizer and text encoder), ``"sample"`` (all steps of all pictures),
    ``"decode"`` (autoencoder)."""

    provenance: list[Provenance]
    """How each picture came about, as text for its file."""

    def save(self, path: Path, index: int = 0) -> None:
        """Writes a picture of ``output_type="pil"``, with how it came about.

        :func:`read_request` reads it back.

        Args:
            path: Where it goes; its ending says whether as PNG, JPEG or lossless WebP.
            index: Which of the pictures.

        Raises:
            UnsupportedError: Another ending.
            IoError: The file cannot be written.
        """
        _files.save_picture(self.images[index], path, self.provenance[index])


@dataclass(frozen=True)
class LoraReport:
    """What became of a LoRA: an entry of :attr:`Pipeline.loras`."""

    name: str
    """Its file."""

    num_modules: int
    """Modules of the model that it changes."""

    unused: list[str]
    """Keys of the file that change nothing, sorted."""
