"""Forward passes of whole networks and of single blocks."""

import shutil

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks

from common import build, prefixed, save, save_json, weights

TIMESTEPS = [999.0, 20.5]


def unets(out, emoji):
    for name in ["sd15", "sd21", "sdxl"]:
        unet = UNet2DConditionModel.from_pretrained(out / "models" / name / "unet").float().eval()
        torch.manual_seed(1)
        tensors = {}
        for case, size in {"square": (8, 8), "wide": (8, 12), "odd": (9, 7)}.items():
            inputs = {
                "sample": torch.randn(2, 4, *size),
                "timesteps": torch.tensor(TIMESTEPS),
                "encoder_hidden_states": torch.randn(2, 77, unet.config.cross_attention_dim),
            }
            added = None
            if name == "sdxl":
                added = {
                    "text_embeds": torch.randn(2, 32),
                    "time_ids": torch.tensor(
                        [[64.0, 96, 0, 0, 64, 96], [1024, 768, 10, 20, 512, 640]]
                    ),
                }
                inputs |= added
            tensors |= prefixed(case, inputs)
            tensors[f"{case}.out"] = unet(
                inputs["sample"],
                inputs["timesteps"],
                inputs["encoder_hidden_states"],
                added_cond_kwargs=added,
            ).sample
        save(out / f"unet_{name}.safetensors", tensors)


def blocks(out, emoji):
    common = {"temb_channels": 32, "resnet_groups": 4, "resnet_eps": 1e-5}
    cross = {"num_attention_heads": 2, "cross_attention_dim": 24}
    down = {"in_channels": 16, "out_channels": 32, "num_layers": 2, "add_downsample": True}
    # The channels of the input, the skips and the output all differ, so none can be confused.
    up = {
        "in_channels": 16,
        "prev_output_channel": 24,
        "out_channels": 32,
        "num_layers": 2,
        "add_upsample": True,
    }
    mid = {"in_channels": 32, "num_layers": 1}
    configs = {
        "DownBlock2D": common | down,
        "CrossAttnDownBlock2D": common | down | cross,
        "UNetMidBlock2D": common | mid | {"attention_head_dim": 16},
        "UNetMidBlock2DCrossAttn": common | mid | cross,
        "UpBlock2D": common | up,
        "CrossAttnUpBlock2D": common | up | cross,
    }
    tensors = {}
    for name, config in configs.items():
        block = build(getattr(unet_2d_blocks, name), **config)
        torch.manual_seed(1)
        channels = config.get("prev_output_channel", config["in_channels"])
        inputs = {"hidden_states": torch.randn(2, channels, 4, 6), "temb": torch.randn(2, 32)}
        if "num_attention_heads" in config:
            inputs["encoder_hidden_states"] = torch.randn(2, 5, 24)
        case = weights(block) | inputs
        if "prev_output_channel" in config:
            skips = (torch.randn(2, 16, 4, 6), torch.randn(2, 32, 4, 6))
            case |= {f"res.{i}": skip for i, skip in enumerate(skips)}
            case["out"] = block(**inputs, res_hidden_states_tuple=skips)
            size = (7, 11)
            case["sized.size"] = torch.tensor(size)
            case["sized.out"] = block(**inputs, res_hidden_states_tuple=skips, upsample_size=size)
        elif "add_downsample" in config:
            case["out"], skips = block(**inputs)
            case |= {f"out_res.{i}": skip for i, skip in enumerate(skips)}
        else:
            case["out"] = block(**inputs)
        tensors |= prefixed(name, case)
    save(out / "unet_blocks.safetensors", tensors)
    save_json(out / "unet_blocks.json", configs)


def variants(out, emoji):
    base = {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
        "cross_attention_dim": 12,
    }
    both_levels = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    last_level = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    configs = {
        "only_cross_attention": {"only_cross_attention": True},
        "only_cross_attention_list": both_levels | {"only_cross_attention": (True, False)},
        "time_cond_proj": {"time_cond_proj_dim": 16},
        "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
        "no_mid_block": {"mid_block_type": None},
        "plain_mid_block": {"mid_block_type": "UNetMidBlock2D"},
        "layers_per_block_list": {"layers_per_block": (1, 2)},
        # One context feeds every level, so a level that differs can only be one without attention.
        "cross_attention_dim_list": last_level | {"cross_attention_dim": (10, 12)},
        "cos_first_shifted": {"flip_sin_to_cos": False, "freq_shift": 1},
        "nested_transformer_layers": both_levels
        | {
            "transformer_layers_per_block": ((1,), (2,)),
            "reverse_transformer_layers_per_block": ((2, 1), (1, 2)),
        },
        "center_input": {"center_input_sample": True},
        "downsample_padding_0": {"downsample_padding": 0},
        "mid_block_only_cross_attention": {"mid_block_only_cross_attention": True},
    }
    folder = out / "unet_variants"
    shutil.rmtree(folder, ignore_errors=True)
    for name, changes in configs.items():
        config = base | changes
        unet = build(UNet2DConditionModel, **config)
        torch.manual_seed(1)
        inputs = {
            "sample": torch.randn(2, 4, 8, 8),
            "timesteps": torch.tensor(TIMESTEPS),
            "encoder_hidden_states": torch.randn(2, 5, 12),
        }
        condition = None
        if "time_cond_proj_dim" in config:
            condition = torch.randn(2, config["time_cond_proj_dim"])
            inputs["timestep_cond"] = condition
        result = unet(
            inputs["sample"],
            inputs["timesteps"],
            inputs["encoder_hidden_states"],
            timestep_cond=condition,
        ).sample
        save(folder / f"{name}.safetensors", weights(unet) | inputs | {"out": result})
        kept = {key: value for key, value in unet.config.items() if not key.startswith("_")}
        save_json(folder / f"{name}.json", {"_class_name": "UNet2DConditionModel"} | kept)


def vaes(out, emoji):
    folders = {
        "sd15": out / "models/sd15/vae",
        "sd21": out / "models/sd21/vae",
        "emoji": emoji / "vae",
    }
    for name, folder in folders.items():
        tiny = name == "emoji"
        cls = AutoencoderTiny if tiny else AutoencoderKL
        vae = cls.from_pretrained(folder).float().eval()
        torch.manual_seed(1)
        image = torch.rand(2, 3, 32, 48) * 2 - 1
        latents = torch.randn(2, 4, 4, 6)
        odd = torch.randn(1, 4, 5, 3)
        tensors = {
            "image": image,
            "latents": latents,
            "decoded": vae.decode(latents).sample,
            "odd.latents": odd,
            "odd.decoded": vae.decode(odd).sample,
        }
        if tiny:
            tensors["encoded"] = vae.encode(image).latents
        else:
            posterior = vae.encode(image).latent_dist
            generator = torch.Generator("cpu").manual_seed(0)
            noise = torch.randn(posterior.mean.shape, generator=generator)
            tensors |= {
                "mean": posterior.mean,
                "logvar": posterior.logvar,
                "noise": noise,
                "sample": posterior.sample(generator.manual_seed(0)),
            }
        save(out / f"vae_{name}.safetensors", tensors)
