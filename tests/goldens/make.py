"""Rebuilds the golden fixtures in this folder from the reference Python libraries."""

import argparse
import os
import sys
from pathlib import Path

# The modules beside this one are imported from the source tree, which should stay clean.
sys.dont_write_bytecode = True

# Everything is read from local folders; a lookup over the network is a mistake.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import diffusers
import transformers

import attention_caches
import brownian
import canvas
import comfyui
import containers
import controls
import deep_cache
import edm
import embeddings
import equations
import gradients
import guidance
import hub
import images
import ip_adapters
import lcm
import loras
import networks
import parameters
import pictures
import perturbed
import plans
import prompts_a1111
import prompts_compel
import published
import runs
import safety
import schedulers
import sdxl
import seamless
import shrink
import single_files
import sigma_schedules
import text
import tiling
import tiny_models
import together
import toy_runs

HERE = Path(__file__).resolve().parent


def main():
    parts = {
        "tokenizers": text.tokenizers,
        "schedulers": schedulers.make,
        "parameters": parameters.make,
        "plans": plans.make,
        "sigma_schedules": sigma_schedules.make,
        "toy_runs": toy_runs.make,
        "equations": equations.make,
        "comfyui": comfyui.make,
        "brownian": brownian.make,
        "published": published.make,
        "models": tiny_models.make,
        "clip": text.clip,
        "unet": networks.unets,
        "blocks": networks.blocks,
        "variants": networks.variants,
        "vae": networks.vaes,
        "tiling": tiling.make,
        "seamless": seamless.make,
        "shrink": shrink.make,
        "deep_cache": deep_cache.make,
        "attention_caches": attention_caches.make,
        "perturbed": perturbed.make,
        "single_files": single_files.make,
        "gradients": gradients.make,
        "loras": loras.make,
        "hub": hub.make,
        "embeddings": embeddings.make,
        "prompts_a1111": prompts_a1111.make,
        "prompts_compel": prompts_compel.make,
        "ip_adapters": ip_adapters.make,
        "runs": runs.make,
        "sdxl": sdxl.make,
        "edm": edm.make,
        "lcm": lcm.make,
        "images": images.make,
        "canvas": canvas.make,
        "guidance": guidance.make,
        "containers": containers.make,
        "controls": controls.make,
        "pictures": pictures.make,
        "safety": safety.make,
        "together": together.make,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--emoji",
        type=Path,
        default=HERE / "../../examples/models/emoji",
        help="folder of the emoji model",
    )
    parser.add_argument(
        "--bpe",
        type=Path,
        help="bpe_simple_vocab_16e6.txt.gz; only needed to rebuild clip-tokenizer",
    )
    parser.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    args = parser.parse_args()

    # More threads split reductions differently and change the last bits.
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()

    if args.bpe:
        text.rebuild_clip_tokenizer(HERE, args.bpe)
    with torch.inference_mode():
        for name, make in parts.items():
            if name in args.only:
                print(name, flush=True)
                make(HERE, args.emoji)


if __name__ == "__main__":
    main()
