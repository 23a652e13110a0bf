"""Increments of torchsde's Brownian tree, which noise for SDE solvers is drawn from."""

import numpy as np
import torch
import torchsde

from common import save, save_rows

SHAPE = (1, 3, 8, 8)
SIGMA_MIN, SIGMA_MAX = 0.0291675, 14.614643


def make(out, emoji):
    tensors, rows = {}, []
    for seed in [0, 7, 4294967301]:
        tree = torchsde.BrownianInterval(
            t0=level(SIGMA_MIN),
            t1=level(SIGMA_MAX),
            size=SHAPE,
            dtype=torch.float32,
            entropy=seed,
            tol=1e-6,
            pool_size=24,
            halfway_tree=True,
        )
        for low, high in queries():
            name = f"increment{len(rows)}"
            tensors[name] = tree(low, high)
            rows.append(
                {
                    "name": name,
                    "seed": seed,
                    "t0": level(SIGMA_MIN).item(),
                    "t1": level(SIGMA_MAX).item(),
                    "ta": low.item(),
                    "tb": high.item(),
                }
            )
    save(out / "brownian.safetensors", tensors)
    save_rows(out / "brownian.json", {"increments": rows, "seed_sequences": seed_sequences()})


def level(sigma):
    """Noise levels reach the tree as single precision scalars."""
    return torch.tensor(sigma, dtype=torch.float32)


def queries():
    """A plan as a sampler walks it, its widest step in three parts, and the whole range."""
    rho = 7
    ramp = torch.linspace(SIGMA_MAX ** (1 / rho), SIGMA_MIN ** (1 / rho), 10, dtype=torch.float64)
    plan = ramp**rho
    cuts = [plan[0], 0.3 * plan[0] + 0.7 * plan[1], 0.9 * plan[1] + 0.1 * plan[0], plan[1]]
    for walk in [plan, cuts, [SIGMA_MAX, SIGMA_MIN]]:
        sigmas = [level(float(sigma)) for sigma in walk]
        yield from zip(sigmas[1:], sigmas[:-1])


def seed_sequences():
    """The states that the tree's seeds are taken from."""
    rows = []
    for entropy in [0, 7, 2**32 + 5]:
        for spawn_key in [(), (3, 2), (5000000, 23)]:
            sequence = np.random.SeedSequence(entropy, spawn_key=spawn_key, pool_size=24)
            state = sequence.generate_state(4).tolist()
            rows.append({"entropy": entropy, "spawn_key": spawn_key, "state": state})
    return rows
