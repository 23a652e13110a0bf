"""Pictures in other proportions, masks, pasting back, tensors in other sizes, and varied noise."""

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from common import save, save_rows
from images import mask, picture

SIZES = [(40, 64), (64, 40), (33, 64), (96, 24), (50, 50)]
# Masks as (width, height) and the boxes that are white in them.
MASKS = [
    ((100, 80), [(10, 20, 30, 40)]),
    ((100, 80), [(0, 0, 5, 5)]),
    ((100, 80), [(90, 70, 100, 80), (40, 10, 42, 12)]),
    ((100, 80), [(0, 0, 100, 80)]),
    ((37, 91), [(11, 80, 36, 91)]),
]
FRAMES = [((64, 64), 0), ((64, 64), 8), ((128, 64), 4), ((40, 96), 16), ((512, 512), 200)]
MODES = {
    "nearest": {"mode": "nearest-exact"},
    "bilinear": {"mode": "bilinear"},
    "bilinear_antialiased": {"mode": "bilinear", "antialias": True},
    "bicubic": {"mode": "bicubic"},
    "bicubic_antialiased": {"mode": "bicubic", "antialias": True},
}


def make(out, emoji):
    tensors = {}
    source = picture(61, 47)
    tensors["source"] = levels(source)
    processor = VaeImageProcessor()
    for width, height in SIZES:
        for mode in ["default", "crop", "fill"]:
            resized = processor.resize(source, height, width, resize_mode=mode)
            tensors[f"{mode}.{width}x{height}"] = levels(resized)
    for name, resampling in [
        ("nearest", PIL.Image.Resampling.NEAREST),
        ("bilinear", PIL.Image.Resampling.BILINEAR),
        ("bicubic", PIL.Image.Resampling.BICUBIC),
    ]:
        for width, height in SIZES:
            resized = source.resize((width, height), resampling)
            tensors[f"{name}.{width}x{height}"] = levels(resized)
    overlay(tensors)
    interpolated(tensors)
    variations(tensors)
    save(out / "canvas.safetensors", tensors)
    save_rows(out / "canvas.json", {"regions": list(regions(processor))})


def levels(image):
    return torch.from_numpy(np.array(image))


def overlay(tensors):
    original, changed = picture(96, 64), picture(96, 64).transpose(PIL.Image.FLIP_LEFT_RIGHT)
    result = VaeImageProcessor().apply_overlay(mask(96, 64), original, changed)
    tensors |= {"overlay.original": levels(original), "overlay.changed": levels(changed)}
    tensors |= {"overlay.mask": levels(mask(96, 64)), "overlay.result": levels(result)}


def regions(processor):
    for (width, height), boxes in MASKS:
        image = PIL.Image.new("L", (width, height))
        for box in boxes:
            image.paste(255, box)
        for (frame, padding) in FRAMES:
            region = processor.get_crop_region(image, *frame, pad=padding)
            yield {
                "mask": [width, height],
                "boxes": boxes,
                "frame": frame,
                "padding": padding,
                "region": [int(side) for side in region],
            }


def interpolated(tensors):
    torch.manual_seed(3)
    images = torch.randn(2, 3, 7, 10)
    tensors["interpolate.images"] = images
    for name, options in MODES.items():
        for size in [(14, 20), (11, 13), (3, 4), (7, 10), (1, 1)]:
            tensors[f"interpolate.{name}.{size[0]}x{size[1]}"] = (
                torch.nn.functional.interpolate(images, size=size, **options)
            )


def variations(tensors):
    """A1111's variation seeds: noise of one picture, `(channels, height, width)`, turned column by column."""
    shape = (4, 8, 12)
    for share in [0.0, 0.1, 0.5, 1.0]:
        low, high = (
            torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
            for seed in [42, 7]
        )
        low_unit = low / low.norm(dim=1, keepdim=True)
        high_unit = high / high.norm(dim=1, keepdim=True)
        angle = torch.acos((low_unit * high_unit).sum(1)).unsqueeze(1)
        turned = torch.sin((1 - share) * angle) * low + torch.sin(share * angle) * high
        tensors[f"variation.{share}"] = turned / torch.sin(angle)
