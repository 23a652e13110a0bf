"""Runs that start from pictures: img2img, inpainting, instructions, and a second pass over latents."""

import shutil

import PIL.Image
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from common import save, save_rows
from schedulers import config_of

SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "lcm": (LCMScheduler, {"original_inference_steps": 50}),
}
SIZE = (96, 64)
BASE = {
    "prompt": "two cats! on a red roof",
    "negative_prompt": "blurry, dark",
    "seeds": [42, 43],
    "steps": 7,
    "guidance": 7.5,
    "scheduler": "euler",
}
STRENGTHS = [0.3, 0.75, 1.0]


def cases():
    def at_strengths(name, cls, changes):
        for strength in STRENGTHS:
            yield f"{name}_{int(strength * 100)}", cls, changes | {"strength": strength}

    sd15 = {"model": "sd15"}
    masked = {"mask": True}
    for scheduler in ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun"]:
        changes = sd15 | {"scheduler": scheduler}
        yield from at_strengths(f"img2img_{scheduler}", StableDiffusionImg2ImgPipeline, changes)
    # At lower strengths the reference starts PNDM a step early and then names the wrong timesteps.
    whole = sd15 | {"scheduler": "pndm", "strength": 1.0}
    yield "img2img_pndm_100", StableDiffusionImg2ImgPipeline, whole
    # A picture whose sides are no multiples of 8 is made smaller first.
    yield "img2img_odd", StableDiffusionImg2ImgPipeline, sd15 | {"strength": 0.6, "odd": True}
    for scheduler in ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun"]:
        changes = sd15 | masked | {"scheduler": scheduler}
        yield from at_strengths(f"inpaint_{scheduler}", StableDiffusionInpaintPipeline, changes)
    for scheduler in ["ddim", "euler", "euler_ancestral", "dpmpp_2m"]:
        changes = {"model": "inpaint", "scheduler": scheduler} | masked
        yield from at_strengths(f"inpaint9_{scheduler}", StableDiffusionInpaintPipeline, changes)
    odd = {"strength": 0.6, "odd": True}
    yield "inpaint9_odd", StableDiffusionInpaintPipeline, {"model": "inpaint"} | masked | odd
    sdxl = {"model": "sdxl"}
    yield from at_strengths("sdxl_img2img", StableDiffusionXLImg2ImgPipeline, sdxl)
    yield from at_strengths("sdxl_inpaint", StableDiffusionXLInpaintPipeline, sdxl | masked)
    lcm = {"model": "lcm", "scheduler": "lcm", "steps": 4, "negative_prompt": None}
    yield from at_strengths("lcm_img2img", LatentConsistencyModelImg2ImgPipeline, lcm)
    for scale in [1.0, 1.5, 2.5]:
        name = f"pix2pix_{int(scale * 10)}"
        changes = {"model": "pix2pix", "image_guidance": scale}
        yield name, StableDiffusionInstructPix2PixPipeline, changes
    unguided = {"model": "pix2pix", "image_guidance": 1.5, "guidance": 1.0}
    yield "pix2pix_unguided", StableDiffusionInstructPix2PixPipeline, unguided


def make(out, emoji):
    folder = out / "images"
    shutil.rmtree(folder, ignore_errors=True)
    inputs = {
        "even": picture(*SIZE),
        "odd": picture(SIZE[0] + 5, SIZE[1] + 7),
        "mask": mask(*SIZE),
        "odd_mask": mask(SIZE[0] + 5, SIZE[1] + 7),
    }
    save(
        folder / "inputs.safetensors",
        {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()},
    )
    tensors, rows = {}, []
    for name, cls, changes in cases():
        case = BASE | changes
        pipe = pipeline(cls, out / "models" / case["model"], case["scheduler"])
        tensors[name] = run(pipe, case, inputs)
        rows.append({"name": name} | case | {"scheduler": config_of(pipe.scheduler)})
    for mode in ["nearest-exact", "bilinear", "bicubic"]:
        for strength in STRENGTHS:
            case = BASE | {"model": "sd15", "strength": strength, "mode": mode}
            name = f"hires_{mode}_{int(strength * 100)}"
            first, second = two_passes(out / "models/sd15", case)
            tensors |= {name: second, "hires_first": first}
            config = EulerDiscreteScheduler.from_config(first_config(out))
            rows.append({"name": name} | case | {"scheduler": config_of(config)})
    save(folder / "latents.safetensors", tensors)
    save_rows(folder / "cases.json", {"cases": rows})


def picture(width, height):
    """Waves of colour, so that resizing and encoding have something to see."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + i) * np.cos(y / (5 + 3 * i)) for i in range(3)]
    levels = np.stack(waves, -1) * 127.5 + 127.5
    return PIL.Image.fromarray(levels.round().astype(np.uint8))


def mask(width, height):
    """A disc and a bar of grey levels; the middle one is the last that counts."""
    y, x = np.mgrid[0:height, 0:width]
    levels = np.where((x - 30) ** 2 + (y - 35) ** 2 < 20**2, 255, 0)
    levels[8:24, 60:90] = np.linspace(0, 255, 30)
    return PIL.Image.fromarray(levels.astype(np.uint8))


def pipeline(cls, folder, scheduler):
    pipe = cls.from_pretrained(folder, dtype=torch.float32)
    make_scheduler, overrides = SCHEDULERS[scheduler]
    pipe.scheduler = make_scheduler.from_config(pipe.scheduler.config, **overrides)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(case):
    return [torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]]


def common(case):
    images = len(case["seeds"])
    inputs = {
        "num_inference_steps": case["steps"],
        "guidance_scale": case["guidance"],
        "generator": generators(case),
        "output_type": "latent",
    }
    # As many prompts as pictures: each then draws from its own generator.
    for name in ["prompt", "negative_prompt"]:
        if case[name] is not None:
            inputs[name] = [case[name]] * images
    return inputs


def run(pipe, case, pictures):
    inputs = common(case)
    images = len(case["seeds"])
    inputs["image"] = [pictures["odd" if case.get("odd") else "even"]] * images
    if "strength" in case:
        inputs["strength"] = case["strength"]
    if "mask" in case:
        inputs["mask_image"] = [pictures["odd_mask" if case.get("odd") else "mask"]] * images
        inputs |= {"width": SIZE[0], "height": SIZE[1]}
    if "image_guidance" in case:
        inputs["image_guidance_scale"] = case["image_guidance"]
    return pipe(**inputs).images


def first_config(out):
    return StableDiffusionPipeline.from_pretrained(out / "models/sd15").scheduler.config


def two_passes(folder, case):
    inputs = common(case)
    first = pipeline(StableDiffusionPipeline, folder, "euler")(
        **inputs, width=SIZE[0], height=SIZE[1]
    ).images
    larger = torch.nn.functional.interpolate(first, size=(12, 18), mode=case["mode"])
    inputs |= {"generator": generators(case), "strength": case["strength"], "image": larger}
    return first, pipeline(StableDiffusionImg2ImgPipeline, folder, "euler")(**inputs).images
