"""The noise levels and timesteps that every scheduler plans."""

import diffusers
import torch

from common import save, save_rows
from schedulers import BASE, SPACINGS, config_of, knows, module_of

STEPS = [1, 2, 10, 25]
KINDS = {
    "plain": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
CLASSES = [
    "DDIM",
    "DDIMParallel",
    "DDIMInverse",
    "DDPM",
    "DDPMParallel",
    "PNDM",
    "LMSDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverMultistepInverse",
    "CosineDPMSolverMultistep",
    "DPMSolverSinglestep",
    "DPMSolverSDE",
    "DEISMultistep",
    "UniPCMultistep",
    "SASolver",
    "LCM",
    "TCD",
    "EDMEuler",
    "EDMDPMSolverMultistep",
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    "FlowMatchLCM",
    "LTXEulerAncestralRF",
    "CMStochasticIterative",
]
# Distilled and flow models, and EDM, have one plan.
ONE_PLAN = ["LCM", "TCD", "EDM", "Flow", "LTX", "Cosine", "CM"]


def make(out, emoji):
    tensors, rows = {}, []
    for plan, scheduler in schedulers():
        # Some schedulers change their settings as they plan.
        config = config_of(scheduler)
        for steps in STEPS:
            name = f"{plan}.{steps}"
            if steps == 1 and starts_low(scheduler):
                continue
            scheduler.set_timesteps(steps)
            sigmas, timesteps = grid(scheduler, steps)
            tensors[f"{name}.timesteps"] = timesteps.float()
            if sigmas is not None:
                tensors[f"{name}.sigmas"] = sigmas
            rows.append({"name": name, "scheduler": config, "steps": steps})
    save(out / "schedules_all.safetensors", tensors)
    save_rows(out / "schedules_all.json", {"plans": rows})


def schedulers():
    for name in CLASSES:
        cls = getattr(diffusers, f"{name}Scheduler")
        one = any(name.startswith(family) for family in ONE_PLAN)
        spaced = knows(cls, "timestep_spacing") and not one
        for spacing in SPACINGS if spaced else ["own"]:
            if (name, spacing) == ("DDIMInverse", "linspace"):
                continue
            for kind, options in KINDS.items():
                if all(knows(cls, key) for key in options) and not (one and options):
                    config = BASE | options | {"skip_prk_steps": True}
                    if spaced:
                        config["timestep_spacing"] = spacing
                    config = {key: value for key, value in config.items() if knows(cls, key)}
                    yield f"{module_of(cls)}.{spacing}.{kind}", cls(**config)


def starts_low(scheduler):
    """Whether a single step of the class starts at its curve's lowest level.

    Ours starts at the highest, or on the way back goes up to it.
    """
    if isinstance(scheduler, diffusers.DPMSolverMultistepInverseScheduler):
        curves = ["karras", "exponential", "beta"]
        return any(scheduler.config[f"use_{curve}_sigmas"] for curve in curves)
    return isinstance(scheduler, diffusers.CosineDPMSolverMultistepScheduler)


def grid(scheduler, steps):
    """The levels and timesteps of the intervals' ends, without those in between."""
    if isinstance(scheduler, diffusers.PNDMScheduler):
        return None, torch.from_numpy(scheduler._timesteps[::-1].copy())
    if not hasattr(scheduler, "sigmas"):
        return None, scheduler.timesteps
    if scheduler.order == 1:
        return scheduler.sigmas, scheduler.timesteps
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])[: steps + 1]
    return sigmas, scheduler.timesteps[::2]
