"""Random numbers, noise schedules, timesteps and sigmas, and runs over a toy model."""

import inspect
import math

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from common import save, save_rows

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
SPACINGS = ["leading", "linspace", "trailing"]
BASE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def make(out, emoji):
    rng(out)
    noise_schedules(out)
    schedules(out)
    toy_runs(out)


def rng(out):
    tensors = {}
    for seed in [0, 1, 42, 4294967301]:
        for n in [1, 2, 5, 15, 16, 17, 20, 31, 32, 100, 1000]:
            generator = torch.Generator("cpu").manual_seed(seed)
            tensors[f"seed{seed}.n{n}"] = torch.randn(n, generator=generator)
    generator = torch.Generator("cpu").manual_seed(7)
    for i, n in enumerate([3, 4, 20, 7, 16, 1]):
        tensors[f"sequence.{i}"] = torch.randn(n, generator=generator)
    save(out / "rng.safetensors", tensors)


def noise_schedules(out):
    scaled = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    configs = {
        "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        "scaled_linear": scaled,
        "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
        "zero_snr": scaled | {"rescale_betas_zero_snr": True},
    }
    save(
        out / "noise_schedule.safetensors",
        {
            f"{name}.alphas_cumprod": DDIMScheduler(**config).alphas_cumprod
            for name, config in configs.items()
        },
    )


def karras_choices(name):
    return [False] if name == "ddim" else [False, True]


def schedules(out):
    save(out / "schedules.safetensors", plans(BASE, [1, 2, 5, 10, 25, 30]))
    # Its last alphas are far smaller than those of the other kinds. DPM-Solver's timesteps under
    # Karras sigmas are cut off, not rounded, for this kind alone: left out.
    cosine = {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 1}
    kept = {
        key: value
        for key, value in plans(cosine, [3, 10]).items()
        if not (key.startswith("dpmpp_2m.") and ".karras." in key)
    }
    save(out / "schedules_cosine.safetensors", kept)


def plans(base, counts):
    tensors = {}
    for name, cls in SCHEDULERS.items():
        for spacing in SPACINGS:
            for karras in karras_choices(name):
                for n in counts:
                    config = base | {"timestep_spacing": spacing}
                    if karras:
                        config["use_karras_sigmas"] = True
                    scheduler = cls(**config)
                    scheduler.set_timesteps(n)
                    case = f"{name}.{spacing}.{'karras' if karras else 'plain'}.{n}"
                    tensors[f"{case}.timesteps"] = scheduler.timesteps.float()
                    tensors[f"{case}.init_noise_sigma"] = torch.tensor(
                        float(scheduler.init_noise_sigma)
                    )
                    if name != "ddim":
                        tensors[f"{case}.sigmas"] = scheduler.sigmas
    return tensors


def toy_cases():
    for name in SCHEDULERS:
        for spacing in SPACINGS:
            for karras in karras_choices(name):
                for prediction in ["epsilon", "v_prediction"]:
                    config = BASE | {"timestep_spacing": spacing, "prediction_type": prediction}
                    case = f"{name}.{spacing}.{prediction}"
                    if name == "ddim":
                        config["clip_sample"] = False
                        for to_one in [False, True]:
                            ending = "final_one" if to_one else "final_first"
                            yield f"{case}.{ending}", name, config | {"set_alpha_to_one": to_one}, 0
                    else:
                        config["use_karras_sigmas"] = karras
                        yield f"{case}.{'karras' if karras else 'plain'}", name, config, 0
    for spacing in SPACINGS:
        for prediction in ["epsilon", "v_prediction"]:
            config = BASE | {
                "timestep_spacing": spacing,
                "prediction_type": prediction,
                "clip_sample": False,
                "set_alpha_to_one": False,
            }
            yield f"ddim.{spacing}.{prediction}.eta", "ddim", config, 0.5
    config = BASE | {"timestep_spacing": "trailing", "clip_sample": True, "clip_sample_range": 0.3}
    yield "ddim.clipped", "ddim", config, 0
    for name in SCHEDULERS:
        config = BASE | {
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        }
        if name == "ddim":
            config["clip_sample"] = False
        yield f"{name}.zero_snr", name, config, 0


def toy_runs(out):
    steps = 10
    # diffusers' own scheduler tests use this sample. One image of its four is enough, because
    # nothing here looks at more than one element at a time.
    sample = (torch.arange(768, dtype=torch.float32) / 768).reshape(3, 8, 8, 4)
    sample = sample.permute(3, 0, 1, 2)[:1].contiguous()

    tensors = {"sample": sample}
    rows = []
    for case, name, config, eta in toy_cases():
        scheduler = SCHEDULERS[name](**config)
        scheduler.set_timesteps(steps)
        generator = torch.Generator("cpu").manual_seed(0)
        latents = sample * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(latents, t)
            output = scaled * t.float() / (t.float() + 1)
            extra = {}
            if eta:
                noise = torch.randn(sample.shape, generator=generator)
                extra = {"eta": eta, "variance_noise": noise}
                tensors[f"{case}.noise{i}"] = noise
            latents = scheduler.step(output, t, latents, **extra).prev_sample
            tensors[f"{case}.step{i}"] = latents
        rows.append({"name": case, "steps": steps, "eta": eta, "scheduler": config_of(scheduler)})
    save(out / "toy_runs.safetensors", tensors)
    save_rows(out / "toy_runs.json", {"cases": rows})


def config_of(scheduler):
    """The scheduler's own settings under its own class name.

    from_config keeps settings and the class name of the scheduler it came from. An infinite
    setting (DPMSolverMultistep's lambda_min_clipped) has no JSON form and is left out.
    """
    known = inspect.signature(type(scheduler).__init__).parameters
    config = {"_class_name": type(scheduler).__name__}
    for key, value in scheduler.config.items():
        infinite = isinstance(value, float) and math.isinf(value)
        if key in known and not infinite:
            config[key] = value
    return config
