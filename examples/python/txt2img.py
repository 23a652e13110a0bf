"""A prompt becomes a picture.

`python txt2img.py "a red heart, flat style"` runs the small model of this repository; `--model`
takes any folder in the diffusers layout. Needs `diffusion-py[pil]`.
"""

import argparse
import sys
from pathlib import Path

import diffusion_py

EMOJI = Path(__file__).resolve().parent.parent / "models/emoji"


def parse_args():
    parser = argparse.ArgumentParser(
        description="Makes pictures from a prompt.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", help="what the picture shall show")
    add("--negative", default="", help="what it shall not show")
    add("--model", type=Path, default=EMOJI, help="a model folder in the diffusers layout")
    add("--lora", type=Path, action="append", help="a LoRA at full strength; may be given again")
    add("--steps", type=int, default=25, help="number of steps")
    add("--guidance", type=float, default=5.0, help="how far the picture follows the prompt")
    add("--width", type=int, help="in pixels; the model's own if not given")
    add("--height", type=int, help="in pixels; the model's own if not given")
    add("--seed", type=int, default=1, help="seed of the first picture")
    add("--count", type=int, default=1, help="number of pictures, of one seed after another")
    names = ", ".join(diffusion_py.schedulers())
    add(
        "--scheduler", help=f"{names}, each with _karras at its end if wanted; else the model's own"
    )
    add("--dtype", help="float32, float16 or bfloat16: how weights are held")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, metal")
    add("-o", "--output", type=Path, default=Path("out.png"), help="where the picture goes")
    return parser.parse_args()


def show(progress):
    done = round(40 * progress.fraction)
    bar = "#" * done + "-" * (40 - done)
    end = "\n" if progress.fraction == 1 else ""
    print(
        f"\r{bar} step {progress.step} of {progress.num_steps}",
        end=end,
        file=sys.stderr,
        flush=True,
    )


def main():
    args = parse_args()
    pipe = diffusion_py.Pipeline.from_pretrained(
        args.model, dtype=args.dtype, device=args.device, loras=args.lora
    )
    out = pipe.generate(
        args.prompt,
        args.negative,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        width=args.width,
        height=args.height,
        seed=args.seed,
        num_images=args.count,
        scheduler=args.scheduler,
        callback=show,
    )
    for warning in out.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for i, seed in enumerate(out.seeds):
        path = args.output
        if args.count > 1:
            path = path.with_stem(f"{path.stem}-{i + 1}")
        out.save(path, i)
        print(f"{path} (seed {seed})")
    seconds = ", ".join(f"{stage} {time:.2f} s" for stage, time in out.timings.items())
    print(seconds)


if __name__ == "__main__":
    try:
        main()
    except diffusion_py.DiffusionError as error:
        sys.exit(f"error: {error}")
