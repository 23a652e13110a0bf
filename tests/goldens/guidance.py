"""Guidance beyond one scale: rescaled, and fitted to the answer with the prompt."""

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale

from common import save, save_rows
from runs import generators

BASE = {
    "prompt": "two cats! on a red roof",
    "negative_prompt": "blurry, dark",
    "seeds": [42, 43],
    "steps": 6,
    "guidance": 7.5,
    "width": 96,
    "height": 64,
}
RESCALES = [0.3, 0.7, 1.0]


def make(out, emoji):
    tensors, rows = {}, []
    for model, cls in [("sd21", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]:
        pipe = cls.from_pretrained(out / "models" / model, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        for rescale in RESCALES:
            name = f"{model}_{int(rescale * 100)}"
            tensors[name] = pipe(
                BASE["prompt"],
                negative_prompt=BASE["negative_prompt"],
                width=BASE["width"],
                height=BASE["height"],
                num_inference_steps=BASE["steps"],
                guidance_scale=BASE["guidance"],
                guidance_rescale=rescale,
                num_images_per_prompt=len(BASE["seeds"]),
                generator=generators(BASE["seeds"]),
                output_type="latent",
            ).images
            rows.append({"name": name, "model": model, "rescale": rescale} | BASE)
    torch.manual_seed(5)
    positive, negative = torch.randn(2, 3, 4, 8, 12).unbind(0)
    factor = cfg_zero_star_scale(positive.flatten(1), negative.flatten(1)).view(-1, 1, 1, 1)
    fitted = negative * factor
    tensors |= {
        "zero_star.positive": positive,
        "zero_star.negative": negative,
        "zero_star.guided": fitted + 4.5 * (positive - fitted),
    }
    save(out / "guidance.safetensors", tensors)
    save_rows(out / "guidance.json", {"cases": rows})
