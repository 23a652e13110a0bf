"""What the processes of other libraries share with `e2e`: numbers in, and a line of JSON for each line they read."""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", choices=["unet", "vae"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    return parser.parse_args()


def numbers(*shape):
    """The same as in `e2e`: mean 0, variance 1, multiples of the golden ratio modulo 1."""
    values = (np.arange(math.prod(shape)) * 0.618033988749895 % 1 - 0.5) * math.sqrt(12)
    return values.astype(np.float32).reshape(shape)


def inputs(args):
    """The arguments of Stable Diffusion 1.5's UNet or decoder."""
    latents = numbers(args.batch, 4, args.size // 8, args.size // 8)
    if args.work == "vae":
        return (latents,)
    return latents, np.float32([500]), numbers(args.batch, 77, 768)


def serve(load, evaluate):
    """`load()` gives what `evaluate` takes, which returns f32."""
    start = time.perf_counter()
    model = load()
    answer(load=time.perf_counter() - start)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = evaluate(model)
        seconds = time.perf_counter() - start
        flat = result.reshape(-1)
        sample = [float(flat[i * len(flat) // 64]) for i in range(64)]
        answer(seconds=seconds, peak_memory=peak_memory(), sample=sample)


def answer(**values):
    print(json.dumps(values), flush=True)


def peak_memory():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
