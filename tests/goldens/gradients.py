"""Gradients of whole networks, to be met by layers that must also train."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

from common import prefixed, save

# One parameter of each kind of layer, by the end of its name.
UNET = [
    "conv_in.weight",
    "time_embedding.linear_1.weight",
    "down_blocks.0.attentions.0.norm.weight",
    "down_blocks.0.attentions.0.proj_in.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.norm1.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
    "down_blocks.0.downsamplers.0.conv.weight",
    "down_blocks.1.resnets.0.time_emb_proj.bias",
    "up_blocks.0.upsamplers.0.conv.weight",
    "up_blocks.1.resnets.0.conv_shortcut.weight",
    "conv_norm_out.bias",
]
VAE = [
    "encoder.conv_in.weight",
    "encoder.down_blocks.0.downsamplers.0.conv.weight",
    "encoder.mid_block.attentions.0.group_norm.weight",
    "decoder.mid_block.attentions.0.to_v.weight",
    "decoder.up_blocks.0.upsamplers.0.conv.bias",
    "decoder.conv_out.weight",
]
CLIP = [
    "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.0.self_attn.k_proj.weight",
    "encoder.layers.1.mlp.fc1.bias",
    "final_layer_norm.weight",
]


def backward(model, names, output, inputs):
    """Gradients of a random weighted sum of the output."""
    probe = torch.randn(output.shape, generator=torch.Generator("cpu").manual_seed(2))
    (output * probe).sum().backward()
    gradients = {"probe": probe, "out": output}
    gradients |= {f"input.{name}": value.grad for name, value in inputs.items()}
    parameters = dict(model.named_parameters())
    for name in names:
        found = parameters.get(name, parameters.get(f"text_model.{name}"))
        gradients[f"parameter.{name}"] = found.grad
    return gradients


def make(out, emoji):
    with torch.inference_mode(False), torch.enable_grad():
        tensors = {}
        models = out / "models/sd15"

        case = load_file(out / "unet_sd15.safetensors")
        unet = UNet2DConditionModel.from_pretrained(models / "unet").float()
        sample = case["odd.sample"].clone().requires_grad_()
        context = case["odd.encoder_hidden_states"].clone().requires_grad_()
        output = unet(sample, case["odd.timesteps"], context).sample
        inputs = {"sample": sample, "encoder_hidden_states": context}
        tensors |= prefixed("unet", backward(unet, UNET, output, inputs))

        case = load_file(out / "vae_sd15.safetensors")
        vae = AutoencoderKL.from_pretrained(models / "vae").float()
        image = case["image"].clone().requires_grad_()
        output = vae.decode(vae.encode(image).latent_dist.mode()).sample
        tensors |= prefixed("vae", backward(vae, VAE, output, {"image": image}))

        case = load_file(out / "clip_sd15.safetensors")
        clip = CLIPTextModel.from_pretrained(models / "text_encoder").float()
        output = clip(case["input_ids"]).last_hidden_state
        tensors |= prefixed("clip", backward(clip, CLIP, output, {}))
    save(out / "gradients.safetensors", tensors)
