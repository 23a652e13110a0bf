"""Kohya's Deep Shrink: a UNet's inner levels at a lower resolution."""

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from common import save

SIZES = {"square": (8, 8), "wide": (8, 12), "odd": (9, 7)}
# Which output of the way down, by what, and whether the skip keeps its size.
WAYS = {
    "default": (3, 2.0, True),
    "early": (1, 1.5, True),
    "late": (5, 2.0, True),
    "before": (3, 2.0, False),
}
RESIZED = {"down": (4, 3), "half": (4, 6), "up": (13, 21), "mixed": (3, 14)}


def bicubic(x, height, width):
    return F.interpolate(x, size=(height, width), mode="bicubic", align_corners=False)


def forward(unet, sample, timesteps, text, place=None, factor=None, after_skip=True):
    """ComfyUI's loop over blocks, on diffusers' modules."""
    temb = unet.time_embedding(unet.time_proj(timesteps))

    def layers(block):
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        return zip(block.resnets, attentions)

    def layer(x, resnet, attention):
        x = resnet(x, temb)
        return x if attention is None else attention(x, text).sample

    skips = []

    def keep(x):
        if len(skips) != place:
            skips.append(x)
            return x
        height, width = x.shape[2:]
        shrunk = bicubic(x, round(height * (1.0 / factor)), round(width * (1.0 / factor)))
        skips.append(x if after_skip else shrunk)
        return shrunk

    x = keep(unet.conv_in(sample))
    for block in unet.down_blocks:
        for resnet, attention in layers(block):
            x = keep(layer(x, resnet, attention))
        for downsampler in block.downsamplers or []:
            x = keep(downsampler(x))
    x = unet.mid_block(x, temb, encoder_hidden_states=text)
    for block in unet.up_blocks:
        for resnet, attention in layers(block):
            skip = skips.pop()
            if x.shape[2:] != skip.shape[2:]:
                x = bicubic(x, *skip.shape[2:])
            x = layer(torch.cat([x, skip], dim=1), resnet, attention)
        for upsampler in block.upsamplers or []:
            x = upsampler(x, skips[-1].shape[2:])
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def make(out, emoji):
    unet = UNet2DConditionModel.from_pretrained(out / "models/sd15/unet").float().eval()
    torch.manual_seed(1)
    timesteps, text = torch.tensor([999.0, 20.5]), torch.randn(2, 77, 32)
    tensors = {"timesteps": timesteps, "encoder_hidden_states": text}
    for case, size in SIZES.items():
        sample = torch.randn(2, 4, *size)
        tensors[f"{case}.sample"] = sample
        whole = unet(sample, timesteps, text).sample
        assert torch.allclose(forward(unet, sample, timesteps, text), whole, atol=1e-5)
        for way, settings in WAYS.items():
            found = forward(unet, sample, timesteps, text, *settings)
            assert not torch.allclose(found, whole, atol=1e-2)
            tensors[f"{case}.{way}"] = found
    picture = torch.randn(2, 3, 8, 11)
    tensors["picture"] = picture
    for name, size in RESIZED.items():
        tensors[f"resized.{name}"] = bicubic(picture, *size)
    save(out / "shrink.safetensors", tensors)
