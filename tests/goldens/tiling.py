"""Autoencoders in tiles."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from common import prefixed, save

# Sizes of latents, none a multiple of a tile's step, and sides of tiles in pixels with their overlap. The
# reference divides by zero where tiles of a tiny autoencoder share one latent pixel.
CASES = {"wide": ((7, 10), [(32, 0.5), (64, 0.25)]), "tall": ((11, 3), [(32, 0.5)])}


def make(out, emoji):
    folders = {
        "sd15": out / "models/sd15/vae",
        "sdxl": out / "models/sdxl/vae",
        "emoji": emoji / "vae",
    }
    torch.manual_seed(1)
    inputs = {}
    for case, ((height, width), _) in CASES.items():
        inputs[f"{case}.latents"] = torch.randn(1, 4, height, width)
        inputs[f"{case}.image"] = torch.rand(1, 3, 8 * height, 8 * width) * 2 - 1
    tensors = dict(inputs)
    for name, folder in folders.items():
        cls = AutoencoderTiny if name == "emoji" else AutoencoderKL
        vae = cls.from_pretrained(folder).float().eval()
        vae.enable_tiling()
        for case, (_, sizes) in CASES.items():
            for size, overlap in sizes:
                vae.tile_sample_min_size = size
                vae.tile_overlap_factor = overlap
                vae.tile_latent_min_size = size // 8
                encoded = vae.encode(inputs[f"{case}.image"])
                tensors |= prefixed(
                    f"{name}.{case}.{size}",
                    {
                        "encoded": encoded.latents
                        if name == "emoji"
                        else encoded.latent_dist.parameters,
                        "decoded": vae.decode(inputs[f"{case}.latents"]).sample,
                    },
                )
    save(out / "vae_tiling.safetensors", tensors)
