"""The run of `examples/txt2img` with diffusers and PyTorch, and the same line of timings.

Needs the packages of tests/goldens/requirements.txt.
"""

import time

START = time.perf_counter()

import argparse
import resource
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

MODEL = Path(__file__).resolve().parents[2] / "examples/models/emoji"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, help="side of the picture; default: the model's own")
    parser.add_argument("-o", "--output", default="out.png")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    pipe = StableDiffusionPipeline.from_pretrained(
        args.model, torch_dtype=dtype, safety_checker=None, local_files_only=True
    )
    if args.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    latents = pipe(
        args.prompt,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        height=args.size,
        width=args.size,
        generator=torch.Generator("cpu").manual_seed(args.seed),
        output_type="latent",
    ).images
    sampled = time.perf_counter()
    with torch.inference_mode():
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    pipe.image_processor.postprocess(image)[0].save(args.output)
    decoded = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    step = (sampled - loaded) / args.steps
    print(
        f"load {loaded - START:.2f}s (with imports), {step * 1000:.1f}ms a step (with the prompt), "
        f"decode {(decoded - sampled) * 1000:.0f}ms, peak memory {peak} MiB"
    )


if __name__ == "__main__":
    main()
