"""The arguments of a call as a request of the native half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _arguments, _arrays, _controls, _networks, _start
from ._arguments import Pair, Sizes
from ._native import NativePipeline, NativeRequest

# Arguments that need no conversion.
PLAIN = [
    "prompt",
    "prompt_2",
    "negative_prompt",
    "negative_prompt_2",
    "prompt_syntax",
    "eta",
    "denoising_start",
    "denoising_end",
    "aesthetic_score",
    "negative_aesthetic_score",
    "cancel_token",
    "keep_cancelled",
]


def build(pipe: NativePipeline, told: Mapping[str, Any]) -> NativeRequest:
    """The request of all arguments of :meth:`Pipeline.generate`, by their names."""

    def those(*names: str) -> dict[str, Any]:
        return {name: told[name] for name in names}

    def whole(name: str) -> int | None:
        return _arguments.optional_whole(name, told[name])

    def embeds(prefix: str) -> Any:
        pooled = told[f"{prefix}pooled_prompt_embeds"]
        return _arrays.from_embeds(prefix, told[f"{prefix}prompt_embeds"], pooled)

    scheduler_name, scheduler_config = _arguments.scheduler(told["scheduler"])
    latents = told["latents"]
    plain = those(*PLAIN) | {
        "clip_skip": whole("clip_skip"),
        "prompt_embeds": embeds(""),
        "negative_prompt_embeds": embeds("negative_"),
        "num_steps": _arguments.whole("num_inference_steps", told["num_inference_steps"]),
        "guidance": {
            **_start.scales(told["guidance_scale"]),
            "interval": tuple(told["guidance_interval"]),
            "rescale": told["guidance_rescale"],
            "image_scale": told["image_guidance_scale"],
            "cfg_zero_star": whole("cfg_zero_star"),
        },
        "width": whole("width"),
        "height": whole("height"),
        "seed": whole("seed"),
        "num_images": _arguments.whole("num_images", told["num_images"]),
        "batch_size": _arguments.whole("batch_size", told["batch_size"]),
        "scheduler_name": scheduler_name,
        "scheduler_config": scheduler_config,
        "latents": None if latents is None else _arrays.from_array("latents", latents),
        "sizes": _arguments.sizes(
            "", *(told[name] for name in ("original_size", "crops_coords_top_left", "target_size"))
        ),
        "negative_sizes": _negative_sizes(
            told["negative_original_size"],
            told["negative_crops_coords_top_left"],
            told["negative_target_size"],
        ),
        "controls": _controls.controls(pipe, told["control"]),
        "ip_adapter_images": _controls.ip_adapter_images(
            told["ip_adapter_image"], told["ip_adapter_scale"]
        ),
    }
    start = _start.start(
        **those("image", "mask_image", "noise", "margins", "variation", "hires"),
        **those("strength", "resize_mode", "mask_blur", "paste_back", "masked_content"),
        only_masked=whole("padding_mask_crop"),
    )
    networks = _networks.networks(
        **those("pag_scale", "pag_adaptive_scale", "pag_applied_layers"),
        **those("deep_shrink", "deep_cache", "tgate", "token_merging"),
        **those("seamless", "vae_tiling", "vae_slicing"),
    )
    return NativeRequest(plain, start, networks)


def _negative_sizes(original: Pair | None, crop: Pair | None, target: Pair | None) -> Sizes | None:
    if original is None and crop is None and target is None:
        return None
    return _arguments.sizes("negative_", original, (0, 0) if crop is None else crop, target)
