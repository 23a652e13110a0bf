"""Pictures as prompts: tiny IP-Adapters of every kind and a tiny CLIP vision model, run by diffusers, and the
names of the published ones."""

import gzip
import json
import shutil

import numpy as np
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import single_files
from common import build, randomize, save, save_json
from runs import generators

SIDE = 32
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_act": "gelu",
}
# Width and height: landscape, portrait with an odd rest, too small, just right, thin.
PICTURES = {
    "landscape": (75, 50),
    "portrait": (41, 67),
    "small": (20, 13),
    "fitting": (32, 32),
    "thin": (9, 150),
}
# File, UNet, kind.
ADAPTERS = {
    "sd15.safetensors": ("sd15", "linear"),
    "sd15_plus.bin": ("sd15", "plus"),
    "sd15_full.safetensors": ("sd15", "full"),
    "sdxl.safetensors": ("sdxl", "linear"),
    "sdxl_plus.safetensors": ("sdxl", "plus"),
}
STYLE = {"down": {"block_0": [0.0, 1.0]}, "up": {"block_1": [0.3, 0.6, 0.9]}}
STYLE_BLOCKS = {
    "down_blocks.0.attentions.1": 1.0,
    "up_blocks.1.attentions.0": 0.3,
    "up_blocks.1.attentions.1": 0.6,
    "up_blocks.1.attentions.2": 0.9,
}
# Name: the adapters, their scales, their pictures, and whether the sample is wide.
CASES = {
    "plain": (["sd15.safetensors"], [1.0], [["landscape"]], False),
    "two_pictures": (["sd15.safetensors"], [0.6], [["landscape", "portrait"]], True),
    "plus": (["sd15_plus.bin"], [0.6], [["portrait"]], True),
    "plus_two_pictures": (["sd15_plus.bin"], [1.0], [["small", "landscape"]], False),
    "full": (["sd15_full.safetensors"], [1.0], [["landscape"]], False),
    "both": (
        ["sd15.safetensors", "sd15_plus.bin"],
        [0.6, 1.0],
        [["landscape"], ["portrait", "thin"]],
        True,
    ),
    "blocks": (["sd15.safetensors"], [STYLE], [["portrait"]], False),
    "xl": (["sdxl.safetensors"], [0.6], [["landscape"]], True),
    "xl_plus": (["sdxl_plus.safetensors"], [1.0], [["portrait"]], False),
}
# Name: the case whose adapters, scales and pictures it has, and the guidance.
RUNS = {
    "plain": 7.5,
    "plus": 7.5,
    "both": 5.0,
    "two_pictures": 1.0,
    "xl": 5.0,
    "xl_plus": 5.0,
}
RUN = {
    "prompt": "two cats! on a red roof",
    "negative_prompt": "blurry, dark",
    "seeds": [42, 43],
    "steps": 4,
    "width": 96,
    "height": 64,
}


class Attention(nn.Module):
    """Queries that look at patches, by the names of the original files."""

    def __init__(self, width, inner):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)


def image_proj(kind, embed, cross, width=16, heads=2, queries=3, tokens=4):
    """The first part of a file; only names and shapes matter, diffusers runs it."""
    module = nn.Module()
    if kind == "linear":
        module.proj = nn.Linear(embed, tokens * cross)
        module.norm = nn.LayerNorm(cross)
    elif kind == "full":
        module.proj = nn.Sequential(
            nn.Linear(embed, embed), nn.GELU(), nn.Linear(embed, cross), nn.LayerNorm(cross)
        )
    else:
        module.latents = nn.Parameter(torch.empty(1, queries, width))
        module.proj_in = nn.Linear(embed, width)
        module.proj_out = nn.Linear(width, cross)
        module.norm_out = nn.LayerNorm(cross)

        def layer():
            feed_forward = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width, bias=False),
                nn.GELU(),
                nn.Linear(4 * width, width, bias=False),
            )
            return nn.ModuleList([Attention(width, 64 * heads), feed_forward])

        module.layers = nn.ModuleList([layer() for _ in range(4)])
    return module


def ip_adapter(unet):
    """The second part: keys and values, numbered as the UNet's attention processors."""
    parts = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner, cross = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
            part = nn.Module()
            part.to_k_ip = nn.Linear(cross, inner, bias=False)
            part.to_v_ip = nn.Linear(cross, inner, bias=False)
            parts[str(number)] = part
    return nn.ModuleDict(parts)


def write_adapter(path, unet, kind):
    embed = VISION["projection_dim"] if kind == "linear" else VISION["hidden_size"]
    parts = {
        "image_proj": randomize(image_proj(kind, embed, unet.config.cross_attention_dim)),
        "ip_adapter": randomize(ip_adapter(unet)),
    }
    state = {
        name: {key: value.half() for key, value in part.state_dict().items()}
        for name, part in parts.items()
    }
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        flat = {f"{part}.{k}": v for part, values in state.items() for k, v in values.items()}
        save_file(flat, path)


def picture(width, height):
    """Soft waves with grain, so that every pixel counts."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    waves = 127 + 100 * np.sin(x * (0.21 + 0.05 * c) + 1.3 * c) * np.cos(y * 0.17 - 0.6 * c)
    grain = np.random.default_rng(width * 1000 + height).integers(-60, 60, waves.shape)
    return np.clip(waves + grain, 0, 255).astype(np.uint8)


def make(out, emoji):
    folder = out / "ip_adapters"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {}
    pictures = {name: picture(*size) for name, size in PICTURES.items()}
    for name, pixels in pictures.items():
        tensors[f"{name}.picture"] = torch.from_numpy(pixels)
        for side in [SIDE, 50]:
            processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
            tensors[f"{name}.pixels.{side}"] = processor(pixels, return_tensors="pt").pixel_values

    config = CLIPVisionConfig(**VISION)
    encoder = build(CLIPVisionModelWithProjection, config=config)
    encoder.half().save_pretrained(folder / "image_encoder")
    encoder.float()
    quick = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION | {"hidden_act": "quick_gelu"}))
    quick.load_state_dict(encoder.state_dict())
    pixels = torch.cat([tensors[f"{name}.pixels.{SIDE}"] for name in ["landscape", "portrait"]])
    for name, model in {"gelu": encoder, "quick_gelu": quick.eval()}.items():
        said = model(pixels, output_hidden_states=True)
        tensors[f"{name}.image_embeds"] = said.image_embeds
        tensors[f"{name}.penultimate"] = said.hidden_states[-2]

    torch.manual_seed(71)
    for name, (model, kind) in ADAPTERS.items():
        unet = UNet2DConditionModel.from_pretrained(out / "models" / model / "unet")
        write_adapter(folder / name, unet, kind)

    rows = []
    for name, (files, scales, given, wide) in CASES.items():
        pipe = pipeline(out, folder, files, scales)
        given = [[pictures[each] for each in one] for one in given]
        tensors |= {f"{name}.{k}": v for k, v in unet_case(pipe, given, wide).items()}
        if name in RUNS:
            tensors |= {f"{name}.{k}": v for k, v in whole_run(pipe, given, RUNS[name]).items()}
        rows.append(
            {
                "name": name,
                "model": ADAPTERS[files[0]][0],
                "files": files,
                "scales": [{"everywhere": 0.0, **STYLE_BLOCKS} if s is STYLE else s for s in scales],
                "pictures": CASES[name][2],
                "guidance": RUNS.get(name),
            }
        )
    save(out / "ip_adapters.safetensors", tensors)
    save_json(out / "ip_adapters.json", {"run": RUN, "cases": rows})
    full_size(out / "ip_adapter_names.json.gz")


def pipeline(out, folder, files, scales):
    model = ADAPTERS[files[0]][0]
    cls = StableDiffusionXLPipeline if model == "sdxl" else StableDiffusionPipeline
    pipe = cls.from_pretrained(out / "models" / model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    )
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name=files)
    assert pipe.image_encoder is not None
    pipe.set_ip_adapter_scale(scales)
    return pipe


def unet_case(pipe, given, wide):
    """One evaluation for a batch of no pictures and pictures."""
    unet = pipe.unet
    torch.manual_seed(3)
    inputs = {
        "sample": torch.randn(2, 4, 8, 12 if wide else 8),
        "timesteps": torch.tensor([999.0, 20.5]),
        "encoder_hidden_states": torch.randn(2, 9, unet.config.cross_attention_dim),
    }
    embeds = pipe.prepare_ip_adapter_image_embeds(given, None, "cpu", 1, True)
    added = {"image_embeds": embeds}
    if unet.config.addition_embed_type:
        inputs["text_embeds"] = torch.randn(2, 32)
        inputs["time_ids"] = torch.tensor([[64.0, 96, 0, 0, 64, 96], [1024, 768, 1, 2, 512, 640]])
        added |= {key: inputs[key] for key in ["text_embeds", "time_ids"]}
    recorded = dict(inputs)
    for i, tokens in enumerate(unet.encoder_hid_proj(embeds)):
        recorded[f"tokens.{i}"] = tokens.flatten(1, 2)
    recorded["out"] = unet(
        inputs["sample"],
        inputs["timesteps"],
        inputs["encoder_hidden_states"],
        added_cond_kwargs=added,
    ).sample
    return recorded


def whole_run(pipe, given, guidance):
    arguments = {
        "num_images_per_prompt": len(RUN["seeds"]),
        "generator": generators(RUN["seeds"]),
        "num_inference_steps": RUN["steps"],
        "guidance_scale": guidance,
        "width": RUN["width"],
        "height": RUN["height"],
        "output_type": "latent",
        "ip_adapter_image": given,
    }
    recorded = {}
    if isinstance(pipe, StableDiffusionXLPipeline):
        torch.manual_seed(5)
        width = pipe.unet.config.cross_attention_dim
        recorded = {
            "prompt_embeds": torch.randn(1, 77, width),
            "negative_prompt_embeds": torch.randn(1, 77, width),
            "pooled_prompt_embeds": torch.randn(1, 32),
            "negative_pooled_prompt_embeds": torch.randn(1, 32),
        }
        arguments |= recorded
        size = (RUN["height"], RUN["width"])
        recorded["run_time_ids"] = torch.tensor([[*size, 0, 0, *size]]).float()
    else:
        arguments |= {key: RUN[key] for key in ["prompt", "negative_prompt"]}
    recorded["latents"] = pipe(**arguments).images
    without = arguments | {"generator": generators(RUN["seeds"])}
    pipe.set_ip_adapter_scale([0.0] * len(given))
    difference = (pipe(**without).images - recorded["latents"]).abs().max()
    assert difference > 0.05 * recorded["latents"].abs().max(), "the pictures change nothing"
    return recorded


# The published files: UNet, kind, encoder, and the arguments of a resampler.
VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1024}
VIT_BIG_G = {"hidden_size": 1664, "intermediate_size": 8192, "projection_dim": 1280}
ENCODERS = {
    "vit_h": VIT_H | {"num_hidden_layers": 32},
    "vit_big_g": VIT_BIG_G | {"num_hidden_layers": 48},
}
PLUS_SD15 = {"width": 768, "heads": 12, "queries": 16}
PLUS_SDXL = {"width": 1280, "heads": 20, "queries": 16}
PUBLISHED = {
    "ip-adapter_sd15": ("sd15", "linear", "vit_h", {}),
    "ip-adapter-plus_sd15": ("sd15", "plus", "vit_h", PLUS_SD15),
    "ip-adapter-full-face_sd15": ("sd15", "full", "vit_h", {}),
    "ip-adapter_sdxl": ("sdxl_base", "linear", "vit_big_g", {}),
    "ip-adapter_sdxl_vit-h": ("sdxl_base", "linear", "vit_h", {}),
    "ip-adapter-plus_sdxl_vit-h": ("sdxl_base", "plus", "vit_h", PLUS_SDXL),
}


def full_size(path):
    shapes = lambda state, prefix="": {prefix + k: list(v.shape) for k, v in state.items()}
    encoders, adapters, layers = {}, {}, {}
    with torch.device("meta"):
        for name, config in ENCODERS.items():
            config |= {
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
                "hidden_act": "gelu",
            }
            model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
            encoders[name] = {"config": config, "tensors": shapes(model.state_dict())}
        unets = {
            name: UNet2DConditionModel(**single_files.FULL_SIZE[name][0])
            for name in ["sd15", "sdxl_base"]
        }
        for name, unet in unets.items():
            keys = [k.removesuffix(".processor") for k in unet.attn_processors if "attn2" in k]
            layers[name] = [
                [k.removesuffix(".attn2"), *unet.get_submodule(k).to_k.weight.shape] for k in keys
            ]
        for name, (unet, kind, encoder, arguments) in PUBLISHED.items():
            key = "projection_dim" if kind == "linear" else "hidden_size"
            embed, cross = ENCODERS[encoder][key], unets[unet].config.cross_attention_dim
            first = image_proj(kind, embed, cross, **arguments).state_dict()
            second = ip_adapter(unets[unet]).state_dict()
            adapters[name] = {
                "unet": unet,
                "encoder": encoder,
                "tensors": shapes(first, "image_proj.") | shapes(second, "ip_adapter."),
            }
    value = {"encoders": encoders, "cross_attentions": layers, "adapters": adapters}
    data = json.dumps(value, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(data, 9, mtime=0))
