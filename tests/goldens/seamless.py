"""Networks whose pictures go on at their opposite side."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D

from common import prefixed, save

WAYS = {"x": (True, False), "y": (False, True), "both": (True, True)}
SIZES = {"wide": (4, 6), "odd": (5, 3)}


def wrap_sides(model, x, y):
    """Replaces the padding of every convolution, in each direction by itself."""
    sides = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            height, width = module.padding
            sides[module] = (width, width), (height, height)
    for module in model.modules():
        # The autoencoder's downsampling pads below and on the right, outside of its convolution.
        if isinstance(module, Downsample2D) and module.padding == 0:
            module.padding = 1
            sides[module.conv] = (0, 1), (0, 1)
    for conv, (left_right, top_bottom) in sides.items():
        conv._conv_forward = forward(conv, left_right, top_bottom, x, y)


def forward(conv, left_right, top_bottom, x, y):
    def run(input, weight, bias):
        for sides, wraps in [((*left_right, 0, 0), x), ((0, 0, *top_bottom), y)]:
            input = F.pad(input, sides, mode="circular" if wraps else "constant")
        return F.conv2d(input, weight, bias, conv.stride)

    return run


def make(out, emoji):
    torch.manual_seed(1)
    inputs = {"encoder_hidden_states": torch.randn(2, 77, 32), "timesteps": torch.tensor([999, 20.5])}
    for case, (height, width) in SIZES.items():
        inputs[f"{case}.latents"] = torch.randn(2, 4, height, width)
        inputs[f"{case}.image"] = torch.rand(1, 3, 8 * height, 8 * width) * 2 - 1
    tensors = dict(inputs)
    for way, (x, y) in WAYS.items():
        unet = UNet2DConditionModel.from_pretrained(out / "models/sd15/unet").float().eval()
        wrap_sides(unet, x, y)
        vaes = {
            "kl": AutoencoderKL.from_pretrained(out / "models/sd15/vae").float().eval(),
            "tiny": AutoencoderTiny.from_pretrained(emoji / "vae").float().eval(),
        }
        for vae in vaes.values():
            wrap_sides(vae, x, y)
        for case in SIZES:
            latents, image = inputs[f"{case}.latents"], inputs[f"{case}.image"]
            found = {
                "unet": unet(latents, inputs["timesteps"], inputs["encoder_hidden_states"]).sample
            }
            for name, vae in vaes.items():
                encoded = vae.encode(image)
                tiny = name == "tiny"
                found[f"{name}.encoded"] = (
                    encoded.latents if tiny else encoded.latent_dist.mean
                )
                found[f"{name}.decoded"] = vae.decode(latents[:1]).sample
            tensors |= prefixed(f"{way}.{case}", found)
    save(out / "seamless.safetensors", tensors)
