"""Makes a model of Stable Diffusion 1.5's size with random weights: `CACHE/f32` and `CACHE/bf16`, diffusers folders.

6 GiB on disk. Folders that are there are kept.
"""

import argparse
import shutil
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parents[2] / "tests/goldens/clip-tokenizer"
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def random_pipeline():
    """PyTorch's and transformers' initial weights of a fixed seed."""
    # Here and not above, for this takes seconds and the folders are mostly there.
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )
    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        hidden_act="quick_gelu",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=unet,
        # One evaluation a step, which Stable Diffusion's own PNDM has not.
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    cache = parser.parse_args().cache
    missing = [name for name in DTYPES if not (cache / name).exists()]
    if not missing:
        return
    import torch

    pipeline = random_pipeline()
    # f32 first: the weights lose their lower bits afterwards.
    for name in missing:
        unfinished = cache / f"{name}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        pipeline.to(getattr(torch, DTYPES[name])).save_pretrained(unfinished)
        unfinished.rename(cache / name)


if __name__ == "__main__":
    main()
