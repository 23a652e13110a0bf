"""Tiny models of every family as one file in the original names, and the names of the full-size ones."""

import gzip
import json

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import original_names as original
from common import build, prefixed, save, save_json

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}
LINEAR = {"use_linear_projection": True}
XL = LINEAR | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}
# Family, settings of the UNet, text encoders.
FAMILIES = {
    "sd1": ({}, ["clip"]),
    "sd1_inpaint": ({"in_channels": 9}, ["clip"]),
    "sd1_pix2pix": ({"in_channels": 8}, ["clip"]),
    "sd1_lcm": ({"time_cond_proj_dim": 12}, ["clip"]),
    "sd1_bk_small": ({"layers_per_block": 1, "mid_block_type": None}, ["clip"]),
    "sd2": (LINEAR, ["open_clip"]),
    "sdxl": (
        XL | {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 6 * 8 + 16},
        ["clip", "open_clip"],
    ),
    "sdxl_ssd": (
        XL
        | {
            "cross_attention_dim": 32,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
            "transformer_layers_per_block": (1, 3),
            "reverse_transformer_layers_per_block": ((3, 3, 4), 1),
            "mid_block_type": "UNetMidBlock2D",
        },
        ["clip", "open_clip"],
    ),
    "refiner": (XL | {"projection_class_embeddings_input_dim": 5 * 8 + 16}, ["open_clip"]),
}
SCHEDULE = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
]


def make(out, emoji):
    tiny(out / "single_files")
    full_size(out / "full_size_names.json.gz")


def text_places(name, texts):
    """Component, prefix and kind of each text encoder of a family."""
    if not texts:
        return []
    if texts == ["clip", "open_clip"]:
        return [
            ("text_encoder", "conditioner.embedders.0.transformer.", "clip"),
            ("text_encoder_2", "conditioner.embedders.1.model.", "open_clip"),
        ]
    if name.startswith("refiner"):
        return [("text_encoder_2", "conditioner.embedders.0.model.", "open_clip")]
    if texts == ["open_clip"]:
        return [("text_encoder", "cond_stage_model.model.", "open_clip")]
    return [("text_encoder", "cond_stage_model.transformer.", "clip")]


def with_idle_layer(state, layers):
    """SD 2's text encoder has a last layer and a projection that nobody runs."""
    first = f"encoder.layers.{layers - 1}."
    idle = {
        name.replace(first, f"encoder.layers.{layers}."): tensor * 0.5
        for name, tensor in state.items()
        if first in name
    }
    token = next(t for name, t in state.items() if name.endswith("token_embedding.weight"))
    width = token.shape[1]
    projection = torch.zeros(width, width, dtype=token.dtype, device=token.device)
    return state | idle | {"text_projection.weight": projection}


def text_file(component, prefix, kind, model, family):
    state = model.state_dict()
    if kind == "clip":
        return original.clip(state, prefix)
    file = original.open_clip(state, prefix)
    original.check_open_clip(file, model, prefix)
    if family.startswith("sd2"):
        state = with_idle_layer(state, model.config.num_hidden_layers)
        file = original.open_clip(state, prefix)
    return file


def tiny(folder):
    folder.mkdir(exist_ok=True)
    vae = build(
        AutoencoderKL,
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=2,
    )
    settings = {}
    for name, (changes, texts) in FAMILIES.items():
        unet = build(UNet2DConditionModel, **(TINY | changes))
        file = original.unet(unet.state_dict(), unet.config)
        original.check_unet(file, unet.state_dict(), unet.config)
        vae_file = original.vae(vae.state_dict(), vae.config)
        original.check_vae(vae_file, vae.state_dict(), vae.config)
        file |= vae_file
        torch.manual_seed(1)
        golden = run_unet(name, unet) | run_vae(vae)
        settings[name] = {
            "unet": {"norm_num_groups": 4, "attention_head_dim": 2},
            "vae": {"norm_num_groups": 2},
        }
        for component, prefix, kind in text_places(name, texts):
            model = text_model(component, kind)
            file |= text_file(component, prefix, kind, model, name)
            file[f"{prefix}logit_scale"] = torch.tensor(1.0)
            golden |= run_text(component, model)
            settings[name][component] = {"num_attention_heads": 2}
        file["alphas_cumprod"] = torch.linspace(0.99, 0.01, 10)
        if name == "sd1":
            file |= averages(file)
        # The numbers are exact in half precision.
        file = {key: value.half().contiguous().clone() for key, value in file.items()}
        save_file(file, folder / f"{name}.safetensors", metadata={"format": "pt"})
        save(folder / f"{name}_golden.safetensors", golden)
    save_json(folder / "settings.json", settings)
    taesd(folder)


def taesd(folder):
    """TAESD's numbered lists: the decoder's first layer, which bounds the latents, counts there."""
    vae = build(
        AutoencoderTiny,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
    )
    state = vae.state_dict()
    for half, offset in {"encoder": 0, "decoder": 1}.items():
        file = {}
        for name, tensor in state.items():
            if name.startswith(half):
                number, rest = name.removeprefix(f"{half}.layers.").split(".", 1)
                file[f"{int(number) + offset}.{rest}"] = tensor.half()
        save_file(file, folder / f"taesd_{half}.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    latents, image = torch.randn(1, 4, 3, 4), torch.rand(1, 3, 8, 12) * 2 - 1
    golden = {
        "latents": latents,
        "decoded": vae.decode(latents).sample,
        "image": image,
        "encoded": vae.encode(image).latents,
    }
    save(folder / "taesd_golden.safetensors", golden)


def averages(file):
    """The running averages as LitEma names them: half of each weight here, to tell them apart."""
    unet = {name: tensor for name, tensor in file.items() if name.startswith("model.")}
    flat = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor * 0.5
        for name, tensor in unet.items()
    }
    return flat | {"model_ema.decay": torch.tensor(0.5), "model_ema.num_updates": torch.tensor(1.0)}


def text_model(component, kind):
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="quick_gelu" if kind == "clip" else "gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    second = component == "text_encoder_2"
    return build(CLIPTextModelWithProjection if second else CLIPTextModel, config=config)


def run_unet(name, unet):
    config = unet.config
    inputs = {
        "sample": torch.randn(2, config.in_channels, 8, 12),
        "timesteps": torch.tensor([999.0, 20.5]),
        "encoder_hidden_states": torch.randn(2, 7, config.cross_attention_dim),
    }
    added, cond = None, None
    if config.addition_embed_type:
        ids = 5 if name == "refiner" else 6
        added = {"text_embeds": torch.randn(2, 16), "time_ids": torch.rand(2, ids) * 100}
        inputs |= added
    if config.time_cond_proj_dim:
        cond = inputs["timestep_cond"] = torch.randn(2, config.time_cond_proj_dim)
    inputs["out"] = unet(
        inputs["sample"],
        inputs["timesteps"],
        inputs["encoder_hidden_states"],
        timestep_cond=cond,
        added_cond_kwargs=added,
    ).sample
    return prefixed("unet", inputs)


def run_vae(vae):
    latents = torch.randn(1, 4, 3, 4)
    image = torch.rand(1, 3, 8, 12) * 2 - 1
    return prefixed(
        "vae",
        {
            "latents": latents,
            "decoded": vae.decode(latents).sample,
            "image": image,
            "mean": vae.encode(image).latent_dist.mean,
        },
    )


def run_text(component, model):
    ids = torch.randint(0, 63, (2, 77))
    ids[:, -1] = 63
    output = model(ids, output_hidden_states=True)
    tensors = {
        "ids": ids.float(),
        "last_hidden_state": output.last_hidden_state,
        "penultimate": output.hidden_states[-2],
    }
    if component == "text_encoder_2":
        tensors["text_embeds"] = output.text_embeds
    return prefixed(component, tensors)


SD1_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_UNET = SDXL_UNET | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
SD2_UNET = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SSD_UNET = SDXL_UNET | {
    "transformer_layers_per_block": (1, 2, 4),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    "mid_block_type": "UNetMidBlock2D",
}
VEGA_UNET = SDXL_UNET | {
    "transformer_layers_per_block": (1, 1, 2),
    "mid_block_type": "UNetMidBlock2D",
}
SMALL_UNET = SD1_UNET | {"layers_per_block": 1, "mid_block_type": None}
# Settings of the UNet, text encoders; without any the file is the UNet alone.
FULL_SIZE = {
    "sd15": (SD1_UNET, ["clip"]),
    "sd15_inpaint": (SD1_UNET | {"in_channels": 9}, ["clip"]),
    "sd21": (SD2_UNET, ["open_clip"]),
    "sdxl_base": (SDXL_UNET, ["clip", "open_clip"]),
    "refiner": (REFINER_UNET, ["open_clip"]),
    "ssd_1b": (SSD_UNET, []),
    "segmind_vega": (VEGA_UNET, []),
    "small_sd": (SMALL_UNET, []),
}
WIDTHS = {"clip": (768, 12), "sd2": (1024, 23), "open_clip": (1280, 32)}


def full_text_model(component, kind, name):
    width, layers = WIDTHS["sd2" if name.startswith("sd2") else kind]
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        hidden_act="quick_gelu" if kind == "clip" else "gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    second = component == "text_encoder_2"
    return (CLIPTextModelWithProjection if second else CLIPTextModel)(config)


def full_size(path):
    models = {}
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        for name, (config, texts) in FULL_SIZE.items():
            unet = UNet2DConditionModel(**config)
            file = original.unet(unet.state_dict(), unet.config)
            original.check_unet(file, unet.state_dict(), unet.config)
            parts = {"unet": part(unet)}
            leftovers = {}
            if texts:
                vae_file = original.vae(vae.state_dict(), vae.config)
                original.check_vae(vae_file, vae.state_dict(), vae.config)
                file |= vae_file
                parts["vae"] = part(vae)
            for component, prefix, kind in text_places(name, texts):
                model = full_text_model(component, kind, name)
                used = original.open_clip(model.state_dict(), prefix) if kind == "open_clip" else {}
                text = text_file(component, prefix, kind, model, name)
                parts[component] = part(model, keep=original.wrapped)
                if kind == "open_clip":
                    leftovers[f"{prefix}logit_scale"] = []
                    leftovers |= {k: shape(t) for k, t in text.items() if k not in used}
                else:
                    leftovers[f"{prefix}text_model.embeddings.position_ids"] = [1, 77]
                file |= text
            if "xl" in name or name == "refiner":
                leftovers["denoiser.sigmas"] = [1000]
            elif texts:
                leftovers |= {buffer: [1000] for buffer in SCHEDULE}
                leftovers |= {"model_ema.decay": [], "model_ema.num_updates": []}
            models[name] = {
                "file": {key: shape(tensor) for key, tensor in file.items()} | leftovers,
                "leftovers": sorted(leftovers),
                "parts": parts,
            }
    data = json.dumps(models, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(data, 9, mtime=0))


def shape(tensor):
    return list(tensor.shape)


def part(model, keep=lambda name: name):
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
    kinds = (int, float, str, list, tuple)
    plain = {
        key: value
        for key, value in config.items()
        # A UNet without a middle says so by null; other nulls are defaults.
        if (isinstance(value, kinds) or key == "mid_block_type") and not key.startswith("_")
    }
    tensors = {keep(name): shape(tensor) for name, tensor in model.state_dict().items()}
    return {"config": plain, "tensors": tensors}
