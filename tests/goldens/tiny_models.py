"""Tiny random models in the folder layout of the real ones, each in another dialect of it."""

import shutil

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from common import build, save_json
from schedulers import BASE
from text import SPECIAL_TOKENS, write_tokenizer_config


def make(out, emoji):
    for name, write in MODELS.items():
        folder = out / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, emoji)


SD_UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
}


def sd15(folder, emoji):
    DDIMScheduler(**BASE, set_alpha_to_one=False, clip_sample=False).save_pretrained(
        folder / "scheduler"
    )
    write_tokenizer(folder / "tokenizer", emoji, SPECIAL_TOKENS)

    # Old checkpoints carry these wrong ids; pooling then looks for the largest id.
    text = text_encoder("quick_gelu", layers=3, bos=0, eos=2, pad=1)
    write_model(text, folder / "text_encoder")
    rename(
        folder / "text_encoder/model.safetensors",
        lambda name: name if name.startswith("text_model.") else f"text_model.{name}",
    )
    check(CLIPTextModel, folder / "text_encoder", text)

    unet = build(UNet2DConditionModel, **SD_UNET)
    write_model(unet, folder / "unet")
    check(UNet2DConditionModel, folder / "unet", unet)

    vae = autoencoder(0.18215, (8, 8, 16, 16))
    write_model(vae, folder / "vae")
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def to_old(name):
        if ".attentions." in name:
            for new, former in old.items():
                name = name.replace(new, former)
        return name

    rename(folder / "vae/diffusion_pytorch_model.safetensors", to_old)
    check(AutoencoderKL, folder / "vae", vae)

    write_sd_index(folder, "DDIMScheduler")


def lcm(folder, emoji):
    """A model that is told the guidance scale."""
    LCMScheduler(**BASE, original_inference_steps=50).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", emoji, SPECIAL_TOKENS)
    text = text_encoder("quick_gelu", layers=2, bos=2046, eos=2047, pad=2047)
    write_model(text, folder / "text_encoder")
    unet = build(UNet2DConditionModel, **SD_UNET, time_cond_proj_dim=12)
    write_model(unet, folder / "unet")
    check(UNet2DConditionModel, folder / "unet", unet)
    write_model(autoencoder(0.18215, (4, 8, 8, 8)), folder / "vae")
    write_index(folder, "LatentConsistencyModelPipeline", "LCMScheduler", texts=SD_TEXTS)


def inpaint(folder, emoji):
    """A model that sees the mask and what it leaves of the picture."""
    more_channels(folder, emoji, "StableDiffusionInpaintPipeline", 4 + 1 + 4)


def pix2pix(folder, emoji):
    """A model that sees the picture that it is told to change."""
    more_channels(folder, emoji, "StableDiffusionInstructPix2PixPipeline", 4 + 4)


def more_channels(folder, emoji, pipeline, in_channels):
    EulerDiscreteScheduler(**BASE, timestep_spacing="leading").save_pretrained(
        folder / "scheduler"
    )
    write_tokenizer(folder / "tokenizer", emoji, SPECIAL_TOKENS)
    text = text_encoder("quick_gelu", layers=2, bos=2046, eos=2047, pad=2047)
    write_model(text, folder / "text_encoder")
    narrow = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    unet = build(UNet2DConditionModel, **(SD_UNET | narrow), in_channels=in_channels)
    write_model(unet, folder / "unet")
    check(UNet2DConditionModel, folder / "unet", unet)
    write_model(autoencoder(0.18215, (4, 8, 8, 8)), folder / "vae")
    write_index(folder, pipeline, "EulerDiscreteScheduler", texts=SD_TEXTS)


def sd21(folder, emoji):
    DPMSolverMultistepScheduler(
        **BASE, prediction_type="v_prediction", timestep_spacing="leading"
    ).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer", emoji, SPECIAL_TOKENS | {"pad_token": "!"})

    text = text_encoder("gelu", layers=2, bos=2046, eos=2047, pad=0)
    write_model(text, folder / "text_encoder")
    rename(
        folder / "text_encoder/model.safetensors",
        lambda name: name.removeprefix("text_model."),
    )
    check(CLIPTextModel, folder / "text_encoder", text)

    unet = build(
        UNet2DConditionModel,
        sample_size=8,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        norm_num_groups=8,
        cross_attention_dim=32,
        use_linear_projection=True,
        upcast_attention=True,
    )
    size = sum(parameter.numel() * 2 for parameter in unet.parameters())
    write_model(unet, folder / "unet", max_shard_size=size * 6 // 10)
    assert len(list((folder / "unet").glob("*.safetensors"))) == 2
    check(UNet2DConditionModel, folder / "unet", unet)

    vae = autoencoder(0.18215, (4, 8, 8, 16))
    write_model(vae, folder / "vae")
    write_model(vae, folder / "vae", variant="fp16")
    check(AutoencoderKL, folder / "vae", vae)

    write_sd_index(folder, "DPMSolverMultistepScheduler")


XL_UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 4),
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}


def sdxl(folder, emoji):
    write_xl_text(folder, emoji, SPECIAL_TOKENS, "", CLIPTextModel, "quick_gelu", 16)
    unet = build(
        UNet2DConditionModel,
        **XL_UNET,
        cross_attention_dim=16 + 24,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    write_xl(folder, emoji, unet)
    write_index(
        folder,
        "StableDiffusionXLPipeline",
        "EulerDiscreteScheduler",
        texts=XL_TEXTS,
        force_zeros_for_empty_prompt=True,
    )


def refiner(folder, emoji):
    unet = build(
        UNet2DConditionModel,
        **XL_UNET,
        cross_attention_dim=24,
        projection_class_embeddings_input_dim=5 * 8 + 32,
    )
    write_xl(folder, emoji, unet)
    absent = {"text_encoder": [None, None], "tokenizer": [None, None]}
    write_index(
        folder,
        "StableDiffusionXLImg2ImgPipeline",
        "EulerDiscreteScheduler",
        texts=XL_TEXTS | absent,
        force_zeros_for_empty_prompt=False,
        requires_aesthetics_score=True,
    )


def write_xl(folder, emoji, unet):
    EulerDiscreteScheduler(**BASE, timestep_spacing="leading").save_pretrained(
        folder / "scheduler"
    )
    special = SPECIAL_TOKENS | {"pad_token": "!"}
    write_xl_text(folder, emoji, special, "_2", CLIPTextModelWithProjection, "gelu", 24)
    write_model(unet, folder / "unet")
    check(UNet2DConditionModel, folder / "unet", unet)
    vae = autoencoder(0.13025, (4, 8, 8, 16))
    write_model(vae, folder / "vae")
    check(AutoencoderKL, folder / "vae", vae)


def write_xl_text(folder, emoji, special_tokens, suffix, cls, activation, width):
    write_tokenizer(folder / f"tokenizer{suffix}", emoji, special_tokens)
    text = text_encoder(activation, 3, 2046, 2047, 0, cls=cls, width=width)
    write_model(text, folder / f"text_encoder{suffix}")
    check(cls, folder / f"text_encoder{suffix}", text)


MODELS = {
    "sd15": sd15,
    "lcm": lcm,
    "inpaint": inpaint,
    "pix2pix": pix2pix,
    "sd21": sd21,
    "sdxl": sdxl,
    "refiner": refiner,
}
SD_TEXTS = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None],
}
XL_TEXTS = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def text_encoder(activation, layers, bos, eos, pad, cls=CLIPTextModel, width=32):
    config = CLIPTextConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return build(cls, config=config)


def autoencoder(scaling_factor, channels):
    # Four levels, so that an image is eight times its latents as in the real models.
    assert len(channels) == 4
    return build(
        AutoencoderKL,
        sample_size=64,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=scaling_factor,
    )


def write_model(model, folder, **options):
    model.half().save_pretrained(folder, **options)
    model.float()


def write_tokenizer(folder, emoji, special_tokens):
    folder.mkdir(parents=True)
    for name in ["vocab.json", "merges.txt"]:
        shutil.copyfile(emoji / "tokenizer" / name, folder / name)
    write_tokenizer_config(folder, special_tokens)


def rename(path, change):
    tensors = {change(name): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def check(cls, folder, model):
    """The reference must read the folder back whole, or the goldens describe another model."""
    read = cls.from_pretrained(folder).float().state_dict()
    wanted = model.state_dict()
    assert read.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(read[name], value), name


def write_sd_index(folder, scheduler):
    settings = {"requires_safety_checker": False}
    write_index(folder, "StableDiffusionPipeline", scheduler, texts=SD_TEXTS, **settings)


def write_index(folder, pipeline, scheduler, texts, **settings):
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    save_json(folder / "model_index.json", dict(sorted((index | texts | settings).items())))
