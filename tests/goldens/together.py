"""A ControlNet and an IP-Adapter in one run."""

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

import ip_adapters
from controls import pil, picture
from common import save
from runs import generators

RUN = {
    "prompt": "two cats! on a red roof",
    "negative_prompt": "blurry",
    "num_inference_steps": 5,
    "guidance_scale": 5.0,
    "width": 96,
    "height": 64,
    "controlnet_conditioning_scale": 0.8,
    "output_type": "latent",
}


def make(out, emoji):
    seen = ip_adapters.picture(*ip_adapters.PICTURES["landscape"])
    base = ip_adapters.pipeline(out, out / "ip_adapters", ["sd15.safetensors"], [0.6])
    net = ControlNetModel.from_pretrained(out / "controls/a", dtype=torch.float32)
    pipe = StableDiffusionControlNetPipeline(
        **base.components, controlnet=net, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    followed = picture(3)
    run = lambda **changes: pipe(
        **RUN | changes,
        image=pil(followed),
        ip_adapter_image=seen,
        generator=generators([42]),
    ).images
    latents = run()
    for scale, name in [(0.0, "the control"), (0.8, "the picture")]:
        if scale:
            pipe.set_ip_adapter_scale(0.0)
        difference = (run(controlnet_conditioning_scale=scale) - latents).abs().max()
        assert difference > 0.02 * latents.abs().max(), name
    save(out / "together.safetensors", {"followed.picture": followed, "latents": latents})
