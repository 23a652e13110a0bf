"""Runs of the solvers that diffusers does not have, in double precision from their equations.

All hold latents as x = clean + sigma * noise and step from one noise level to the next. Where
lambda is -log(sigma), a ratio of levels is exp of a difference of lambdas: the exponential
integrators below are written with it.
"""

import math

import numpy as np
import torch

from common import save, save_rows
from sigma_schedules import SIGMAS, karras, timestep

SAMPLE = (np.arange(768) / 768).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2)[:1]


class Toy:
    """A model, its estimates of the clean latents, and the noise of a run."""

    def __init__(self, guided=False):
        self.guided = guided
        self.random = np.random.default_rng(0)
        self.draws = []
        self.evaluations = 0

    def denoised(self, x, sigma):
        return self.both(x, sigma)[0]

    def both(self, x, sigma):
        """The guided estimate and the one without the prompt."""
        self.evaluations += 1
        scaled = x / math.sqrt(sigma**2 + 1)
        t = timestep(sigma)
        with_prompt = x - sigma * scaled * t / (t + 1)
        without = x - sigma * 0.5 * scaled
        if not self.guided:
            return with_prompt, without
        return without + 1.5 * (with_prompt - without), without

    def noise(self):
        # Rounded as it will be stored.
        noise = self.random.standard_normal(SAMPLE.shape).astype(np.float32)
        self.draws.append(noise)
        return noise.astype(np.float64)


def pairs(sigmas):
    return list(zip(sigmas[:-1], sigmas[1:]))


def between(sigma, target, part):
    """The level some part of the way in lambda."""
    return sigma ** (1 - part) * target**part


def split(sigma, target, eta):
    """The level to denoise to and the noise to add for arriving at `target`."""
    up = min(target, eta * target * math.sqrt(1 - (target / sigma) ** 2))
    return math.sqrt(target**2 - up**2), up


def renoised(toy, x, up):
    return x + up * toy.noise() if up > 0 else x


def towards(x, sigma, target, denoised):
    """The exact solution for an estimate that does not change."""
    return target / sigma * x + (1 - target / sigma) * denoised


def slope(x, sigma, denoised):
    return (x - denoised) / sigma


# DPM-Solver++ (Lu et al. 2022) and its SDE forms, as Katherine Crowson made them ancestral.


def dpmpp_2s_ancestral(toy, x, sigmas, eta=1.0):
    for sigma, target in pairs(sigmas):
        down, up = split(sigma, target, eta)
        denoised = toy.denoised(x, sigma)
        if down > 0:
            middle = between(sigma, down, 1 / 2)
            denoised = toy.denoised(towards(x, sigma, middle, denoised), middle)
        x = renoised(toy, towards(x, sigma, down, denoised), up)
        yield x


def dpmpp_sde(toy, x, sigmas, eta=1.0):
    for sigma, target in pairs(sigmas):
        denoised = toy.denoised(x, sigma)
        if target > 0:
            middle = between(sigma, target, 1 / 2)
            down, up = split(sigma, middle, eta)
            inner = renoised(toy, towards(x, sigma, down, denoised), up)
            denoised = toy.denoised(inner, middle)
        down, up = split(sigma, target, eta)
        x = renoised(toy, towards(x, sigma, down, denoised), up)
        yield x


def dpmpp_2m_sde(toy, x, sigmas, eta=1.0, solver_type="midpoint"):
    before = None
    for sigma, target in pairs(sigmas):
        denoised = toy.denoised(x, sigma)
        if target == 0:
            yield denoised
            return
        h = math.log(sigma / target)
        decay = math.exp(-(1 + eta) * h)
        x = decay * x + (1 - decay) * denoised
        if before:
            change = (denoised - before[0]) * h / before[1]
            if solver_type == "heun":
                x = x + (1 - (1 - decay) / ((1 + eta) * h)) * change
            else:
                x = x + (1 - decay) / 2 * change
        x = renoised(toy, x, target * math.sqrt(1 - math.exp(-2 * eta * h)))
        before = denoised, h
        yield x


def dpmpp_3m_sde(toy, x, sigmas, eta=1.0):
    history = []
    for sigma, target in pairs(sigmas):
        denoised = toy.denoised(x, sigma)
        if target == 0:
            yield denoised
            return
        h = math.log(sigma / target)
        k = (1 + eta) * h
        decay = math.exp(-k)
        x = decay * x + (1 - decay) * denoised
        phi2 = 1 - (1 - decay) / k
        phi3 = phi2 / k - 1 / 2
        if len(history) == 1:
            x = x + phi2 * (denoised - history[0][0]) * h / history[0][1]
        elif len(history) == 2:
            (d1, h1), (d2, h2) = history
            first = (denoised - d1) * h / h1
            second = (d1 - d2) * h / h2
            bend = (first - second) * h / (h1 + h2)
            x = x + phi2 * (first + bend * h1 / h) - phi3 * bend
        x = renoised(toy, x, target * math.sqrt(1 - math.exp(-2 * eta * h)))
        history = [(denoised, h), *history[:1]]
        yield x


# DPM-Solver (Lu et al. 2022), which integrates the noise. `known` keeps what was evaluated.


def noise_at(toy, x, sigma, known, key):
    if key not in known:
        known[key] = slope(x, sigma, toy.denoised(x, sigma))
    return known[key]


def solver1(toy, x, sigma, target, known):
    eps = noise_at(toy, x, sigma, known, 0)
    return x + (target - sigma) * eps


def solver2(toy, x, sigma, target, known, r=1 / 2):
    eps = noise_at(toy, x, sigma, known, 0)
    s = between(sigma, target, r)
    eps_r = noise_at(toy, x + (s - sigma) * eps, s, known, r)
    return x + (target - sigma) * (eps + (eps_r - eps) / (2 * r))


def solver3(toy, x, sigma, target, known, r1=1 / 3, r2=2 / 3):
    h = math.log(sigma / target)
    eps = noise_at(toy, x, sigma, known, 0)
    s1, s2 = between(sigma, target, r1), between(sigma, target, r2)
    eps1 = noise_at(toy, x + (s1 - sigma) * eps, s1, known, r1)
    bend = (sigma - s2) / (r2 * h) - s2
    inner = x + (s2 - sigma) * eps - r2 / r1 * bend * (eps1 - eps)
    eps2 = noise_at(toy, inner, s2, known, r2)
    return x + (target - sigma) * eps - ((sigma - target) / h - target) / r2 * (eps2 - eps)


def dpm_fast(toy, x, evaluations):
    whole = evaluations // 3
    rest = evaluations % 3
    orders = [3] * whole + [rest] if rest else [3] * (whole - 1) + [2, 1]
    solvers = {1: solver1, 2: solver2, 3: solver3}
    levels = np.geomspace(SIGMAS[-1], SIGMAS[0], len(orders) + 1)
    for order, (sigma, target) in zip(orders, pairs(levels)):
        x = solvers[order](toy, x, sigma, target, {})
        yield x


def dpm_adaptive(toy, x, order):
    """k-diffusion's step size control: only the integral part of the controller is used."""
    relative, absolute, h, accepted = 0.05, 0.0078, 0.05, 0.81
    t, end = -math.log(SIGMAS[-1]), -math.log(SIGMAS[0])
    low_before = x
    while t < end - 1e-5:
        t_next = min(end, t + h)
        sigma, target = math.exp(-t), math.exp(-t_next)
        known = {}
        if order == 2:
            low = solver1(toy, x, sigma, target, known)
            high = solver2(toy, x, sigma, target, known)
        else:
            low = solver2(toy, x, sigma, target, known, r=1 / 3)
            high = solver3(toy, x, sigma, target, known)
        allowed = np.maximum(absolute, relative * np.maximum(abs(low), abs(low_before)))
        error = math.sqrt((((low - high) / allowed) ** 2).mean())
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / order) - 1)
        if factor >= accepted:
            low_before, x, t = low, high, t_next
        h *= factor
    return x


# Ordinary differential equation solvers with churn (Karras et al. 2022).


def churned(toy, x, sigma, steps, churn, s_noise):
    raised = sigma * (1 + min(churn / steps, math.sqrt(2) - 1))
    return renoised(toy, x, s_noise * math.sqrt(raised**2 - sigma**2)), raised


def euler(toy, x, sigmas, s_churn=0.0, s_noise=1.0):
    for sigma, target in pairs(sigmas):
        x, sigma = churned(toy, x, sigma, len(sigmas) - 1, s_churn, s_noise)
        x = x + (target - sigma) * slope(x, sigma, toy.denoised(x, sigma))
        yield x


def heun_step(toy, x, sigma, target):
    d = slope(x, sigma, toy.denoised(x, sigma))
    end = x + (target - sigma) * d
    if target == 0:
        return end
    return x + (target - sigma) * (d + slope(end, target, toy.denoised(end, target))) / 2


def heun(toy, x, sigmas, s_churn=0.0, s_noise=1.0):
    for sigma, target in pairs(sigmas):
        x, sigma = churned(toy, x, sigma, len(sigmas) - 1, s_churn, s_noise)
        x = heun_step(toy, x, sigma, target)
        yield x


def dpm_2(toy, x, sigmas, s_churn=0.0, s_noise=1.0):
    for sigma, target in pairs(sigmas):
        x, sigma = churned(toy, x, sigma, len(sigmas) - 1, s_churn, s_noise)
        d = slope(x, sigma, toy.denoised(x, sigma))
        if target > 0:
            middle = between(sigma, target, 1 / 2)
            inner = x + (middle - sigma) * d
            d = slope(inner, middle, toy.denoised(inner, middle))
        x = x + (target - sigma) * d
        yield x


def restart_walk(steps):
    """The levels of Restart (Xu et al. 2023) by the web UI's plan, which goes up again at 0.1."""
    again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    base = karras(steps - again * times)
    low = int(np.abs(base - 0.1).argmin())
    high = int(np.abs(base - 2).argmin())
    loop = karras(again + 1, base[low], base[high])[:-1]
    # The power of a root is off in the last digit, which must not look like a rise.
    loop[0], loop[-1] = base[high], base[low]
    return np.concatenate([base[: low + 1], *[loop] * times, base[low + 1 :]])


def restart(toy, x, sigmas):
    for sigma, target in pairs(sigmas):
        if target > sigma:
            x = renoised(toy, x, math.sqrt(target**2 - sigma**2))
        else:
            x = heun_step(toy, x, sigma, target)
        yield x


# Multistep solvers.


def er_sde(toy, x, sigmas):
    """ER-SDE-Solver-3 (Cui et al. 2023) in its variance exploding form."""

    def scaler(level):
        return level * (np.exp(level**0.3) + 10)

    points = 200
    history = []
    for i, (sigma, target) in enumerate(pairs(sigmas)):
        denoised = toy.denoised(x, sigma)
        if target == 0:
            yield denoised
            return
        ratio = scaler(target) / scaler(sigma)
        x = ratio * x + (1 - ratio) * denoised
        derivative = None
        if history:
            h = target - sigma
            levels = target - h / points * np.arange(points)
            weights = -h / points / scaler(levels)
            derivative = (denoised - history[-1][0]) / (sigma - sigmas[i - 1])
            x = x + (h + scaler(target) * weights.sum()) * derivative
            if history[-1][1] is not None:
                bend = 2 * (derivative - history[-1][1]) / (sigma - sigmas[i - 2])
                x = x + (h**2 / 2 + scaler(target) * (weights * (levels - sigma)).sum()) * bend
        x = renoised(toy, x, math.sqrt(target**2 - (ratio * sigma) ** 2))
        history.append((denoised, derivative))
        yield x


def res_multistep(toy, x, sigmas, eta=0.0):
    """The second order multistep of RES (Zhang et al. 2023)."""
    before = None
    for i, (sigma, target) in enumerate(pairs(sigmas)):
        denoised = toy.denoised(x, sigma)
        down, up = split(sigma, target, eta)
        mixed = denoised
        if before and down > 0:
            h = math.log(sigma / down)
            c2 = math.log(before[1] / sigmas[i - 1]) / h
            phi1 = (1 - math.exp(-h)) / h
            phi2 = (1 - phi1) / h
            mixed = denoised + phi2 / (c2 * phi1) * (before[0] - denoised)
        x = renoised(toy, towards(x, sigma, down, mixed), up)
        before = denoised, down
        yield x


def gradient_estimation(toy, x, sigmas, gamma=2.0):
    """Permenter and Yuan (2023)."""
    before = None
    for sigma, target in pairs(sigmas):
        d = slope(x, sigma, toy.denoised(x, sigma))
        guess = d if before is None or target == 0 else gamma * d + (1 - gamma) * before
        x = x + (target - sigma) * guess
        before = d
        yield x


def ipndm(toy, x, sigmas):
    """Adams and Bashforth's weights, as if the levels were evenly spaced."""
    weights = [
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    history = []
    for sigma, target in pairs(sigmas):
        history = [slope(x, sigma, toy.denoised(x, sigma)), *history[:3]]
        used = history if target > 0 else history[:1]
        mean = sum(w * d for w, d in zip(weights[len(used) - 1], used))
        x = x + (target - sigma) * mean
        yield x


def euler_ancestral_cfg_pp(toy, x, sigmas, eta=1.0):
    """CFG++ (Chung et al. 2024): guided where it lands, without the prompt where it comes from."""
    for sigma, target in pairs(sigmas):
        guided, without = toy.both(x, sigma)
        down, up = split(sigma, target, eta)
        x = renoised(toy, guided + down * slope(x, sigma, without), up)
        yield x


def euler_cfg_pp(toy, x, sigmas):
    yield from euler_ancestral_cfg_pp(toy, x, sigmas, eta=0.0)


CHURN = {"s_churn": 5.0, "s_noise": 1.003}
CASES = [
    (dpmpp_2s_ancestral, {}),
    (dpmpp_2s_ancestral, {"eta": 0.5}),
    (dpmpp_sde, {}),
    (dpmpp_sde, {"eta": 0.5}),
    (dpmpp_2m_sde, {"eta": 1.0, "solver_type": "midpoint"}),
    (dpmpp_2m_sde, {"eta": 0.5, "solver_type": "midpoint"}),
    (dpmpp_2m_sde, {"eta": 1.0, "solver_type": "heun"}),
    (dpmpp_2m_sde, {"eta": 0.5, "solver_type": "heun"}),
    (dpmpp_3m_sde, {}),
    (er_sde, {}),
    (res_multistep, {}),
    (res_multistep, {"eta": 1.0}),
    (gradient_estimation, {}),
    (euler_cfg_pp, {}),
    (euler_ancestral_cfg_pp, {}),
    (ipndm, {}),
    (euler, CHURN),
    (heun, CHURN),
    (dpm_2, CHURN),
]


def make(out, emoji):
    tensors, rows = {}, []

    def record(name, solver, options, steps, results, toy, extra):
        tensors[f"{name}.start"] = starting(SIGMAS[-1])
        for key, value in results.items():
            tensors[f"{name}.{key}"] = value
        for k, noise in enumerate(toy.draws):
            tensors[f"{name}.noise{k}"] = noise
        rows.append({"name": name, "id": solver, "steps": steps, "options": options} | extra)

    sigmas = karras(10)
    for solver, options in CASES:
        solver_id = solver.__name__
        if solver is res_multistep and options:
            solver_id, options = "res_multistep_ancestral", {}
            name, given = solver_id, {"eta": 1.0}
        else:
            name, given = ".".join([solver_id, *parts(options)]), options
        toy = Toy(guided=solver_id.endswith("cfg_pp"))
        results = numbered(solver(toy, starting(sigmas[0]), sigmas, **given))
        record(name, solver_id, options, 10, results, toy, {"sigmas": sigmas.tolist()})
    for steps in [20, 40]:
        toy, walk = Toy(), restart_walk(steps)
        results = numbered(restart(toy, starting(walk[0]), walk)) | {"sigmas": walk}
        record(f"restart.{steps}", "restart", {}, steps, results, toy, {})
    for evaluations in [10, 11, 12]:
        toy = Toy()
        results = numbered(dpm_fast(toy, starting(SIGMAS[-1]), evaluations))
        record(f"dpm_fast.{evaluations}", "dpm_fast", {}, evaluations, results, toy, {})
        assert toy.evaluations == evaluations
    for order in [3, 2]:
        toy = Toy()
        results = {"result": dpm_adaptive(toy, starting(SIGMAS[-1]), order)}
        extra = {"evaluations": toy.evaluations}
        name = f"dpm_adaptive.order{order}"
        record(name, "dpm_adaptive", {"order": order}, 10, results, toy, extra)
    save(
        out / "equations.safetensors",
        {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()},
    )
    save_rows(out / "equations.json", {"cases": rows})


def starting(sigma):
    return SAMPLE * math.sqrt(sigma**2 + 1)


def parts(options):
    return [value if isinstance(value, str) else f"{key}{value}" for key, value in options.items()]


def numbered(results):
    return {f"step{i}": x for i, x in enumerate(results)}
