"""SDXL in the form of Karras et al., as Playground 2.5 and CosXL were published, by diffusers."""

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, StableDiffusionXLPipeline

from common import save, save_rows
from schedulers import config_of
from sdxl import BASE, run

# The published settings, and Playground's mean and standard deviation of each channel of the latents.
CASES = {
    "playground": (
        EDMDPMSolverMultistepScheduler(
            sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, final_sigmas_type="zero"
        ),
        {
            "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
            "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
            "scaling_factor": 0.5,
        },
    ),
    "cosxl": (
        EDMEulerScheduler(
            sigma_min=0.002,
            sigma_max=120.0,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
        ),
        {},
    ),
}


def make(out, emoji):
    rows = []
    case = BASE | {"seeds": [42], "guidance": 3.0, "negative_prompt": "blurry"}
    for name, (scheduler, vae) in CASES.items():
        pipe = StableDiffusionXLPipeline.from_pretrained(
            out / "models/sdxl", dtype=torch.float32, add_watermarker=False
        )
        pipe.scheduler = scheduler
        pipe.vae.register_to_config(**vae)
        pipe.set_progress_bar_config(disable=True)
        tensors = run(pipe, case)
        picture = pipe(
            case["prompt"],
            negative_prompt=case["negative_prompt"],
            generator=torch.Generator("cpu").manual_seed(42),
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance"],
            width=case["width"],
            height=case["height"],
            output_type="pt",
        ).images
        save(out / "edm" / f"{name}.safetensors", tensors | {"picture": picture})
        rows.append({"name": name, "vae": vae} | case | {"scheduler": config_of(pipe.scheduler)})
    save_rows(out / "edm.json", {"cases": rows})
