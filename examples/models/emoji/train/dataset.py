"""The one file that training and measuring need: latents on several backgrounds, small pictures, what they show."""

import json
import os
import random

import diffusers
import numpy
import torch
import transformers
from diffusers import AutoencoderTiny
from safetensors import safe_open
from safetensors.torch import save_file

from captions import COLOURS, prompt

BACKGROUNDS = 4  # a picture is encoded on white and on three colours; the other eight are never trained on
CHUNK = 125
BATCH = 25


def hush():
    """The libraries' progress bars and advice about other uses of these models say nothing here."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def colours():
    """[colours, 3] in 0..1, in the order of COLOURS."""
    return torch.tensor(list(COLOURS.values())) / 255


def chosen_backgrounds(count):
    """[count, BACKGROUNDS] indices of COLOURS: white first, then different colours drawn by a fixed seed."""
    draw = random.Random(7)
    return [[0, *draw.sample(range(1, len(COLOURS)), BACKGROUNDS - 1)] for _ in range(count)]


def encode(vae, pictures, backgrounds):
    """RGBA pictures [n, 128, 128, 4] in 8 bits on each of their backgrounds: f16 latents [n, k, 4, 16, 16]."""
    pixels = torch.from_numpy(pictures).float() / 255
    alpha = pixels[:, None, ..., 3:]
    drawn = pixels[:, None, ..., :3] * alpha + colours()[backgrounds][:, :, None, None] * (1 - alpha)
    images = drawn.flatten(0, 1).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        parts = images.contiguous(memory_format=torch.channels_last).split(BATCH)
        latents = [vae.encode(part).latents for part in parts]
    return torch.cat(latents).unflatten(0, backgrounds.shape).half()


def thumbnails(pictures, side=32):
    """The pictures at [n, side, side, 4], averaged; the colour is times the alpha, ready for a background."""
    pixels = torch.from_numpy(pictures).float()
    pixels[..., :3] *= pixels[..., 3:] / 255
    small = torch.nn.functional.adaptive_avg_pool2d(pixels.permute(0, 3, 1, 2), side)
    return small.round().byte().permute(0, 2, 3, 1).contiguous()


def prepare(work, base):
    """Writes work/emoji.safetensors (27 MB) from the rendered pictures; a stopped encoding goes on where it was."""
    path = work / "emoji.safetensors"
    if path.exists():
        return path
    icons = json.loads((work / "icons.json").read_text())
    pictures = numpy.load(work / "pictures.npy", mmap_mode="r")
    backgrounds = torch.tensor(chosen_backgrounds(len(icons)))
    vae = AutoencoderTiny.from_pretrained(base / "vae").eval().to(memory_format=torch.channels_last)
    latents, small = [], []
    for start in range(0, len(icons), CHUNK):
        kept = work / f"latents-{start:04d}.pt"
        part = numpy.array(pictures[start : start + CHUNK])
        if not kept.exists():
            found = encode(vae, part, backgrounds[start : start + CHUNK])
            torch.save(found, kept.with_suffix(".new"))
            os.replace(kept.with_suffix(".new"), kept)
            print(f"encoded {min(start + CHUNK, len(icons))} of {len(icons)} icons", flush=True)
        latents.append(torch.load(kept))
        small.append(thumbnails(part))
    tensors = {
        "latents": torch.cat(latents),
        "backgrounds": backgrounds.byte(),
        "thumbnails": torch.cat(small),
    }
    save_file(tensors, path.with_suffix(".new"), metadata={"icons": json.dumps(icons)})
    os.replace(path.with_suffix(".new"), path)
    return path


def load(path):
    """The tensors of the prepared file and the list of icons."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["icons"])


def of_styles(icons, styles):
    """The indices of the icons of some styles."""
    return [index for index, icon in enumerate(icons) if icon["style"] in styles]


def held(icons, backgrounds, styles, count):
    """Pairs of an icon of the styles and a colour index that were not trained on, drawn by a fixed seed, and their
    prompts."""
    draw = random.Random(300)
    among = of_styles(icons, styles)
    pairs = []
    for index in draw.sample(among, min(count, len(among))):
        free = sorted(set(range(len(COLOURS))) - set(backgrounds[index].tolist()))
        pairs.append((index, draw.choice(free)))
    names = list(COLOURS)
    return pairs, [prompt(icons[index], names[colour]) for index, colour in pairs]
