"""Whole generations through the reference pipelines."""

import shutil

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.schedulers import scheduling_ddim

from common import save, save_rows
from schedulers import SCHEDULERS, config_of


# The other classes, of which the end of one run tells that a model's answers and the noise of the seed
# reach them as in the reference.
SEED = 42
OTHERS = {
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "euler_ancestral": ("EulerAncestralDiscrete", {}),
    "heun": ("HeunDiscrete", {}),
    "dpm_2_ancestral": ("KDPM2AncestralDiscrete", {}),
    "lms": ("LMSDiscrete", {}),
    "ddpm": ("DDPM", {"clip_sample": False}),
    "dpmpp_2s": ("DPMSolverSinglestep", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_sde": ("DPMSolverSDE", {"noise_sampler_seed": SEED}),
    "deis": ("DEISMultistep", {}),
    "unipc": ("UniPCMultistep", {}),
    "sa_solver": ("SASolver", {}),
    "lcm": ("LCM", {}),
    "tcd": ("TCD", {}),
}


def scheduler_class(name):
    return SCHEDULERS.get(name) or getattr(diffusers, f"{OTHERS[name][0]}Scheduler")


def cases():
    emoji = {
        "model": "emoji",
        "prompt": "a red heart, flat style",
        "negative_prompt": "",
        "seeds": [1],
        "steps": 25,
        "guidance": 5.0,
        "width": 128,
        "height": 128,
    }
    tiny = {
        "prompt": "two cats! on a red roof",
        "negative_prompt": "blurry, dark",
        "seeds": [42, 43],
        "steps": 6,
        "guidance": 7.5,
        "width": 96,
        "height": 64,
    }
    for name in SCHEDULERS:
        yield f"emoji_{name}", name, emoji
    # A count that does not divide the training steps, and a spacing the model was not made for.
    yield "emoji_ddim_30", "ddim", emoji | {"steps": 30, "recorded": "final"}
    yield "emoji_ddim_linspace", "ddim", emoji | {
        "steps": 20,
        "recorded": "final",
        "overrides": {"timestep_spacing": "linspace"},
    }
    for model in ["sd15", "sd21"]:
        for name in SCHEDULERS:
            yield f"{model}_{name}", name, tiny | {"model": model, **changes(name)}
    yield "sd15_ddim_eta", "ddim", tiny | {"model": "sd15", "eta": 0.7}
    yield "sd15_euler_noguidance", "euler", tiny | {"model": "sd15", "guidance": 1.0}
    for name, (_, overrides) in OTHERS.items():
        only = {"model": "sd15", "seeds": [SEED], "recorded": "final", "overrides": overrides}
        yield f"sd15_{name}", name, tiny | only
    for name in SCHEDULERS:
        # The folder has no text encoders, so the run starts from embeddings.
        inputs = tiny | {"prompt": None, "negative_prompt": None}
        yield f"sdxl_{name}", name, inputs | {"model": "sdxl", **changes(name)}


def changes(name):
    # The settings of another scheduler do not say these two, and DDIM's own defaults for them
    # (clip to one, end at one) are not what Stable Diffusion uses.
    if name == "ddim":
        return {"overrides": {"clip_sample": False, "set_alpha_to_one": False}}
    return {}


def make(out, emoji):
    folder = out / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    pipelines = {
        "emoji": StableDiffusionPipeline.from_pretrained(emoji, dtype=torch.float32)
    }
    for name in ["sd15", "sd21", "sdxl"]:
        cls = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
        pipelines[name] = cls.from_pretrained(out / "models" / name, dtype=torch.float32)
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)

    rows = []
    configs = {name: pipeline.scheduler.config for name, pipeline in pipelines.items()}
    for name, scheduler, case in cases():
        case = {"eta": 0.0, "recorded": "all"} | case
        pipeline = pipelines[case["model"]]
        overrides = case.pop("overrides", {})
        config = configs[case["model"]]
        pipeline.scheduler = scheduler_class(scheduler).from_config(config, **overrides)
        save(folder / f"{name}.safetensors", run(pipeline, case))
        rows.append({"name": name} | case | {"scheduler": config_of(pipeline.scheduler)})
    save_rows(out / "runs.json", {"cases": rows})


def generators(seeds):
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def run(pipeline, case):
    images = len(case["seeds"])
    latent = (1, 4, case["height"] // 8, case["width"] // 8)
    noise = torch.cat([torch.randn(latent, generator=g) for g in generators(case["seeds"])])
    tensors = {"initial_noise": noise}

    if case["model"] == "sdxl":
        inputs, recorded = sdxl_inputs(pipeline, case)
    else:
        inputs, recorded = prompt_inputs(pipeline, case)
    everything = case["recorded"] == "all"
    if everything:
        tensors |= recorded

    def on_step(pipe, i, t, values):
        if everything:
            tensors[f"step{i}"] = values["latents"].clone()
        return {}

    drawn = []
    randn_tensor = scheduling_ddim.randn_tensor

    def recording(*args, **kwargs):
        drawn.append(randn_tensor(*args, **kwargs))
        return drawn[-1]

    starts = []
    prepare_latents = pipeline.prepare_latents

    def preparing(*args, **kwargs):
        starts.append(prepare_latents(*args, **kwargs))
        return starts[-1]

    scheduling_ddim.randn_tensor = recording
    pipeline.prepare_latents = preparing
    try:
        latents = pipeline(
            **inputs,
            num_images_per_prompt=images,
            generator=generators(case["seeds"]),
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance"],
            eta=case["eta"],
            width=case["width"],
            height=case["height"],
            output_type="latent",
            callback_on_step_end=on_step,
        ).images
    finally:
        scheduling_ddim.randn_tensor = randn_tensor
        pipeline.prepare_latents = prepare_latents
    scheduler = pipeline.scheduler
    assert torch.equal(starts[0], noise * scheduler.init_noise_sigma)
    last = f"step{case['steps'] - 1}"
    assert torch.equal(latents, tensors.setdefault(last, latents))

    tensors |= {f"noise{i}": value for i, value in enumerate(drawn)}
    tensors["timesteps"] = scheduler.timesteps.float()
    if hasattr(scheduler, "sigmas"):
        tensors["sigmas"] = scheduler.sigmas
    # Images are large, and decoding does not depend on the scheduler that made the latents.
    if everything and isinstance(scheduler, DDIMScheduler) and not case["eta"]:
        scaled = latents / pipeline.vae.config.scaling_factor
        tensors["image"] = pipeline.vae.decode(scaled).sample
    return tensors


def prompt_inputs(pipeline, case):
    guided = case["guidance"] > 1
    cond, uncond = pipeline.encode_prompt(
        case["prompt"], "cpu", 1, guided, negative_prompt=case["negative_prompt"]
    )
    inputs = {key: case[key] for key in ["prompt", "negative_prompt"]}
    return inputs, {"prompt_embeds": torch.cat([uncond, cond]) if guided else cond}


def sdxl_inputs(pipeline, case):
    torch.manual_seed(2)
    width = pipeline.unet.config.cross_attention_dim
    inputs = {
        "prompt_embeds": torch.randn(1, 77, width),
        "negative_prompt_embeds": torch.randn(1, 77, width),
        "pooled_prompt_embeds": torch.randn(1, 32),
        "negative_pooled_prompt_embeds": torch.randn(1, 32),
    }
    size = (case["height"], case["width"])
    return inputs, inputs | {"time_ids": torch.tensor([[*size, 0, 0, *size]]).float()}
