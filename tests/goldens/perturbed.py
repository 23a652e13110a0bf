"""Perturbed-attention guidance: UNets, and whole runs."""

import shutil

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import (
    PAGCFGIdentitySelfAttnProcessor2_0,
    PAGIdentitySelfAttnProcessor2_0,
)

from common import save, save_rows
from schedulers import config_of

# For each the blocks that are perturbed, in the names of the reference.
LAYERS = {
    "sd15": {"mid": ["mid"], "down": ["down_blocks.0"], "two": ["mid", "up_blocks.1.attentions.0"]},
    "sdxl": {"mid": ["mid"], "inner": ["transformer_blocks.1"], "up": ["up_blocks.0.attentions.1"]},
}
BASE = {
    "prompt": "two cats! on a red roof",
    "negative_prompt": "blurry, dark",
    "seeds": [42, 43],
    "steps": 6,
    "guidance": 7.5,
    "pag_scale": 3.0,
    "pag_adaptive_scale": 0.0,
    "pag_layers": ["mid"],
    "width": 96,
    "height": 64,
}
CASES = {
    "sd15": {"model": "sd15"},
    "sd15_no_guidance": {"model": "sd15", "guidance": 1.0},
    "sd15_adaptive": {"model": "sd15", "pag_adaptive_scale": 0.005, "pag_scale": 2.0},
    "sd15_layers": {"model": "sd15", "pag_layers": ["mid", "up_blocks.1"]},
    "sdxl": {"model": "sdxl", "guidance": 5.0},
    "sdxl_no_guidance": {"model": "sdxl", "guidance": 1.0, "pag_layers": ["mid", "down_blocks.1"]},
    "sdxl_adaptive": {"model": "sdxl", "pag_adaptive_scale": 0.004},
}


def make(out, emoji):
    torch.manual_seed(1)
    tensors = {}
    for name, sets in LAYERS.items():
        folder = out / "models" / name / "unet"
        width = UNet2DConditionModel.load_config(folder)["cross_attention_dim"]
        inputs = {
            "sample": torch.randn(3, 4, 8, 12),
            "timesteps": torch.tensor([999.0, 20.5, 500.0]),
            "encoder_hidden_states": torch.randn(3, 77, width),
        }
        if name == "sdxl":
            ids = torch.tensor([[64.0, 96, 0, 0, 64, 96]]).repeat(3, 1)
            inputs |= {"text_embeds": torch.randn(3, 32), "time_ids": ids}
        tensors |= {f"{name}.{key}": value for key, value in inputs.items()}
        for case, layers in sets.items():
            # Of three images the last is perturbed, of two the second.
            processors = {3: PAGCFGIdentitySelfAttnProcessor2_0(), 2: PAGIdentitySelfAttnProcessor2_0()}
            for batch, processor in processors.items():
                unet = UNet2DConditionModel.from_pretrained(folder).float().eval()
                for path, module in unet.named_modules():
                    if path.endswith("attn1") and any(layer in path for layer in layers):
                        module.processor = processor
                rows = {key: value[:batch] for key, value in inputs.items()}
                added = {key: rows[key] for key in ["text_embeds", "time_ids"] if key in rows}
                tensors[f"{name}.{case}.{batch}"] = unet(
                    rows["sample"],
                    rows["timesteps"],
                    rows["encoder_hidden_states"],
                    added_cond_kwargs=added or None,
                ).sample
    save(out / "perturbed.safetensors", tensors)
    runs(out)


def runs(out):
    folder = out / "perturbed"
    shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for name, changes in CASES.items():
        case = BASE | changes
        xl = case["model"] == "sdxl"
        cls = StableDiffusionXLPAGPipeline if xl else StableDiffusionPAGPipeline
        pipe = cls.from_pretrained(
            out / "models" / case["model"],
            dtype=torch.float32,
            pag_applied_layers=case["pag_layers"],
            **({"add_watermarker": False} if xl else {}),
        )
        scheduler = EulerDiscreteScheduler if xl else DDIMScheduler
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        latents = pipe(
            prompt=case["prompt"],
            negative_prompt=case["negative_prompt"],
            num_images_per_prompt=len(case["seeds"]),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]],
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance"],
            pag_scale=case["pag_scale"],
            pag_adaptive_scale=case["pag_adaptive_scale"],
            width=case["width"],
            height=case["height"],
            output_type="latent",
        ).images
        save(folder / f"{name}.safetensors", {"latents": latents})
        rows.append({"name": name} | case | {"scheduler": config_of(pipe.scheduler)})
    save_rows(out / "perturbed.json", {"cases": rows})
