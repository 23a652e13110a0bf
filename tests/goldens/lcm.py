"""A consistency model, which is told the guidance scale and asked once a step."""

import torch
from diffusers import LatentConsistencyModelPipeline

from common import save, save_rows

CASES = {
    "four": {"steps": 4, "guidance": 8.5},
    "one": {"steps": 1, "guidance": 8.5},
    "weak": {"steps": 6, "guidance": 1.5},
}
BASE = {"prompt": "two cats! on a red roof", "seeds": [42, 43], "width": 96, "height": 64}


def make(out, emoji):
    pipe = LatentConsistencyModelPipeline.from_pretrained(out / "models/lcm", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    tensors, rows = {}, []
    for name, changes in CASES.items():
        case = BASE | changes
        tensors[name] = pipe(
            case["prompt"],
            width=case["width"],
            height=case["height"],
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance"],
            num_images_per_prompt=len(case["seeds"]),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]],
            output_type="latent",
        ).images
        rows.append({"name": name} | case)
    save(out / "lcm.safetensors", tensors)
    save_rows(out / "lcm.json", {"cases": rows})
