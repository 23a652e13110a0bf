"""diffusers' state dictionaries under the names of the original repositories.

The names are those of CompVis's openaimodel.py and autoencoder and of OpenCLIP's text tower; the
converters inside diffusers' single-file loader must lead back, which `check` sees to.
"""

import re

import torch
from diffusers.loaders import single_file_utils as loader

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name, layers, attention_above):
    """`attention_above` says for each level of the way up whether it has attention."""
    module, leaf = name.rsplit(".", 1)
    if module in WHOLE:
        return f"{WHOLE[module]}.{leaf}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.?(.*)", module)
    if found:
        side, i, kind, j, rest = found.groups()
        i, j = int(i), int(j)
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            place = 2 if attention_above[i] else 1
            return f"output_blocks.{(layers + 1) * i + layers}.{place}.conv.{leaf}"
        block = f"input_blocks.{(layers + 1) * i + j + 1}"
        if side == "up":
            block = f"output_blocks.{(layers + 1) * i + j}"
    else:
        kind, j, rest = re.match(r"mid_block\.(\w+)\.(\d+)\.?(.*)", module).groups()
        block = "middle_block"
        if kind == "resnets":
            return f"middle_block.{2 * int(j)}.{RESNET[rest]}.{leaf}"
    if kind == "resnets":
        return f"{block}.0.{RESNET[rest]}.{leaf}"
    return f"{block}.1.{rest}.{leaf}"


def unet(state, config):
    attention_above = ["CrossAttn" in kind for kind in config["up_block_types"]]
    layers = config["layers_per_block"]
    prefix = "model.diffusion_model."
    return {prefix + unet_name(name, layers, attention_above): t for name, t in state.items()}


def vae(state, config):
    last = len(config["block_out_channels"]) - 1
    out = {}
    for name, tensor in state.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(
            r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name
        )
        name = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name
        )
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            name = name.replace("group_norm", "norm").replace("to_out.0", "proj_out")
            name = re.sub(r"to_([qkv])", r"\1", name)
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        out["first_stage_model." + name] = tensor
    return out


def clip(state, prefix):
    return {prefix + wrapped(name): tensor for name, tensor in state.items()}


def wrapped(name):
    bare = name.startswith(("text_model.", "text_projection"))
    return name if bare else f"text_model.{name}"


def open_clip(state, prefix):
    out = {}
    for name, tensor in state.items():
        name = wrapped(name)
        found = re.match(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(\w+)$", name)
        if not found:
            new = {
                "text_model.embeddings.position_embedding.weight": "positional_embedding",
                "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
                "text_model.final_layer_norm.weight": "ln_final.weight",
                "text_model.final_layer_norm.bias": "ln_final.bias",
                "text_projection.weight": "text_projection",
            }[name]
            out[new] = tensor.T if new == "text_projection" else tensor
            continue
        block, module, leaf = f"transformer.resblocks.{found[1]}", found[2], found[3]
        if module.endswith(("q_proj", "k_proj", "v_proj")):
            if module.endswith("q_proj"):
                layer = name.rsplit(".", 2)[0].removeprefix("text_model.")
                key = "text_model." if name in state else ""
                parts = [state[f"{key}{layer}.{x}_proj.{leaf}"] for x in "qkv"]
                out[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
        else:
            out[f"{block}.{CLIP_LAYER[module]}.{leaf}"] = tensor
    return {prefix + name: tensor for name, tensor in out.items()}


def same(found, wanted, ignore=()):
    """Names and shapes, and where there are numbers those too."""
    found = {name: t for name, t in found.items() if name not in ignore}
    wanted = {name: t for name, t in wanted.items() if name not in ignore}
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        assert tensor.is_meta or torch.equal(found[name], tensor), name


def check_unet(file, state, config):
    # The loader has no name for the guidance embedding.
    back = loader.convert_ldm_unet_checkpoint(dict(file), config)
    same(back, state, ignore=["time_embedding.cond_proj.weight"])


def check_vae(file, state, config):
    same(loader.convert_ldm_vae_checkpoint(dict(file), config), state)


def check_open_clip(file, model, prefix):
    back = loader.convert_open_clip_checkpoint(model, dict(file), prefix=prefix)
    state = {wrapped(name): tensor for name, tensor in model.state_dict().items()}
    same({wrapped(name): tensor for name, tensor in back.items()}, state)


HINTS = "controlnet_cond_embedding."


def control_net(state, config, prefix="control_model."):
    """lllyasviel's cldm.py: a list of hint convolutions with an activation behind each but the last."""
    blocks = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    hints = {f"blocks.{i}": 2 * i + 2 for i in range(blocks)}
    hints |= {"conv_in": 0, "conv_out": 2 * blocks + 2}
    out = {}
    for name, tensor in state.items():
        module, leaf = name.rsplit(".", 1)
        if name.startswith(HINTS):
            new = f"input_hint_block.{hints[module.removeprefix(HINTS)]}.{leaf}"
        elif name.startswith("controlnet_down_blocks."):
            new = f"zero_convs.{module.rsplit('.', 1)[1]}.0.{leaf}"
        elif name.startswith("controlnet_mid_block."):
            new = f"middle_block_out.0.{leaf}"
        else:
            new = unet_name(name, config["layers_per_block"], ())
        out[prefix + new] = tensor
    return out


def t2i_adapter(state, config):
    """TencentARC's adapter.py: one list of residual blocks, or of light adapters' levels."""
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix("adapter.")
        if config["adapter_type"] == "light_adapter":
            name = name.replace("resnets.", "body.")
        elif found := re.match(r"body\.(\d+)\.(.*)", name):
            first, rest = int(found[1]) * config["num_res_blocks"], found[2]
            if inner := re.match(r"resnets\.(\d+)\.(.*)", rest):
                first, rest = first + int(inner[1]), inner[2]
            name = f"body.{first}.{rest}"
        out[name] = tensor
    return out


def check_control_net(file, state, config):
    # The loader has no names for SDXL's added embedding.
    added = [name for name in state if name.startswith("add_embedding.")]
    same(loader.convert_controlnet_checkpoint(dict(file), config), state, ignore=added)
