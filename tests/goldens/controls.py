"""ControlNets and T2I-Adapters: files in both dialects, what the networks give, and whole runs."""

import gzip
import json
import shutil

import numpy as np
import PIL.Image
import torch
from diffusers import (
    ControlNetModel,
    HeunDiscreteScheduler,
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from safetensors.torch import save_file

import original_names as original
from common import build, prefixed, save, save_rows
from runs import generators, sdxl_inputs
from single_files import SD1_UNET, SD2_UNET, SDXL_UNET, part, shape

# Names of ControlNets, their UNets' models, and settings beside those of the UNet.
NETS = {
    "a": ("sd15", {}),
    # Attention of no transformer blocks, as the smaller ones of SDXL have.
    "b": (
        "sd15",
        {"controlnet_conditioning_channel_order": "bgr", "transformer_layers_per_block": 0},
    ),
    "xl": ("sdxl", {}),
}
ADAPTERS = {
    "full": ("sd15", {"channels": (16, 32), "adapter_type": "full_adapter"}),
    "light": (
        "sd21",
        {"in_channels": 1, "channels": (16, 32), "adapter_type": "light_adapter"},
    ),
    "full_xl": (
        "sdxl",
        {
            "channels": (16, 32, 32, 32),
            "adapter_type": "full_adapter_xl",
            "downscale_factor": 16,
        },
    ),
}
# What a ControlNet has of its UNet's settings.
SHARED = [
    "in_channels",
    "down_block_types",
    "mid_block_type",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "attention_head_dim",
    "use_linear_projection",
    "addition_embed_type",
    "addition_time_embed_dim",
    "upcast_attention",
    "projection_class_embeddings_input_dim",
]
EMBEDDING = (4, 8, 8, 16)
PROMPT = {"prompt": "two cats! on a red roof", "negative_prompt": "blurry, dark"}


def make(out, emoji):
    folder = out / "controls"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    models = out / "models"
    nets = {name: control_net(folder, models, name) for name in NETS}
    adapters = {name: t2i_adapter(folder, name) for name in ADAPTERS}
    pictures = {f"picture{i}": picture(i) for i in range(2)}
    save(folder / "pictures.safetensors", pictures | resized(pictures["picture0"]))
    for name, net in nets.items():
        save(folder / f"{name}_golden.safetensors", run_net(models, name, net))
    for name, adapter in adapters.items():
        save(folder / f"{name}_golden.safetensors", run_adapter(models, name, adapter))
    runs(folder, models, nets, adapters, pictures)
    full_size(out / "full_size_controls.json.gz")


def shared(config):
    return {key: config[key] for key in SHARED if config.get(key) is not None}


def control_net(folder, models, name):
    model, changes = NETS[name]
    unet = UNet2DConditionModel.load_config(models / model / "unet")
    config = shared(unet) | changes | {"conditioning_embedding_out_channels": EMBEDDING}
    net = build(ControlNetModel, **config)
    state = net.state_dict()
    file = original.control_net(state, net.config)
    original.check_control_net(file, state, net.config)
    file = {key: tensor.half() for key, tensor in file.items()}
    match name:
        case "a":
            save_file(file, folder / "a.safetensors", metadata={"format": "pt"})
        case "xl":
            torch.save({"state_dict": file}, folder / "xl.pth")
    net.half().save_pretrained(folder / name, safe_serialization=name != "b")
    return net.float()


def t2i_adapter(folder, name):
    adapter = build(T2IAdapter, **ADAPTERS[name][1])
    file = original.t2i_adapter(adapter.state_dict(), adapter.config)
    file = {key: tensor.half() for key, tensor in file.items()}
    save_file(file, folder / f"{name}.safetensors", metadata={"format": "pt"})
    adapter.half().save_pretrained(folder / name)
    return adapter.float()


def picture(seed, size=(50, 70)):
    """Waves of colour with some noise: (height, width, 3) bytes."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.arange(n).float() for n in size)
    planes = []
    for frequency in torch.rand(3, 2, generator=generator) * 0.5:
        planes.append(torch.sin(rows[:, None] * frequency[0] + columns * frequency[1]))
    noise = torch.rand(*size, 3, generator=generator)
    return ((torch.stack(planes, -1) * 0.5 + 0.5) * 215 + noise * 40).to(torch.uint8)


def pil(pixels):
    return PIL.Image.fromarray(pixels.numpy())


def resized(pixels):
    """Pillow's resizing, which preparing pictures begins with."""
    results = {}
    for size in [(96, 64), (33, 17), (70, 128), (140, 50), (1, 1)]:
        image = pil(pixels).resize(size, resample=PIL.Image.Resampling.LANCZOS)
        results[f"{size[0]}x{size[1]}"] = torch.from_numpy(np.array(image))
    results["grey"] = torch.from_numpy(np.array(pil(pixels).convert("L")))
    return results


def batch(size, channels=3):
    """Pictures of the size of latents, as bytes, and as networks take them."""
    height, width = (8 * n for n in size)
    pixels = torch.stack([picture(seed, (height, width)) for seed in range(2)])[..., :channels]
    return pixels, pixels.permute(0, 3, 1, 2).float() / 255


def inputs(unet, size):
    config = unet.config
    tensors = {
        "sample": torch.randn(2, 4, *size),
        "timesteps": torch.tensor([999.0, 20.5]),
        "encoder_hidden_states": torch.randn(2, 7, config.cross_attention_dim),
    }
    if config.addition_embed_type:
        tensors |= {"text_embeds": torch.randn(2, 32), "time_ids": torch.rand(2, 6) * 100}
    return tensors


def arguments(tensors):
    added = {key: tensors[key] for key in ["text_embeds", "time_ids"] if key in tensors}
    return {
        "sample": tensors["sample"],
        "timestep": tensors["timesteps"],
        "encoder_hidden_states": tensors["encoder_hidden_states"],
        "added_cond_kwargs": added,
    }


def load_unet(models, model):
    return UNet2DConditionModel.from_pretrained(models / model / "unet").float().eval()


def run_net(models, name, net):
    unet = load_unet(models, NETS[name][0])
    torch.manual_seed(1)
    tensors = {}
    sizes = {"wide": (8, 12)} if name == "b" else {"wide": (8, 12), "odd": (9, 7)}
    for case, size in sizes.items():
        given = inputs(unet, size)
        pixels, images = batch(size)
        tensors |= prefixed(case, given | {"pixels": pixels})
        modes = {"plain": {}}
        if name != "b":
            modes |= {"guess": {"guess_mode": True}, "pooled": {}}
        for mode, options in modes.items():
            # Averages over the picture, as one published model has them.
            net.register_to_config(global_pool_conditions=mode == "pooled")
            down, mid = net(
                **arguments(given),
                controlnet_cond=images,
                conditioning_scale=0.7,
                return_dict=False,
                **options,
            )
            tensors |= {f"{case}.{mode}.down.{i}": t for i, t in enumerate(down)}
            tensors[f"{case}.{mode}.mid"] = mid
            tensors[f"{case}.{mode}.out"] = unet(
                **arguments(given),
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        net.register_to_config(global_pool_conditions=False)
    return tensors


def run_adapter(models, name, adapter):
    unet = load_unet(models, ADAPTERS[name][0])
    torch.manual_seed(1)
    tensors = {}
    odd = (10, 14) if name == "full_xl" else (9, 7)
    for case, size in {"wide": (8, 12), "odd": odd}.items():
        given = inputs(unet, size)
        pixels, images = batch(size, adapter.config.in_channels)
        tensors |= prefixed(case, given | {"pixels": pixels})
        features = adapter(images)
        tensors |= {f"{case}.feature.{i}": feature for i, feature in enumerate(features)}
        tensors[f"{case}.out"] = unet(
            **arguments(given),
            down_intrablock_additional_residuals=[feature.clone() for feature in features],
        ).sample
    return tensors


def cases():
    """Model, controls, and what else a run is told; a control has a network, a picture and settings."""
    base = {"seeds": [42, 43], "steps": 6, "guidance": 7.5, "width": 96, "height": 64}
    a = {"net": "a", "picture": "picture0"}
    b = {"net": "b", "picture": "picture1"}
    sd15 = base | {"model": "sd15"}
    yield "one", sd15 | {"controls": [a | {"scale": 0.7}]}
    yield "two", sd15 | {
        "controls": [a | {"scale": 0.5}, b | {"scale": 1.2, "start": 0.2, "end": 0.7}]
    }
    yield "window", sd15 | {"controls": [a | {"start": 0.25, "end": 0.6}]}
    yield "guess", sd15 | {"guidance": 4.0, "controls": [a | {"guess_mode": True}]}
    yield "guess_unguided", sd15 | {"guidance": 1.0, "controls": [a | {"guess_mode": True}]}
    yield "pooled", sd15 | {"controls": [a | {"pooled": True}]}
    yield "unguided", sd15 | {"guidance": 1.0, "controls": [b]}
    yield "each", sd15 | {"controls": [a | {"picture": "both"}]}
    yield "heun", sd15 | {"scheduler": "HeunDiscreteScheduler", "controls": [a]}
    yield "full", sd15 | {"controls": [{"adapter": "full", "picture": "picture0", "scale": 0.8}]}
    yield "two_adapters", sd15 | {
        "controls": [
            {"adapter": "full", "picture": "picture0", "scale": 0.8},
            {"adapter": "full", "picture": "picture1", "scale": 0.3},
        ]
    }
    light = {"adapter": "light", "picture": "grey", "scale": 1.1}
    yield "light", base | {"model": "sd21", "controls": [light]}
    xl = base | {"model": "sdxl"}
    net = {"net": "xl", "picture": "picture0", "scale": 0.6}
    yield "xl", xl | {"controls": [net]}
    yield "xl_window", xl | {"controls": [net | {"start": 0.4, "end": 0.9}]}
    yield "xl_guess", xl | {"controls": [net | {"guess_mode": True}]}
    adapter = {"adapter": "full_xl", "picture": "picture0", "scale": 0.9}
    yield "full_xl", xl | {"controls": [adapter | {"end": 0.5}]}


def runs(folder, models, nets, adapters, pictures):
    bases = {}
    for name in ["sd15", "sd21", "sdxl"]:
        cls = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
        bases[name] = cls.from_pretrained(models / name, dtype=torch.float32)
    rows, tensors = [], {}
    grey = torch.from_numpy(np.array(pil(pictures["picture1"]).convert("L")))
    pictures = pictures | {"grey": grey}
    for name, case in cases():
        latents, extra = run(bases[case["model"]], case, nets, adapters, pictures)
        tensors |= prefixed(name, {"latents": latents} | extra)
        rows.append({"name": name} | case)
    save(folder / "runs.safetensors", tensors)
    save_rows(folder / "runs.json", {"cases": rows})


def image_of(case, control, pictures):
    if control["picture"] == "both":
        # A picture for each, as numbers and in another size than the result's.
        both = torch.stack([pictures["picture0"], pictures["picture1"]])
        return both.permute(0, 3, 1, 2).float() / 255
    return pil(pictures[control["picture"]])


def one_or_all(values):
    return values[0] if len(values) == 1 else values


def run(base, case, nets, adapters, pictures):
    controls = case["controls"]
    images = one_or_all([image_of(case, control, pictures) for control in controls])
    scales = one_or_all([control.get("scale", 1.0) for control in controls])
    is_xl = case["model"] == "sdxl"
    count = len(case["seeds"])
    settings = {}
    extra = {}
    if is_xl:
        settings, extra = sdxl_inputs(base, case)
    elif controls[0]["picture"] == "both":
        settings = {key: [text] * count for key, text in PROMPT.items()}
        count = 1
    else:
        settings = dict(PROMPT)
    parts = dict(base.components)
    if case.get("scheduler") == "HeunDiscreteScheduler":
        parts["scheduler"] = HeunDiscreteScheduler.from_config(base.scheduler.config)
    if "net" in controls[0]:
        models = one_or_all([nets[control["net"]] for control in controls])
        cls = StableDiffusionXLControlNetPipeline if is_xl else StableDiffusionControlNetPipeline
        pipeline = cls(**parts, controlnet=models)
        starts = [control.get("start", 0.0) for control in controls]
        ends = [control.get("end", 1.0) for control in controls]
        settings |= {
            "controlnet_conditioning_scale": scales,
            "control_guidance_start": one_or_all(starts),
            "control_guidance_end": one_or_all(ends),
            "guess_mode": controls[0].get("guess_mode", False),
        }
        if controls[0].get("pooled"):
            models.register_to_config(global_pool_conditions=True)
    else:
        models = [adapters[control["adapter"]] for control in controls]
        models = models[0] if len(models) == 1 else MultiAdapter(models)
        cls = StableDiffusionXLAdapterPipeline if is_xl else StableDiffusionAdapterPipeline
        if not is_xl:
            del parts["image_encoder"]
        pipeline = cls(**parts, adapter=models)
        settings["adapter_conditioning_scale"] = scales
        if is_xl:
            settings["adapter_conditioning_factor"] = controls[0].get("end", 1.0)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        **settings,
        image=images,
        num_images_per_prompt=count,
        generator=generators(case["seeds"]),
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        width=case["width"],
        height=case["height"],
        output_type="latent",
    ).images
    if controls[0].get("pooled"):
        models.register_to_config(global_pool_conditions=False)
    return latents, extra


# The smaller ControlNets of SDXL.
SDXL_MID = SDXL_UNET | {"transformer_layers_per_block": (1, 0, 1)}
SDXL_SMALL = SDXL_UNET | {
    "down_block_types": ("DownBlock2D",) * 3,
    "transformer_layers_per_block": (1, 1, 0),
    # Nothing attends to text.
    "cross_attention_dim": 1280,
}
FULL_EMBEDDING = {"conditioning_embedding_out_channels": (16, 32, 96, 256)}
CHANNELS = (320, 640, 1280, 1280)
FULL_SIZE_ADAPTERS = {
    "t2i_full": {"channels": CHANNELS, "adapter_type": "full_adapter"},
    "t2i_full_grey": {"in_channels": 1, "channels": CHANNELS, "adapter_type": "full_adapter"},
    "t2i_light": {"channels": CHANNELS[:3], "num_res_blocks": 4, "adapter_type": "light_adapter"},
    "t2i_full_xl": {
        "channels": CHANNELS,
        "adapter_type": "full_adapter_xl",
        "downscale_factor": 16,
    },
}


def full_size(path):
    """Names and shapes of full-size networks in both dialects."""
    models = {}
    with torch.device("meta"):
        for name, unet in {"sd15": SD1_UNET, "sd21": SD2_UNET, "sdxl": SDXL_UNET}.items():
            net = ControlNetModel(**shared(unet), **FULL_EMBEDDING)
            file = original.control_net(net.state_dict(), net.config)
            original.check_control_net(file, net.state_dict(), net.config)
            models[f"control_{name}"] = entry(net, file)
        for name, unet in {"sdxl_mid": SDXL_MID, "sdxl_small": SDXL_SMALL}.items():
            # There are none in the original names.
            net = ControlNetModel(**shared(unet), **FULL_EMBEDDING)
            models[f"control_{name}"] = entry(net, net.state_dict())
        for name, config in FULL_SIZE_ADAPTERS.items():
            adapter = T2IAdapter(**config)
            file = original.t2i_adapter(adapter.state_dict(), adapter.config)
            models[name] = entry(adapter, file)
    data = json.dumps(models, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(data, 9, mtime=0))


def entry(model, file):
    return part(model) | {"file": {key: shape(tensor) for key, tensor in file.items()}}
