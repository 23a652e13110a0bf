"""Noise levels by the names of k-diffusion and the user interfaces, from their definitions.

`n` counts the levels above zero; all are over the noise schedule of Stable Diffusion.
"""

import json
import math

import numpy as np
import torch
from scipy import stats

from common import save, save_rows

# Rising, by training timestep.
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SIGMAS = np.sqrt(1 / np.cumprod(1 - BETAS) - 1)
LOW, HIGH = SIGMAS[0], SIGMAS[-1]
COUNTS = [1, 2, 3, 10, 11, 20, 25, 50]

# Sabour et al. 2024, table of 10 steps, with the last level that AUTOMATIC1111's web UI uses.
STEPS_SD15 = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
STEPS_SDXL = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]


def timestep(sigma):
    """The fractional timestep of a level, linear in its logarithm and cut off at the ends."""
    return np.interp(np.log(sigma), np.log(SIGMAS), np.arange(1000))


def level(t):
    return np.exp(np.interp(t, np.arange(1000), np.log(SIGMAS)))


def with_zero(levels):
    return np.append(levels, 0.0)


def karras(n, low=LOW, high=HIGH, rho=7):
    return with_zero(np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho)


def polyexponential(n, rho):
    return with_zero(LOW * (HIGH / LOW) ** (np.linspace(1, 0, n) ** rho))


def exponential(n):
    return with_zero(np.geomspace(HIGH, LOW, n))


def beta(n):
    """Levels at the quantiles of a Beta distribution."""
    return with_zero(LOW + (HIGH - LOW) * stats.beta.ppf(np.linspace(1, 0, n), 0.6, 0.6))


def beta_timesteps(n):
    """Levels of the timesteps at such quantiles, each once."""
    shares = stats.beta.ppf(1 - np.arange(n) / n, 0.6, 0.6)
    places = np.rint(999 * shares).astype(int)
    return with_zero(SIGMAS[list(dict.fromkeys(places))])


def laplace(n):
    """Hang et al. 2024: the logarithm of the level is Laplace distributed around mu."""
    mu, scale, avoided = 0.0, 0.5, 1e-5
    x = np.linspace(0, 1, n)
    logs = mu + scale * np.sign(0.5 - x) * -np.log(1 - 2 * np.abs(0.5 - x) + avoided)
    return with_zero(np.clip(np.exp(logs), LOW, HIGH))


def normal(n):
    """Timesteps evenly from the last to the first."""
    return with_zero(level(np.linspace(999, 0, n)))


def sgm_uniform(n):
    """The same with one more timestep, which is left out."""
    return with_zero(level(np.linspace(999, 0, n + 1)[:-1]))


def simple(n):
    """Every so many training timesteps from the last downwards."""
    return with_zero([SIGMAS[999 - int(i * 1000 / n)] for i in range(n)])


def ddim_uniform(n):
    """Every so many from the second upwards: sometimes more levels than asked for."""
    return with_zero(SIGMAS[1 :: max(1000 // n, 1)][::-1])


def kl_optimal(n):
    """Sabour et al. 2024, section 3: even in the arc tangent of the level."""
    return with_zero(np.tan(np.linspace(math.atan(HIGH), math.atan(LOW), n)))


def resampled(table, n):
    """A table of levels at another length, linear in the logarithm."""
    places = np.linspace(0, len(table) - 1, n)
    return np.exp(np.interp(places, np.arange(len(table)), np.log(table)))


def align_your_steps_sd15(n):
    return with_zero(resampled(STEPS_SD15, n))


def align_your_steps_sdxl(n):
    return with_zero(resampled(STEPS_SDXL, n))


def linear_quadratic(n):
    """A small slope for half of the steps, then a parabola from there that ends at zero."""
    threshold, linear = 0.025, n // 2
    if n == 1:
        return np.array([HIGH, 0.0])
    # A parabola through the end of the line, with its slope, that is 1 at n.
    slope = threshold / linear
    rest = n - linear
    bend = (1 - threshold - slope * rest) / rest**2
    i = np.arange(n + 1)
    over = np.maximum(i - linear, 0)
    return HIGH * (1 - (slope * i + bend * over**2))


def gits(n, tables):
    """Chen et al. 2024: levels found by search, whose last one gives way to zero."""
    levels = np.array(tables[n - 2] if n <= 20 else resampled(tables[-1], n + 1))
    return with_zero(levels[:-1])


def make(out, emoji):
    tables = json.loads((out / "gits.json").read_text())
    schedules = {
        "karras": karras,
        "exponential": exponential,
        "polyexponential.rho1": lambda n: polyexponential(n, 1),
        "polyexponential.rho2": lambda n: polyexponential(n, 2),
        "beta": beta,
        "beta_timesteps": beta_timesteps,
        "laplace": laplace,
        "normal": normal,
        "sgm_uniform": sgm_uniform,
        "simple": simple,
        "ddim_uniform": ddim_uniform,
        "kl_optimal": kl_optimal,
        "align_your_steps.sd15": align_your_steps_sd15,
        "align_your_steps.sdxl": align_your_steps_sdxl,
        "linear_quadratic": linear_quadratic,
        "gits": lambda n: gits(n, tables),
    }
    # One level has no place in a walk from high to low for these.
    more = ["laplace", "kl_optimal", "align_your_steps.sd15", "align_your_steps.sdxl", "gits"]
    tensors, rows = {}, []
    for schedule, levels in schedules.items():
        for n in COUNTS:
            if n == 1 and schedule in more:
                continue
            name = f"{schedule}.{n}"
            values = levels(n)
            tensors[name] = torch.from_numpy(values.astype(np.float32))
            rows.append({"name": name, "schedule": schedule, "steps": n})
    save(out / "sigma_schedules.safetensors", tensors)
    save_rows(out / "sigma_schedules.json", {"schedules": rows})
