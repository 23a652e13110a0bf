"""A tiny safety checker, and what diffusers' says of some pictures."""

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from PIL import Image
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from common import build, save, save_json

SIDE, CONCEPTS, SPECIAL = 32, 17, 3
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
# Width and height; each is of another colour.
PICTURES = [(64, 64), (75, 50), (41, 67), (32, 32), (20, 13), (96, 40)]


def pictures():
    random = np.random.default_rng(0)
    for i, (width, height) in enumerate(PICTURES):
        color = random.integers(0, 256, 3)
        noise = random.normal(0, 10 + 15 * i, (height, width, 3))
        yield (color + noise).clip(0, 255).astype(np.uint8)


def make(here, _emoji):
    config = CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    checker = build(StableDiffusionSafetyChecker, config=config)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    images = list(pictures())
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    embeds = checker.visual_projection(checker.vision_model(pixels)[1])
    torch.manual_seed(1)
    for name in ["concept_embeds", "special_care_embeds"]:
        # Between the pictures, so that each concept has some beyond it, with care for few.
        getattr(checker, name).copy_((embeds[:1] + embeds.std() * torch.randn_like(getattr(checker, name))).half())
        cosines = cosine_distance(embeds, getattr(checker, name))
        share = 0.75 if name == "concept_embeds" else 0.85
        getattr(checker, f"{name}_weights").copy_(cosines.quantile(share, dim=0).half())
    golden = {"embeds": embeds}
    reports = []
    for i, image in enumerate(images):
        golden[f"{i}.picture"] = torch.from_numpy(image)
        embedded = embeds[i : i + 1]
        special = cosine_distance(embedded, checker.special_care_embeds)[0] - checker.special_care_embeds_weights
        _, flags = checker(pixels[i : i + 1], [np.zeros(1)])
        reports.append({"flagged": flags[0], "special": special.tolist()})
        golden[f"{i}.excess"] = cosine_distance(embedded, checker.concept_embeds)[0] - checker.concept_embeds_weights
        golden[f"{i}.special"] = special
    save(here / "safety_checker.safetensors", golden)
    save_json(here / "safety_checker.json", reports)
    checker.half().save_pretrained(here / "safety_checker")
