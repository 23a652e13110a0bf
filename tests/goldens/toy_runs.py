"""Runs of every scheduler over a toy model, interval by interval."""

import copy
import inspect
from dataclasses import dataclass, field
from unittest import mock

import diffusers
import torch

from common import save, save_rows
from schedulers import BASE, config_of, knows, module_of

# diffusers' own scheduler tests use this sample and, as noise, the same numbers in falling order.
# One image of their four is enough, because nothing here looks at more than one at a time.
COUNT = torch.arange(768, dtype=torch.float32)
THRESHOLDS = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SDE = "sde-dpmsolver++"
# Fewer than 15 steps end with a step of the first order anyway.
EULER_LAST = {"euler_at_final": True, "final_sigmas_type": "sigma_min", "steps": 16}

# Classes whose latents are clean + sigma * noise; the others hold them in the model's own scale.
EXPLODING = [
    "CMStochasticIterativeScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
]
# Classes that run the other way, need their whole history, or leave no room for a later start.
WHOLE_ONLY = [
    "DDIMInverse",
    "DPMSolverMultistepInverse",
    "PNDM",
    "LCM",
    "TCD",
    "IPNDM",
    "LTXEulerAncestralRF",
]


@dataclass
class Case:
    name: str
    cls: type
    options: dict = field(default_factory=dict)
    steps: int = 10
    start: int = 0
    eta: float | None = None
    mu: float | None = None


# Run with both predictions, with and without Karras sigmas, from the start and from the middle.
MAIN = {
    "DDIM": {"": {"clip_sample": False}},
    "DDIMParallel": {"": {"clip_sample": False}},
    "DDIMInverse": {"": {"clip_sample": False}},
    "DDPM": {"": {"clip_sample": False}},
    "DDPMParallel": {"": {"clip_sample": False}},
    "PNDM": {"plms": {"skip_prk_steps": True}, "prk": {"skip_prk_steps": False}},
    "LMSDiscrete": {"": {}},
    "EulerDiscrete": {"": {}},
    "EulerAncestralDiscrete": {"": {}},
    "HeunDiscrete": {"": {}},
    "KDPM2Discrete": {"": {}},
    "KDPM2AncestralDiscrete": {"": {}},
    "DPMSolverMultistep": {
        "dpmsolver++": {"algorithm_type": "dpmsolver++"},
        "dpmsolver": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "sde-dpmsolver": {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        SDE: {"algorithm_type": SDE},
    },
    "DPMSolverMultistepInverse": {
        "dpmsolver++": {"algorithm_type": "dpmsolver++"},
        "dpmsolver": {"algorithm_type": "dpmsolver"},
    },
    "CosineDPMSolverMultistep": {"": {}},
    "DPMSolverSinglestep": {
        "dpmsolver++": {"algorithm_type": "dpmsolver++"},
        "dpmsolver": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        SDE: {"algorithm_type": SDE},
    },
    "DPMSolverSDE": {"": {"noise_sampler_seed": 0}},
    "DEISMultistep": {"": {}},
    "UniPCMultistep": {"": {}},
    "SASolver": {
        "data": {"algorithm_type": "data_prediction"},
        "noise": {"algorithm_type": "noise_prediction"},
    },
    "LCM": {"": {}},
    "TCD": {"eta0": {"eta": 0.0}, "eta0.3": {"eta": 0.3}, "eta1": {"eta": 1.0}},
    "CMStochasticIterative": {"": {"clip_denoised": False, "num_train_timesteps": 40}},
    "EDMEuler": {"": {}},
    "EDMDPMSolverMultistep": {"dpmsolver++": {}, SDE: {"algorithm_type": SDE}},
    "FlowMatchEulerDiscrete": {"shift1": {"shift": 1.0}, "shift3": {"shift": 3.0}},
    "FlowMatchHeunDiscrete": {"shift1": {"shift": 1.0}, "shift3": {"shift": 3.0}},
    "FlowMatchLCM": {"shift1": {"shift": 1.0}, "shift3": {"shift": 3.0}},
    "LTXEulerAncestralRF": {"eta1": {"eta": 1.0}, "eta0.5": {"eta": 0.5}, "eta0": {"eta": 0.0}},
    "IPNDM": {"": {}},
}

# Set one at a time on every class that has them all.
OPTIONS = {
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "sigma_min": {"final_sigmas_type": "sigma_min"},
    "thresholding": THRESHOLDS,
    "clipped": {"clip_sample": True, "clip_sample_range": 0.3},
    # At a signal of zero only the v-prediction says what the clean latents are.
    "zero_snr": {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    },
}


def orders(key, counts, **options):
    """The same options with each order."""
    return {f"{key}{n}": {"solver_order": n} | options for n in counts}


# The rest, each on top of the first entry of MAIN.
EXTRA = {
    "DDIM": {
        "eta": {"eta": 0.5},
        "eta.v": {"eta": 0.5, "prediction_type": "v_prediction"},
        "final_first": {"set_alpha_to_one": False},
    },
    "DDIMInverse": {"first_alpha": {"set_alpha_to_one": False}},
    "DDPM": {kind: {"variance_type": kind} for kind in ["fixed_small_log", "fixed_large"]},
    "PNDM": {"plms.final_one": {"set_alpha_to_one": True}},
    "DPMSolverMultistep": {
        f"{label}.{name}": MAIN["DPMSolverMultistep"][label] | options
        for label in MAIN["DPMSolverMultistep"]
        for name, options in {
            **orders("order", [1, 3] if label != "sde-dpmsolver" else [1]),
            "heun": {"solver_type": "heun"},
        }.items()
    }
    | {
        "lower_order": {
            "solver_order": 3,
            "lower_order_final": False,
            "final_sigmas_type": "sigma_min",
        },
        "steps16": {"solver_order": 3, "steps": 16},
        "steps16.sigma_min": {"final_sigmas_type": "sigma_min", "steps": 16},
        "euler_at_final": EULER_LAST,
        "flow": FLOW,
        "flow.from5": FLOW | {"start": 5},
    },
    "DPMSolverSinglestep": {
        f"{label}.{name}": MAIN["DPMSolverSinglestep"][label] | options
        for label in MAIN["DPMSolverSinglestep"]
        for name, options in {
            **orders("order", [1, 3]),
            "heun": {"solver_type": "heun"},
            **orders("heun", [3], solver_type="heun"),
        }.items()
    }
    | {
        "lower_order": {"lower_order_final": True},
        "steps9": {"solver_order": 3, "steps": 9},
        "steps11": {"solver_order": 3, "steps": 11},
        "steps9.even": {"solver_order": 3, "final_sigmas_type": "sigma_min", "steps": 9},
        "flow": FLOW,
    },
    "DEISMultistep": orders("order", [1, 3])
    | {
        "lower_order": {"solver_order": 3, "lower_order_final": False},
        "steps16": {"solver_order": 3, "steps": 16},
        "flow": FLOW,
    },
    "UniPCMultistep": {
        f"{kind}.order{n}.{'x0' if x0 else 'noise'}": {
            "solver_type": kind,
            "solver_order": n,
            "predict_x0": x0,
            # Only bh2 with the clean latents reaches a noise of zero, which the others divide by.
            "final_sigmas_type": "zero" if (kind, x0) == ("bh2", True) else "sigma_min",
        }
        for kind in ["bh1", "bh2"]
        for n in [1, 2, 3]
        for x0 in [True, False]
    }
    | {
        "lower_order": {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        "predicted": {"disable_corrector": [0, 1]},
        "flow": FLOW,
        "flow.karras": FLOW | {"use_karras_sigmas": True},
        "flow.from5": FLOW | {"start": 5},
    },
    "SASolver": {
        f"{kind}.order{n}": {
            "algorithm_type": f"{kind}_prediction",
            "predictor_order": n,
            "corrector_order": n,
        }
        for kind in ["data", "noise"]
        for n in [1, 3]
    }
    | {
        "lower_order": {"lower_order_final": False},
        "flow": FLOW,
    },
    "DPMSolverMultistepInverse": {
        f"{label}.{name}": MAIN["DPMSolverMultistepInverse"][label] | options
        for label in MAIN["DPMSolverMultistepInverse"]
        for name, options in {
            **orders("order", [1, 3]),
            "heun": {"solver_type": "heun"},
        }.items()
    }
    | {
        "lower_order": {"solver_order": 3, "lower_order_final": False},
        "steps16": {"solver_order": 3, "steps": 16},
        "euler_at_final": {"euler_at_final": True, "steps": 16},
    },
    "CosineDPMSolverMultistep": orders("order", [1])
    | {
        "karras": {"sigma_schedule": "karras"},
        "heun": {"solver_type": "heun"},
        "sigma_min": {"final_sigmas_type": "sigma_min"},
        "steps16": {"steps": 16},
        "sigma_data": {"sigma_data": 0.5, "sigma_max": 80.0},
    },
    "CMStochasticIterative": {
        "steps4": {"steps": 4},
        "steps1": {"steps": 1},
        "clipped": {"clip_denoised": True},
        "s_noise": {"s_noise": 1.01},
    },
    "FlowMatchLCM": {
        "dynamic": {"use_dynamic_shifting": True, "mu": 0.8},
        "terminal": {"shift": 3.0, "shift_terminal": 0.1},
        "steps4": {"steps": 4},
    },
    "LTXEulerAncestralRF": {"s_noise": {"s_noise": 1.01}, "steps4": {"steps": 4}},
    "LCM": {"steps4": {"steps": 4}, "steps1": {"steps": 1}},
    "EDMEuler": {"exponential": {"sigma_schedule": "exponential"}},
    "EDMDPMSolverMultistep": orders("order", [1, 3])
    | {
        "sde-dpmsolver++.order1": {"solver_order": 1, "algorithm_type": SDE},
        "heun": {"solver_type": "heun"},
        "lower_order": {"solver_order": 3, "lower_order_final": False},
        "steps16": {"solver_order": 3, "steps": 16},
        "euler_at_final": EULER_LAST,
        "exponential": {"sigma_schedule": "exponential"},
    },
    "FlowMatchEulerDiscrete": {
        f"{name}{ending}": options | {"start": start}
        for ending, start in [("", 0), (".from5", 5)]
        for name, options in {
            "dynamic": {"use_dynamic_shifting": True, "mu": 0.8},
            "dynamic.linear": {
                "use_dynamic_shifting": True,
                "time_shift_type": "linear",
                "mu": 0.8,
            },
            "terminal": {"shift": 3.0, "shift_terminal": 0.1},
            "stochastic": {"shift": 3.0, "stochastic_sampling": True},
        }.items()
    },
}


def make(out, emoji):
    rows = []
    for name in MAIN:
        cls = getattr(diffusers, f"{name}Scheduler")
        tensors = {}
        for case in cases(name, cls):
            rows.append(run(case, tensors))
        save(out / f"toy_runs_{module_of(cls)}.safetensors", tensors)
    save_rows(out / "toy_runs.json", {"cases": rows})


def cases(name, cls):
    scheduler = module_of(cls)
    for label, options in MAIN[name].items():
        predicts = ["epsilon", "v_prediction"] if knows(cls, "prediction_type") else [None]
        for prediction in predicts:
            for karras in [False, True] if knows(cls, "use_karras_sigmas") else [False]:
                for start in [0] if name in WHOLE_ONLY else [0, 5]:
                    parts = [scheduler, label, prediction, "karras" if karras else ""]
                    parts.append("from5" if start else "")
                    chosen = {"start": start}
                    if prediction:
                        chosen["prediction_type"] = prediction
                    if karras:
                        chosen["use_karras_sigmas"] = True
                    yield case_of(".".join(filter(None, parts)), cls, options | chosen)
    first = next(iter(MAIN[name].values()))
    # Settings that TCD does not look at, and a spacing that DDIMInverse refuses.
    unused = {"TCD": ["thresholding", "clipped"], "DDIMInverse": ["linspace"]}.get(name, [])
    for label, options in OPTIONS.items():
        changes = any(first.get(key, default_of(cls, key)) != v for key, v in options.items())
        if label not in unused and all(knows(cls, key) for key in options) and changes:
            yield case_of(f"{scheduler}.{label}", cls, first | options)
    for label, options in EXTRA.get(name, {}).items():
        yield case_of(f"{scheduler}.{label}", cls, first | options)


def case_of(name, cls, options):
    """Splits what a run is given from what a scheduler is built with."""
    run_keys = [key for key in ["steps", "start", "eta", "mu"] if not knows(cls, key)]
    given = {key: options[key] for key in run_keys if key in options}
    rest = {key: value for key, value in options.items() if key not in run_keys}
    base = {key: value for key, value in BASE.items() if knows(cls, key)}
    return Case(name, cls, base | rest, **given)


def default_of(cls, key):
    parameter = inspect.signature(cls.__init__).parameters.get(key)
    return parameter and parameter.default


def images(values):
    """Four images of diffusers' tests."""
    return (values / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


def run(case, tensors):
    """Runs a case, adds its tensors and returns its row."""
    scheduler = case.cls(**case.options)
    row = {
        "name": case.name,
        "scheduler": config_of(scheduler) | ({"mu": case.mu} if case.mu else {}),
        "steps": case.steps,
        "start": case.start,
        "eta": case.eta,
        "scaled": case.cls.__name__ not in EXPLODING,
    }
    scheduler.set_timesteps(case.steps, **({"mu": case.mu} if case.mu else {}))
    first = case.start * scheduler.order
    latents = starting_latents(scheduler, first)
    tensors[f"{case.name}.start"] = latents
    if case.cls.__name__ == "IPNDMScheduler":
        for key in ["alphas", "betas", "timesteps"]:
            tensors[f"{case.name}.{key}"] = getattr(scheduler, key)

    draws = Draws()
    ends = interval_ends(scheduler)
    index = case.start
    extra = {} if case.eta is None else {"eta": case.eta}
    for i, t in enumerate(scheduler.timesteps[first:], first):
        scale = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
        output = scale(latents, t) * t.float() / (t.float() + 1)
        latents = draws.step(scheduler, output, t, latents, **extra)
        if i in ends:
            tensors[f"{case.name}.step{index}"] = latents
            index += 1
    assert index == case.steps, case.name
    for k, noise in enumerate(draws.used):
        tensors[f"{case.name}.noise{k}"] = noise
    return row


def starting_latents(scheduler, first):
    """The sample as pure noise, or under the noise of a later start."""
    sample = images(COUNT)[:1].contiguous()
    if not first:
        return sample * getattr(scheduler, "init_noise_sigma", 1.0)
    noise = images(COUNT.flip(0))[:1].contiguous()
    t = scheduler.timesteps[first : first + 1]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(sample, t, noise)
    return scheduler.add_noise(sample, noise, t)


def interval_ends(scheduler):
    """The evaluations after which an interval of the noise levels is done."""
    count = len(scheduler.timesteps)
    if isinstance(scheduler, diffusers.PNDMScheduler):
        if scheduler.config.skip_prk_steps:
            return range(1, count)
        return [3, 7, 11, *range(12, count)]
    if scheduler.order == 2:
        # The last interval takes one evaluation.
        return [*range(1, count - 1, 2), count - 1]
    return range(count)


class Draws:
    """Hands out the noise of a run and keeps what changes its result."""

    def __init__(self, seed=0):
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.used = []

    def step(self, scheduler, *args, **extra):
        """A step of the scheduler.

        Some classes draw noise that they give no weight (or 1e-10), which is not worth recording:
        a step without the noise shows it.
        """
        # A Brownian tree holds tables by identity, which a copy would break.
        tree = getattr(scheduler, "noise_sampler", None)
        without = copy.deepcopy(scheduler, {id(tree): tree})
        drawn = []
        latents = self.watched(scheduler, drawn, 1, args, extra)
        if drawn:
            change = latents - self.watched(without, [], 0, args, extra)
            self.used += drawn if change.abs().max() > 1e-6 else []
        return latents

    def watched(self, scheduler, drawn, weight, args, extra):
        def gaussian(shape, **_):
            noise = torch.randn(shape, generator=self.generator) if weight else torch.zeros(shape)
            drawn.append(noise)
            return noise

        def brownian(sampler, sigma, sigma_next):
            noise = original(sampler, sigma, sigma_next) * weight
            drawn.append(noise)
            return noise

        def made_anew(sample, **_):
            return lambda sigma, sigma_next: gaussian(sample.shape)

        module = inspect.getmodule(type(scheduler))
        if isinstance(scheduler, diffusers.CosineDPMSolverMultistepScheduler):
            # It makes its Brownian path in its first step, from a seed that nobody knows.
            scheduler.noise_sampler = None
            patch = mock.patch.object(module, "BrownianTreeNoiseSampler", made_anew)
        elif hasattr(module, "BrownianTreeNoiseSampler"):
            original = module.BrownianTreeNoiseSampler.__call__
            patch = mock.patch.object(module.BrownianTreeNoiseSampler, "__call__", brownian)
        else:
            patch = mock.patch.object(module, "randn_tensor", gaussian, create=True)
        with patch:
            return scheduler.step(*args, **extra).prev_sample
