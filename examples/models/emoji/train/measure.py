"""Measures a model folder without any other model: does it draw the icon and the background that were asked for?

    python examples/models/emoji/train/measure.py [FOLDER] --data PREPARED/emoji.safetensors

For 300 prompts whose icon, style and background colour were never seen together in training, each picture is
compared at 32 x 32 pixels with every rendered icon on the prompted background (retrieval@1 and @5), and its corners
with the colour itself. For vague prompts it counts how many different icons the seeds come nearest to.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from captions import VAGUE
from dataset import colours, held, hush, load

CORNER = 8  # pixels of a corner's side
NEAR = 40 / 255  # the largest difference of a channel at which a background's colour is right
SEEDS = 8


class Gallery:
    """The rendered icons at 32 x 32 pixels, to be put on any background."""

    def __init__(self, tensors, icons):
        pixels = tensors["thumbnails"].float().permute(0, 3, 1, 2) / 255
        self.drawn, self.alpha = pixels[:, :3], pixels[:, 3:]
        self.icons, self.backgrounds = icons, tensors["backgrounds"]

    def on(self, colour):
        """Every icon on the colour of an index, [icons, 3, 32, 32] in 0..1."""
        return self.drawn + (1 - self.alpha) * colours()[colour].view(3, 1, 1)

    def held(self, styles, count):
        return held(self.icons, self.backgrounds, styles, count)

    def distances(self, picture, colour):
        """Root mean square difference of a picture, [3, side, side] in 0..1, to every icon on a colour, [icons]."""
        small = torch.nn.functional.adaptive_avg_pool2d(picture, self.drawn.shape[-1])
        return (self.on(colour) - small).square().mean((1, 2, 3)).sqrt()

    def ranks(self, pictures, pairs):
        """How many icons are nearer to each picture than the one that its pair asked for (0: none)."""
        found = []
        for picture, (icon, colour) in zip(pictures, pairs):
            distance = self.distances(picture, colour)
            found.append(int((distance < distance[icon]).sum()))
        return torch.tensor(found)

    def retrieval(self, pictures, pairs):
        ranks = self.ranks(pictures, pairs)
        return (ranks < 1).float().mean().item(), (ranks < 5).float().mean().item()


def pipeline(folder, text=None, unet=None):
    """The folder's pipeline in single precision, with other networks where they are given."""
    if text is None:
        return quiet(StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None))
    return quiet(
        StableDiffusionPipeline(
            vae=AutoencoderTiny.from_pretrained(folder / "vae", dtype=torch.float32),
            text_encoder=text,
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            unet=unet,
            scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompts, steps, guidance, seeds=None, batch=25):
    """Pictures of the prompts, [prompts, 3, 128, 128] in 0..1; the seeds are 0, 1, 2, ... where none are given."""
    seeds = range(len(prompts)) if seeds is None else seeds
    noises = [torch.Generator().manual_seed(seed) for seed in seeds]
    found = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        images = pipe(
            prompts[part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=128,
            width=128,
            generator=noises[part],
            output_type="np",
        ).images
        found.append(torch.from_numpy(images).permute(0, 3, 1, 2))
    return torch.cat(found)


def backgrounds_right(pictures, pairs):
    """The share of pictures whose four corners have the prompted colour on average."""
    wanted = colours()[[colour for _, colour in pairs]]
    side = max(1, pictures.shape[-1] * CORNER // 128)
    ends = (slice(None, side), slice(-side, None))
    corners = torch.stack([pictures[..., rows, columns].mean((2, 3)) for rows in ends for columns in ends]).mean(0)
    return ((corners - wanted).abs().amax(1) <= NEAR).float().mean().item()


def diversity(gallery, pictures):
    """For the SEEDS pictures of each vague prompt, [prompts, SEEDS, ...]: how many different icons they come
    nearest to, and how far they lie apart compared with two icons of the set."""
    icons = gallery.on(0).flatten(1)
    typical = torch.pdist(icons[:: max(1, len(icons) // 500)]).mean()
    different, apart = [], []
    for row in pictures:
        different.append(len({int(gallery.distances(picture, 0).argmin()) for picture in row}))
        small = torch.nn.functional.adaptive_avg_pool2d(row, gallery.drawn.shape[-1])
        apart.append((torch.pdist(small.flatten(1)).mean() / typical).item())
    return sum(different) / len(different), sum(apart) / len(apart)


def measure(folder, data, styles, count=300, steps=25, guidance=5.0, device="cpu"):
    tensors, icons = load(data)
    gallery = Gallery(tensors, icons)
    pipe = pipeline(folder).to(device)
    pairs, prompts = gallery.held(styles, count)
    pictures = draw(pipe, prompts, steps, guidance)
    ranks = gallery.ranks(pictures, pairs)
    figures = {"prompts": len(prompts), "steps": steps, "guidance": guidance}
    figures["retrieval@1"], figures["retrieval@5"] = gallery.retrieval(pictures, pairs)
    for style in styles:
        mine = torch.tensor([icons[icon]["style"] == style for icon, _ in pairs])
        figures[f"retrieval@1, {style} style"] = (ranks[mine] < 1).float().mean().item()
    figures["backgrounds right"] = backgrounds_right(pictures, pairs)
    rendered = torch.stack([gallery.on(colour)[icon] for icon, colour in pairs])
    figures["backgrounds right of the rendered icons"] = backgrounds_right(rendered, pairs)
    texts = [f"{subject}, {style} style" for style in styles for subject in VAGUE]
    vague = draw(pipe, [text for text in texts for _ in range(SEEDS)], steps, guidance, list(range(SEEDS)) * len(texts))
    different, apart = diversity(gallery, vague.unflatten(0, (len(texts), SEEDS)))
    figures[f"different icons of {SEEDS} seeds"], figures["distance of seeds"] = different, apart
    return {name: round(value, 3) for name, value in figures.items()}, pictures, prompts


def sheet(pictures, columns=8):
    """One image of the pictures, row by row."""
    count, _, height, width = pictures.shape
    whole = Image.new("RGB", (columns * width, -(-count // columns) * height), "white")
    for index, picture in enumerate(pictures):
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        whole.paste(Image.fromarray(pixels), (index % columns * width, index // columns * height))
    return whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1], help="a diffusers folder")
    parser.add_argument("--data", type=Path, required=True, help="the prepared file")
    parser.add_argument("--styles", nargs="+", default=["flat", "noto"], help="the styles to prompt for")
    parser.add_argument("--count", type=int, default=300, help="held prompts")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures to this PNG, their prompts to a .txt")
    chosen = parser.parse_args()
    hush()
    figures, pictures, prompts = measure(
        chosen.folder, chosen.data, chosen.styles, chosen.count, chosen.steps, chosen.guidance, chosen.device
    )
    print(json.dumps(figures, indent=2))
    if chosen.sheet:
        sheet(pictures[:64]).save(chosen.sheet)
        chosen.sheet.with_suffix(".txt").write_text("\n".join(prompts[:64]) + "\n")


if __name__ == "__main__":
    main()
