"""Runs of the solvers that only ComfyUI's and the web UI's menus have, in double precision.

As equations.py, whose toy model they run over. Those with cfg_pp in their names follow CFG++ (Chung
et al. 2024): guided where a step lands, without the prompt where it comes from.
"""

import math

import numpy as np
import torch

from common import save, save_rows
from equations import (
    CHURN,
    Toy,
    between,
    churned,
    numbered,
    pairs,
    parts,
    renoised,
    slope,
    split,
    starting,
    towards,
)
from sigma_schedules import karras


def phi1(z):
    """The integral of the exponential: the weight of an estimate that does not change."""
    return math.exp(z) - 1


def phi2(z):
    """The weight of an estimate that grows evenly over the step."""
    return (math.exp(z) - 1 - z) / z


def heunpp2(toy, x, sigmas, s_churn=0.0, s_noise=1.0):
    """Heun's method with a third slope, weighted by the levels: Carzit (2023)."""
    steps = len(sigmas) - 1
    for i, (sigma, target) in enumerate(pairs(sigmas)):
        x, sigma = churned(toy, x, sigma, steps, s_churn, s_noise)
        d1 = slope(x, sigma, toy.denoised(x, sigma))
        x2 = x + (target - sigma) * d1
        if i == steps - 1:
            x = x2
        else:
            d2 = slope(x2, target, toy.denoised(x2, target))
            if i == steps - 2:
                w2 = target / (2 * sigmas[0])
                mean = (1 - w2) * d1 + w2 * d2
            else:
                beyond = sigmas[i + 2]
                x3 = x2 + (beyond - target) * d2
                d3 = slope(x3, beyond, toy.denoised(x3, beyond))
                w2, w3 = target / (3 * sigmas[0]), beyond / (3 * sigmas[0])
                mean = (1 - w2 - w3) * d1 + w2 * d2 + w3 * d3
            x = x + (target - sigma) * mean
        yield x


def ipndm_v(toy, x, sigmas, max_order=4):
    """Adams and Bashforth's weights for uneven steps, as diff-sampler and ComfyUI write them.

    The integral of the polynomial through the slopes would have (1 - a) / 2 * b for `t1` and
    h2 / h3 in the last weight; the two agree where steps are even.
    """
    history = []
    for i, (sigma, target) in enumerate(pairs(sigmas)):
        history = [slope(x, sigma, toy.denoised(x, sigma)), *history[: max_order - 1]]
        order = 1 if target == 0 else len(history)
        h = target - sigma
        h1, h2, h3 = [sigmas[i - k] - sigmas[i - k - 1] if i > k else 1.0 for k in range(3)]
        weights = [1.0]
        if order > 1:
            r = h / h1
            weights = [(2 + r) / 2, -r / 2]
        if order > 2:
            a, b = h / (3 * (h + h1)), h * (h + h1) / (h1 * (h1 + h2))
            t1 = (1 - a * b) / 2
            weights = np.add([*weights, 0], [t1, -(1 + h1 / h2) * t1, t1 * h1 / h2])
        if order > 3:
            c = h1 * (h1 + h2) / (h2 * (h2 + h3))
            t2 = (1 - a) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
            t2 *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            third = [
                t2,
                -(1 + h1 / h2 + c) * t2,
                (h1 / h2 + c * (1 + h2 / h3)) * t2,
                -t2 * c * h1 / h2,
            ]
            weights = np.add([*weights, 0], third)
        x = x + h * sum(w * d for w, d in zip(weights, history))
        yield x


def dpmpp_2m_cfg_pp(toy, x, sigmas):
    before = None
    for i, (sigma, target) in enumerate(pairs(sigmas)):
        guided, without = toy.both(x, sigma)
        ratio = target / sigma
        end = guided + ratio * (x - without)
        if i > 0 and target > 0:
            r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / target)
            end = end + (1 - ratio) / (2 * r) * (guided - before)
        x, before = end, without
        yield x


def dpmpp_2s_ancestral_cfg_pp(toy, x, sigmas, eta=1.0):
    for sigma, target in pairs(sigmas):
        down, up = split(sigma, target, eta)
        guided, without = toy.both(x, sigma)
        used = without
        if down > 0:
            middle = between(sigma, down, 1 / 2)
            _, used = toy.both(towards(x, sigma, middle, without), middle)
        x = renoised(toy, towards(x, sigma, down, used), up) + (guided - without)
        yield x


def res_multistep_ancestral_cfg_pp(toy, x, sigmas, eta=1.0):
    before = None
    for i, (sigma, target) in enumerate(pairs(sigmas)):
        guided, without = toy.both(x, sigma)
        down, up = split(sigma, target, eta)
        if before is None or down == 0:
            end = guided + down * slope(x, sigma, without)
        else:
            h = math.log(sigma / down)
            c2 = math.log(before[1] / sigmas[i - 1]) / h
            b2 = -phi2(-h) / c2
            b1 = -phi1(-h) - b2
            end = math.exp(-h) * (x + guided - without) + b1 * without + b2 * before[0]
        x = renoised(toy, end, up)
        before = without, down
        yield x


def res_multistep_cfg_pp(toy, x, sigmas):
    yield from res_multistep_ancestral_cfg_pp(toy, x, sigmas, eta=0.0)


def gradient_estimation_cfg_pp(toy, x, sigmas, gamma=2.0):
    before = None
    for sigma, target in pairs(sigmas):
        guided, without = toy.both(x, sigma)
        d = slope(x, sigma, without)
        x = guided + target * d
        if before is not None and target > 0:
            x = x + (gamma - 1) * (target - sigma) * (d - before)
        before = d
        yield x


def ddim_cfg_pp(toy, x, sigmas, eta=0.0):
    """Equation 12 of DDIM in the model's own scale, with the noise that has no prompt."""
    for sigma, target in pairs(sigmas):
        a, a_prev = 1 / (1 + sigma**2), 1 / (1 + target**2)
        guided, without = toy.both(x, sigma)
        deviation = eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        noise = (x - without) * math.sqrt(a) / math.sqrt(1 - a)
        scaled = math.sqrt(a_prev) * guided + math.sqrt(1 - a_prev - deviation**2) * noise
        x = renoised(toy, scaled, deviation) / math.sqrt(a_prev)
        yield x


# SEEDS (Gonzalez et al. 2023) with the clean latents, and exponential Heun. With eta the time of
# the exponentials is (1 + eta) * lambda, and the noise is an integral over the step that its stages
# share.


class Integral:
    """Noise gathered along a step, in units of the level."""

    def __init__(self, toy, h, eta):
        self.toy, self.rate, self.place, self.value = toy, h * eta, 0.0, 0.0

    def to(self, place):
        way = (place - self.place) * self.rate
        if way > 0:
            fresh = math.sqrt(1 - math.exp(-2 * way)) * self.toy.noise()
            self.value = math.exp(-way) * self.value + fresh
        self.place = place
        return self.value


def two_stages(toy, x, sigmas, eta, r, second_order):
    for sigma, target in pairs(sigmas):
        d1 = toy.denoised(x, sigma)
        if target == 0:
            yield d1
            return
        h = math.log(sigma / target)
        k = h * (1 + eta)
        noise = Integral(toy, h, eta)
        s = between(sigma, target, r)
        x2 = s / sigma * math.exp(-r * h * eta) * x - phi1(-r * k) * d1 + s * noise.to(r)
        d2 = toy.denoised(x2, s)
        if second_order:
            b2 = phi2(-k) / r
            mixed = (phi1(-k) - b2) * d1 + b2 * d2
        else:
            mixed = phi1(-k) * (d1 + (d2 - d1) / (2 * r))
        x = target / sigma * math.exp(-h * eta) * x - mixed + target * noise.to(1)
        yield x


def seeds_2(toy, x, sigmas, eta=1.0):
    yield from two_stages(toy, x, sigmas, eta, 1 / 2, second_order=False)


def exp_heun_2_x0(toy, x, sigmas):
    yield from two_stages(toy, x, sigmas, 0.0, 1, second_order=True)


def exp_heun_2_x0_sde(toy, x, sigmas):
    yield from two_stages(toy, x, sigmas, 1.0, 1, second_order=True)


def seeds_3(toy, x, sigmas, eta=1.0):
    r1, r2 = 1 / 3, 2 / 3
    for sigma, target in pairs(sigmas):
        d1 = toy.denoised(x, sigma)
        if target == 0:
            yield d1
            return
        h = math.log(sigma / target)
        k = h * (1 + eta)
        noise = Integral(toy, h, eta)
        s1, s2 = between(sigma, target, r1), between(sigma, target, r2)
        x2 = s1 / sigma * math.exp(-r1 * h * eta) * x - phi1(-r1 * k) * d1 + s1 * noise.to(r1)
        d2 = toy.denoised(x2, s1)
        a2 = r2 / r1 * phi2(-r2 * k)
        a1 = phi1(-r2 * k) - a2
        x3 = s2 / sigma * math.exp(-r2 * h * eta) * x - a1 * d1 - a2 * d2 + s2 * noise.to(r2)
        d3 = toy.denoised(x3, s2)
        b3 = phi2(-k) / r2
        b1 = phi1(-k) - b3
        x = target / sigma * math.exp(-h * eta) * x - b1 * d1 - b3 * d3 + target * noise.to(1)
        yield x


CASES = [
    (heunpp2, {}),
    (heunpp2, CHURN),
    (ipndm_v, {}),
    (ipndm_v, {"max_order": 3}),
    (ipndm_v, {"max_order": 2}),
    (dpmpp_2m_cfg_pp, {}),
    (dpmpp_2s_ancestral_cfg_pp, {}),
    (dpmpp_2s_ancestral_cfg_pp, {"eta": 0.0}),
    (res_multistep_cfg_pp, {}),
    (res_multistep_ancestral_cfg_pp, {}),
    (gradient_estimation_cfg_pp, {}),
    (gradient_estimation_cfg_pp, {"gamma": 1.5}),
    (ddim_cfg_pp, {}),
    (ddim_cfg_pp, {"eta": 0.5}),
    (seeds_2, {}),
    (seeds_2, {"eta": 0.5}),
    (seeds_2, {"eta": 0.0}),
    (seeds_3, {}),
    (seeds_3, {"eta": 0.5}),
    (seeds_3, {"eta": 0.0}),
    (exp_heun_2_x0, {}),
    (exp_heun_2_x0_sde, {}),
]
# What a scheduler is built with beside what its solver is called with.
FIELDS = {"ddim_cfg_pp": {"clip_sample": False}}


def make(out, emoji):
    tensors, rows = {}, []
    sigmas = karras(10)
    for solver, options in CASES:
        toy = Toy(guided=solver.__name__.endswith("cfg_pp"))
        name = ".".join([solver.__name__, *parts(options)])
        results = numbered(solver(toy, starting(sigmas[0]), sigmas, **options))
        tensors[f"{name}.start"] = starting(sigmas[0])
        for key, value in results.items():
            tensors[f"{name}.{key}"] = value
        for k, noise in enumerate(toy.draws):
            tensors[f"{name}.noise{k}"] = noise
        fields = options | FIELDS.get(solver.__name__, {})
        row = {"name": name, "id": solver.__name__, "steps": 10, "options": fields}
        rows.append(row | {"sigmas": sigmas.tolist()})
    save(
        out / "comfyui.safetensors",
        {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()},
    )
    save_rows(out / "comfyui.json", {"cases": rows})
