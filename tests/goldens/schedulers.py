"""Random numbers, noise schedules, timesteps and sigmas."""

import inspect
import math

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from common import save

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


def knows(cls, key):
    """Whether a scheduler class has a setting."""
    return key in inspect.signature(cls.__init__).parameters


def module_of(cls):
    """The short name of a scheduler class: its file's in diffusers."""
    return cls.__module__.rpartition("scheduling_")[2]
