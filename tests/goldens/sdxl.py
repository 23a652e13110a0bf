"""SDXL and its refiner from prompts: both text encoders, sizes, scores, hand-over, adapters."""

import shutil

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file

from common import save, save_rows
from schedulers import config_of

SCHEDULERS = {
    "euler": (EulerDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
}
BASE = {
    "prompt": "two cats! on a red roof",
    "seeds": [42, 43],
    "steps": 6,
    "guidance": 7.5,
    "width": 96,
    "height": 64,
    "scheduler": "euler",
}
# Names as in diffusers; sizes there are (height, width).
CASES = {
    "negative": {"negative_prompt": "blurry, dark"},
    "no_negative": {"scheduler": "ddim"},
    "empty_negative": {"negative_prompt": ""},
    "no_guidance": {"guidance": 1.0},
    "second_prompts": {
        "prompt_2": "a watercolour",
        "negative_prompt": "blurry",
        "negative_prompt_2": "a photo",
        "scheduler": "dpmpp_2m",
    },
    # The reference hands several pictures each other's sizes, where the negative ones differ.
    "sizes": {
        "seeds": [42],
        "negative_prompt": "blurry",
        "original_size": [640, 480],
        "crops_coords_top_left": [16, 8],
        "target_size": [128, 192],
        "negative_original_size": [32, 48],
        "negative_crops_coords_top_left": [4, 2],
        "negative_target_size": [256, 64],
    },
    "long": {"prompt": "a very long story about two cats, " * 12, "negative_prompt": "dark"},
    "word": {"prompt": "two <wheel> on a roof", "negative_prompt": "a <wheel>"},
    "lora": {"negative_prompt": "blurry"},
}
HAND_OVERS = {
    "hand_over_euler": {"share": 0.6},
    "hand_over_ddim": {"share": 0.35, "scheduler": "ddim", "steps": 9},
    "hand_over_dpmpp_2m": {"share": 0.8, "scheduler": "dpmpp_2m", "steps": 10},
    "hand_over_scores": {
        "share": 0.5,
        "negative_prompt": "blurry",
        "aesthetic_score": 8.0,
        "negative_aesthetic_score": 1.5,
        "original_size": [640, 480],
    },
}
SIZES = [name for name in CASES["sizes"] if "size" in name or "crops" in name]


def make(out, emoji):
    folder = out / "sdxl"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = []
    for name, changes in CASES.items():
        case = BASE | changes
        base = pipeline(StableDiffusionXLPipeline, out / "models/sdxl", case)
        if name == "word":
            add_word(base, folder / "wheel.safetensors")
        if name == "lora":
            add_lora(base, folder / "kohya.safetensors")
        tensors = run(base, case)
        save(folder / f"{name}.safetensors", tensors)
        rows.append({"name": name} | case | {"scheduler": config_of(base.scheduler)})
    for name, changes in HAND_OVERS.items():
        case = BASE | changes
        base = pipeline(StableDiffusionXLPipeline, out / "models/sdxl", case)
        refiner = pipeline(StableDiffusionXLImg2ImgPipeline, out / "models/refiner", case)
        first = run(base, case, denoising_end=case["share"])
        second = run(refiner, case, denoising_start=case["share"], image=first["latents"])
        save(folder / f"{name}.safetensors", first)
        save(folder / f"{name}_refined.safetensors", second)
        rows.append({"name": name} | case | {"scheduler": config_of(base.scheduler)})
    save_rows(out / "sdxl.json", {"cases": rows})


def pipeline(cls, folder, case):
    pipe = cls.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    make_scheduler, overrides = SCHEDULERS[case["scheduler"]]
    pipe.scheduler = make_scheduler.from_config(pipe.scheduler.config, **overrides)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, case, **part):
    inputs = {
        name: case[name]
        for name in ["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"]
        if name in case
    }
    inputs |= {name: tuple(case[name]) for name in SIZES if name in case}
    images = len(case["seeds"])
    if "image" in part:
        scores = ["aesthetic_score", "negative_aesthetic_score"]
        inputs |= {name: case[name] for name in scores if name in case}
        # It has as many prompts as pictures, and knows no size but the latents'.
        size = (case["height"], case["width"])
        inputs |= {"target_size": size, "original_size": inputs.get("original_size", size)}
        for name in ["prompt", "negative_prompt"]:
            if name in inputs:
                inputs[name] = [inputs[name]] * images
        images = 1
    else:
        inputs |= {"width": case["width"], "height": case["height"]}
    seen = {}

    def look(module, args, kwargs):
        if not seen:
            added = kwargs["added_cond_kwargs"]
            seen["prompt_embeds"] = kwargs["encoder_hidden_states"].clone()
            seen["text_embeds"] = added["text_embeds"].clone()
            seen["time_ids"] = added["time_ids"].float().clone()

    hook = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    latents = pipe(
        **inputs,
        **part,
        num_images_per_prompt=images,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        output_type="latent",
    ).images
    hook.remove()
    return seen | {"latents": latents}


def add_word(pipe, path):
    """A word of two vectors for either encoder, as the user interfaces write it."""
    torch.manual_seed(5)
    halves = {"clip_l": torch.randn(2, 16), "clip_g": torch.randn(2, 24)}
    save_file(halves, path)
    parts = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
    for (tokenizer, encoder), vectors in zip(parts, halves.values()):
        pipe.load_textual_inversion(
            vectors, token="<wheel>", text_encoder=encoder, tokenizer=tokenizer
        )


def add_lora(pipe, path):
    """kohya's names for UNet and both text encoders, added by kohya's formula: diffusers leaves out the
    attention of text encoders in this form."""
    torch.manual_seed(6)
    parts = {
        "lora_te1_text_model_": (
            pipe.text_encoder,
            ["encoder.layers.1.self_attn.q_proj", "encoder.layers.0.mlp.fc1"],
        ),
        "lora_te2_text_model_": (
            pipe.text_encoder_2.text_model,
            ["encoder.layers.1.self_attn.v_proj", "encoder.layers.0.mlp.fc2"],
        ),
        "lora_unet_": (
            pipe.unet,
            ["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"],
        ),
    }
    rank, alpha = 2, 1.0
    state = {}
    for prefix, (model, modules) in parts.items():
        for module in modules:
            weight = model.get_submodule(module).weight
            down, up = torch.randn(rank, weight.shape[1]), torch.randn(weight.shape[0], rank)
            weight += alpha / rank * up @ down
            name = prefix + module.replace(".", "_")
            state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = down, up
            state[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(state, path)
