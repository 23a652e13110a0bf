"""Judging pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import _arrays
from ._arguments import Path
from ._native import NativeSafetyChecker

__all__ = ["SafetyChecker", "SafetyReport"]


@dataclass(frozen=True)
class SafetyReport:
    """What a :class:`SafetyChecker` says of a picture."""

    scores: list[float]
    """For each of the checker's concepts how far the picture is beyond the threshold, in cosines from
    -2 to 2, rounded to thousandths: above 0 it is flagged."""

    concepts: list[int]
    """The numbers of the concepts that are flagged."""

    special_scores: list[float]
    """The same scores of the concepts that ask for special care: one above 0 makes the others stricter
    by 0.01, and flags nothing by itself."""

    @property
    def is_flagged(self) -> bool:
        """Whether any concept is flagged; diffusers' ``nsfw_content_detected``."""
        return bool(self.concepts)


class SafetyChecker:
    """CLIP's vision model with the embeddings and thresholds of some concepts, as diffusers'
    ``StableDiffusionSafetyChecker``. Made by :meth:`from_pretrained`.

    Calls and threads may share one.
    """

    __slots__ = ("_native",)

    def __init__(self, native: NativeSafetyChecker) -> None:
        self._native = native

    @classmethod
    def from_pretrained(
        cls, path: Path, *, dtype: object = None, device: object = "cpu"
    ) -> SafetyChecker:
        """Loads a folder with ``config.json`` and weights, as the ``safety_checker`` beside a model's
        other parts.

        Args:
            path: The folder.
            dtype: As in :meth:`Pipeline.from_pretrained`.
            device: As in :meth:`Pipeline.from_pretrained`.

        Raises:
            NotFoundError: There is no such folder.
            FormatError: A file is damaged.
            WeightsError: Its tensors are not those of a safety checker.
        """
        name = None if dtype is None else str(dtype)
        return cls(NativeSafetyChecker.open(path, name, str(device)))

    def check(self, images: Iterable[Any]) -> list[SafetyReport]:
        """Judges pictures of any size, one by one; they stay as they are.

        Args:
            images: ``Output.images`` of ``output_type="pil"``, or other pictures of the types that
                :func:`save_picture` takes.

        Raises:
            InvalidArgumentError: A picture without pixels, or of another type.
        """
        raw = [_arrays.from_image("images", image) for image in images]
        return [SafetyReport(*report) for report in self._native.check(raw)]
