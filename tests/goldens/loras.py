"""Adapters of every dialect on tiny models.

Where diffusers (with PEFT) reads a file, it makes the reference. What it does not read (LoHa, LoKr, cores,
whole differences, kohya's DoRA scales, numbered modules) is added to the weights here by the formulas of
LyCORIS, written out element by element in numpy, and diffusers runs the network.
"""

import copy

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from common import save, save_json

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
UP = "up_blocks.1.attentions.2.transformer_blocks.0"
TEXT = "encoder.layers.1"
RANK = 2


def make(out, emoji):
    torch.manual_seed(7)
    unet_inputs = {
        "sample": torch.randn(1, 4, 8, 6),
        "timesteps": torch.tensor([481.5]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    ids = torch.randint(3, 2000, (1, 9))
    ids[0, 0], ids[0, -1] = 2046, 2047
    xl_inputs = unet_inputs | {
        "encoder_hidden_states": torch.randn(1, 7, 40),
        "text_embeds": torch.randn(1, 32),
        "time_ids": torch.tensor([[64.0, 96, 0, 0, 64, 96]]),
    }
    tensors = {f"sd15.{k}": v for k, v in unet_inputs.items()}
    tensors |= {f"sdxl.{k}": v for k, v in xl_inputs.items()} | {"input_ids": ids}
    cases = []

    def run_sd(name, model, files, **case):
        """Records the outputs of a model that the files, each a pair of tensors and metadata, changed."""
        for suffix, (state, metadata) in zip("abc", files):
            write(out / "loras" / f"{name}_{suffix}.safetensors", state, metadata)
        tensors_of(name, model)
        cases.append({"name": name, "model": "sd15", "files": len(files), **case})

    def tensors_of(name, model):
        unet, text = model
        tensors[f"{name}.unet"] = unet_out(unet, unet_inputs)
        assert not torch.allclose(tensors[f"{name}.unet"], tensors["base.unet"], rtol=0.05), name
        tensors[f"{name}.text"] = text(ids).last_hidden_state

    base = lambda: StableDiffusionPipeline.from_pretrained(
        out / "models/sd15", dtype=torch.float32, safety_checker=None
    )
    pipe = base()
    tensors["base.unet"] = unet_out(pipe.unet, unet_inputs)
    tensors["base.text"] = pipe.text_encoder(ids).last_hidden_state

    for name, state, metadata, scale in by_diffusers(pipe):
        pipe = base()
        # diffusers reads files of a UNet alone, which have no prefix, elsewhere.
        prefix = "unet." if name == "processors_alone" else ""
        pipe.load_lora_weights({prefix + k: v.clone() for k, v in state.items()}, adapter_name="a")
        pipe.set_adapters("a", scale)
        run_sd(name, (pipe.unet, pipe.text_encoder), [(state, metadata)], scales=[scale])

    # Several at once, with a scale for each block.
    pipe = base()
    kohya, _ = kohya_style(pipe, 21, UNET_LAYERS)
    other, _ = kohya_style(pipe, 22, UNET_LAYERS)
    pipe.load_lora_weights(copy.deepcopy(kohya), adapter_name="a")
    pipe.load_lora_weights(copy.deepcopy(other), adapter_name="b")
    blocks = {"down": 0.5, "up": {"block_1": [0.3, 0.6, 0.9]}}
    pipe.set_adapters(["a", "b"], [{"text_encoder": 0.4, "unet": blocks}, -0.5])
    run_sd(
        "several",
        (pipe.unet, pipe.text_encoder),
        [(kohya, {}), (other, {})],
        scales=[{"text_encoder": 0.4, "unet": 1.0, "blocks": {
            "down_blocks.0.attentions": 0.5,
            "up_blocks.1.attentions.0": 0.3,
            "up_blocks.1.attentions.1": 0.6,
            "up_blocks.1.attentions.2": 0.9,
        }}, -0.5],
    )

    for name, state, metadata, scale, changes in by_formula(base()):
        pipe = base()
        merge({"unet": pipe.unet, "text_encoder": pipe.text_encoder}, changes, scale)
        run_sd(name, (pipe.unet, pipe.text_encoder), [(state, metadata)], scales=[scale])

    # PEFT's folders have their settings beside the tensors, here in the order in which they were written.
    for name, state, config, unet in by_peft(base):
        folder = out / "loras" / name
        write(folder / "adapter_model.safetensors", state, {})
        save_json(folder / "adapter_config.json", config)
        tensors_of(name, (unet, base().text_encoder))
        cases.append({"name": name, "model": "sd15", "folder": True, "scales": [1.0]})

    # kohya's scripts name SDXL's modules as the original code does.
    unet = UNet2DConditionModel.from_pretrained(out / "models/sdxl/unet", dtype=torch.float32)
    tensors["base_sdxl.unet"] = unet_out(unet, xl_inputs)
    state = sdxl_original(unet)
    converted, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        copy.deepcopy(state), unet_config=unet.config
    )
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(converted, alphas, unet, adapter_name="a")
    tensors["sdxl_original.unet"] = unet_out(unet, xl_inputs)
    write(out / "loras/sdxl_original_a.safetensors", state, {})
    cases.append({"name": "sdxl_original", "model": "sdxl", "files": 1, "scales": [1.0]})

    save(out / "loras.safetensors", tensors)
    save_json(out / "loras.json", cases)


def unet_out(unet, inputs):
    added = {k: inputs[k] for k in ["text_embeds", "time_ids"] if k in inputs} or None
    return unet(
        inputs["sample"],
        inputs["timesteps"],
        inputs["encoder_hidden_states"],
        added_cond_kwargs=added,
    ).sample


def write(path, state, metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in state.items()}
    save_file(state, path, metadata=metadata or None)


def shape_of(model, path):
    return list(model.get_submodule(path).weight.shape)


def down_up(shape, rank=RANK):
    """A pair whose product is about as large as a weight."""
    out, into, *kernel = shape
    down = torch.randn(rank, into, *kernel) / np.sqrt(into * np.prod(kernel, dtype=float))
    up = torch.randn(out, rank, *([1] * len(kernel))) * 0.7
    return down.float(), up.float()


UNET_LAYERS = [
    f"{ATTENTION}.attn1.to_q",
    f"{ATTENTION}.attn2.to_k",
    f"{ATTENTION}.attn2.to_v",
    f"{ATTENTION}.attn2.to_out.0",
    f"{UP}.attn1.to_v",
    f"{UP}.ff.net.0.proj",
    f"{UP}.ff.net.2",
]
CONV_LAYERS = [
    "conv_in",
    "down_blocks.0.attentions.1.proj_in",
    "down_blocks.0.resnets.1.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "mid_block.resnets.1.conv2",
    "up_blocks.0.resnets.2.conv_shortcut",
    "time_embedding.linear_1",
    "conv_out",
]
TEXT_LAYERS = [f"{TEXT}.self_attn.q_proj", f"{TEXT}.self_attn.out_proj", f"{TEXT}.mlp.fc1"]


def kohya_style(pipe, seed, layers):
    torch.manual_seed(seed)
    state = {}
    for path in layers:
        down, up = down_up(shape_of(pipe.unet, path))
        name = "lora_unet_" + path.replace(".", "_")
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        state[f"{name}.alpha"] = torch.tensor(1.0)
    for path in TEXT_LAYERS:
        down, up = down_up(shape_of(pipe.text_encoder, path))
        name = "lora_te_text_model_" + path.replace(".", "_")
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        state[f"{name}.alpha"] = torch.tensor(1.0)
    return state, {}


def by_diffusers(pipe):
    """Files that diffusers reads: name, tensors, metadata, scale."""
    yield "kohya", *kohya_style(pipe, 11, UNET_LAYERS + CONV_LAYERS), 0.7

    # The attention processors of diffusers before 0.22.
    torch.manual_seed(12)
    state = {}
    for path in UNET_LAYERS[:5]:
        down, up = down_up(shape_of(pipe.unet, path))
        attention, projection = path.removesuffix(".0").rsplit(".", 1)
        name = f"unet.{attention}.processor.{projection}_lora"
        state |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    for path in TEXT_LAYERS[:2]:
        down, up = down_up(shape_of(pipe.text_encoder, path))
        name = f"text_encoder.text_model.{path}.lora_linear_layer"
        state |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    yield "processors", state, {}, 1.0

    # The same without the part's name in front, as a UNet alone saved it.
    alone = {k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")}
    yield "processors_alone", alone, {}, 1.0

    # diffusers between 0.22 and 0.25.
    torch.manual_seed(13)
    state = {}
    for path in UNET_LAYERS + CONV_LAYERS:
        down, up = down_up(shape_of(pipe.unet, path))
        state |= {f"unet.{path}.lora.down.weight": down, f"unet.{path}.lora.up.weight": up}
    for path in TEXT_LAYERS[:2]:
        down, up = down_up(shape_of(pipe.text_encoder, path))
        old = path.replace("q_proj", "to_q_lora").replace("out_proj", "to_out_lora")
        state[f"text_encoder.text_model.{old}.down.weight"] = down
        state[f"text_encoder.text_model.{old}.up.weight"] = up
    yield "layers", state, {}, 0.5

    torch.manual_seed(14)
    state = {}
    for path in UNET_LAYERS + CONV_LAYERS:
        down, up = down_up(shape_of(pipe.unet, path))
        state |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    for path in TEXT_LAYERS:
        down, up = down_up(shape_of(pipe.text_encoder, path))
        state[f"text_encoder.text_model.{path}.lora_A.weight"] = down
        state[f"text_encoder.text_model.{path}.lora_B.weight"] = up
    yield "peft", state, {}, 1.0

    # DoRA, with lengths that are not those of the weights.
    torch.manual_seed(15)
    state = {}
    for path in UNET_LAYERS + CONV_LAYERS[1:4]:
        weight = pipe.unet.get_submodule(path).weight
        down, up = down_up(list(weight.shape))
        state |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
        length = weight.flatten(1).norm(dim=1) * (1 + 0.3 * torch.rand(len(weight)))
        if weight.ndim == 4:
            length = length[None, :, None, None]
        state[f"unet.{path}.lora_magnitude_vector"] = length
    yield "dora", state, {}, 1.0
    yield "dora_weaker", state, {}, 0.6


def product(left, right, core=None):
    """`left right`, with an optional core, one element after the other."""
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    if core is None:
        return left @ right
    rank1, rank2, height, width = core.shape
    result = np.zeros((left.shape[0], right.shape[1], height, width))
    for i in range(rank1):
        for j in range(rank2):
            outer = np.outer(left[:, i], right[j])
            result += outer[:, :, None, None] * core[i, j][None, None]
    return result


def kron(a, b):
    """The Kronecker product over the first two dimensions."""
    a, b = a.reshape(*a.shape, *[1] * (4 - a.ndim)), b.reshape(*b.shape, *[1] * (4 - b.ndim))
    rows, columns = a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]
    result = np.zeros((rows, columns, *b.shape[2:]))
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            at = np.s_[i * b.shape[0] : (i + 1) * b.shape[0], j * b.shape[1] : (j + 1) * b.shape[1]]
            result[at] = a[i, j, 0, 0] * b
    return result


def by_formula(pipe):
    """Files that only the formulas know: name, tensors, metadata, scale, and what they change.

    A change is a function of the base weight and the scale, by part and path.
    """
    modules = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
    n = lambda tensor: tensor.double().numpy()
    linear, conv = f"{ATTENTION}.attn2.to_k", "down_blocks.0.resnets.1.conv1"
    places = [("unet", linear), ("unet", conv), ("unet", f"{UP}.ff.net.0.proj"), ("unet", "down_blocks.0.attentions.1.proj_in"), ("text_encoder", TEXT_LAYERS[2])]

    def name_of(part, path):
        return prefix[part] + path.replace(".", "_")

    def plain(delta):
        return lambda base, scale: base + scale * delta.reshape(base.shape)

    # LoHa: two products, multiplied element by element; a core for the convolution.
    torch.manual_seed(31)
    state, changes = {}, {}
    for part, path in places:
        out, into, *kernel = shape_of(modules[part], path)
        name = name_of(part, path)
        cored = kernel == [3, 3]
        halves = []
        for half in "12":
            a = torch.randn(RANK, out) if cored else torch.randn(out, RANK)
            b = torch.randn(RANK, into)
            core = torch.randn(RANK, RANK, *kernel) * 0.4 if cored else None
            state |= {f"{name}.hada_w{half}_a": a * 0.6, f"{name}.hada_w{half}_b": b * 0.6}
            if cored:
                state[f"{name}.hada_t{half}"] = core
            a, b = n(a * 0.6), n(b * 0.6)
            halves.append(product(a.T if cored else a, b, n(core) if cored else None))
        state[f"{name}.alpha"] = torch.tensor(0.5)
        changes[part, path] = plain(halves[0] * halves[1] * 0.5 / RANK)
    # A convolution without a core has its kernel in the second matrix.
    path = "mid_block.resnets.1.conv2"
    out, into, *kernel = shape_of(pipe.unet, path)
    name, halves = name_of("unet", path), []
    for half in "12":
        a, b = torch.randn(out, RANK) * 0.5, torch.randn(RANK, into * 9) * 0.5
        state |= {f"{name}.hada_w{half}_a": a, f"{name}.hada_w{half}_b": b}
        halves.append(n(a) @ n(b))
    changes["unet", path] = plain(halves[0] * halves[1])
    yield "loha", state, {}, 0.8, changes

    # LoKr: whole factors, products, a core; the scale counts only where something has a rank.
    torch.manual_seed(32)
    state, changes = {}, {}
    for form, (part, path) in zip(["whole", "core", "first", "second", "both"], places):
        out, into, *kernel = shape_of(modules[part], path)
        name = name_of(part, path)
        outer, inner = (4, 2), (out // 4, into // 2)
        if form in ["first", "both"]:
            a, b = torch.randn(outer[0], RANK) * 0.4, torch.randn(RANK, outer[1]) * 0.4
            state |= {f"{name}.lokr_w1_a": a, f"{name}.lokr_w1_b": b}
            w1 = n(a) @ n(b)
        else:
            whole = torch.randn(outer) * 0.4
            state[f"{name}.lokr_w1"] = whole
            w1 = n(whole)
        if form in ["whole", "first"]:
            whole = torch.randn(*inner, *kernel) * 0.4
            state[f"{name}.lokr_w2"] = whole
            w2 = n(whole)
        elif form == "core":
            a, b = torch.randn(RANK, inner[0]) * 0.4, torch.randn(RANK, inner[1]) * 0.4
            core = torch.randn(RANK, RANK, *kernel) * 0.4
            state |= {f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b, f"{name}.lokr_t2": core}
            w2 = product(n(a).T, n(b), n(core))
        else:
            a, b = torch.randn(inner[0], RANK) * 0.4, torch.randn(RANK, inner[1]) * 0.4
            state |= {f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
            w2 = n(a) @ n(b)
        state[f"{name}.alpha"] = torch.tensor(1.0)
        factor = 1.0 if form == "whole" else 1.0 / RANK
        changes[part, path] = plain(kron(w1, w2) * factor)
    yield "lokr", state, {}, 1.0, changes

    # LoRA of a convolution with a core.
    torch.manual_seed(33)
    state, changes = {}, {}
    for path in [conv, "up_blocks.1.resnets.2.conv2"]:
        out, into, *kernel = shape_of(pipe.unet, path)
        name = name_of("unet", path)
        down, up = torch.randn(3, into, 1, 1) * 0.4, torch.randn(out, 2, 1, 1) * 0.4
        mid = torch.randn(2, 3, *kernel) * 0.4
        state |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_mid.weight": mid,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(1.5),
        }
        changes["unet", path] = plain(product(n(up), n(down), n(mid)) * 1.5 / 3)
    yield "cores", state, {}, 1.0, changes

    # Whole differences, of weights, biases and norms.
    torch.manual_seed(34)
    state, changes = {}, {}
    for part, path in places:
        weight = torch.randn(shape_of(modules[part], path)) * 0.05
        state[f"{name_of(part, path)}.diff"] = weight
        changes[part, path] = plain(n(weight))
    bias = torch.randn(16) * 0.2
    state[f"{name_of('unet', conv)}.diff_b"] = bias
    changes["unet", f"{conv}:bias"] = plain(n(bias))
    norm, (w, b) = "mid_block.attentions.0.norm", torch.randn(2, 32) * 0.2
    state |= {f"{name_of('unet', norm)}.w_norm": w, f"{name_of('unet', norm)}.b_norm": b}
    changes |= {("unet", norm): plain(n(w)), ("unet", f"{norm}:bias"): plain(n(b))}
    yield "differences", state, {}, 0.9, changes

    # kohya's DoRA scales, for each output and, from older LyCORIS, for each input. ComfyUI moves between the
    # base and the whole change.
    torch.manual_seed(35)
    state, changes = {}, {}
    for i, (part, path) in enumerate(places):
        module = modules[part].get_submodule(path)
        out, into, *kernel = module.weight.shape
        name = name_of(part, path)
        down, up = down_up([out, into, *kernel])
        by_input = i % 2 == 1
        lengths = 0.5 + torch.rand(into if by_input else out)
        ones = [1] * len(kernel)
        state |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(1.0),
            f"{name}.dora_scale": lengths.reshape([1, into, *ones] if by_input else [out, 1, *ones]),
        }
        delta = product(n(up), n(down)).reshape(module.weight.shape) / RANK

        def change(base, scale, delta=delta, lengths=n(lengths), by_input=by_input):
            changed = base + delta
            rows = np.moveaxis(changed, 1 if by_input else 0, 0)
            rows = np.stack([row / np.linalg.norm(row) * m for row, m in zip(rows, lengths)])
            return base + scale * (np.moveaxis(rows, 0, 1 if by_input else 0) - base)

        changes[part, path] = change
    yield "dora_scales", state, {}, 1.0, changes
    yield "dora_scales_half", state, {}, 0.5, changes
    yield "dora_scales_against", state, {}, -0.5, changes

    # Modules by number, in the order of the diffusers of 2022.
    for name, feed_forward in [("numbered", True), ("numbered_attention", False)]:
        torch.manual_seed(36)
        state, changes, metadata = {}, {}, {"<s1>": "<embed>", "<s2>": "<embed>"}
        for number, path in enumerate(numbered_unet(pipe.unet, feed_forward)):
            out, into = shape_of(pipe.unet, path)[:2]
            down, up = down_up([out, into], rank=1)
            state |= {f"unet:{number}:down": down, f"unet:{number}:up": up * 0.4}
            changes["unet", path] = plain(n(up * 0.4) @ n(down))
        number = 0
        for layer in range(3):
            for projection in ["k_proj", "v_proj", "q_proj", "out_proj"]:
                path = f"encoder.layers.{layer}.self_attn.{projection}"
                down, up = down_up(shape_of(pipe.text_encoder, path), rank=1)
                state |= {f"text_encoder:{number}:down": down, f"text_encoder:{number}:up": up}
                changes["text_encoder", path] = plain(n(up) @ n(down))
                number += 1
        state |= {"<s1>": torch.randn(32), "<s2>": torch.randn(32)}
        yield name, state, metadata, 1.0, changes


def numbered_unet(unet, feed_forward):
    stages = []
    stages += [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    stages += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    stages += [("mid_block", unet.mid_block)]
    for stage, block in stages:
        for i, attention in enumerate(getattr(block, "attentions", [])):
            for j in range(len(attention.transformer_blocks)):
                layer = f"{stage}.attentions.{i}.transformer_blocks.{j}"
                for attn in ["attn1", "attn2"]:
                    for projection in ["to_q", "to_k", "to_v", "to_out.0"]:
                        yield f"{layer}.{attn}.{projection}"
                    if attn == "attn1" and feed_forward:
                        yield f"{layer}.ff.net.0.proj"


def merge(modules, changes, scale):
    for (part, path), change in changes.items():
        path, _, kind = path.partition(":")
        parameter = getattr(modules[part].get_submodule(path), kind or "weight")
        changed = change(parameter.double().numpy(), scale)
        parameter.data.copy_(torch.from_numpy(changed))


def by_peft(base):
    """Adapters as PEFT saves them, with its settings beside them."""
    alpha_pattern = {
        "to_q": 5,
        "attn2.to_q": 8,
        "^down_blocks.*attn2.*to_k": 1,
        "attn[12].to_v": 7,
        "up.blocks.1": 9,
    }
    kinds = {
        "peft_loha": (LoHaConfig, {"alpha": 3}, RANK),
        "peft_lokr": (LoKrConfig, {"alpha": 3, "decompose_factor": 4}, RANK),
        # Such a rank leaves both factors whole, which then do not tell it.
        "peft_lokr_ranks": (LoKrConfig, {"alpha": 30, "rank_pattern": {"attn.*to_[kq]": 60}}, 50),
        "peft_patterns": (
            LoraConfig,
            {"lora_alpha": 3, "rank_pattern": {"to_q": 3}, "alpha_pattern": alpha_pattern},
            RANK,
        ),
    }
    for name, (kind, settings, rank) in kinds.items():
        torch.manual_seed(41)
        unet = base().unet
        weights = {"init_lora_weights": False} if kind is LoraConfig else {"init_weights": False}
        layers = UNET_LAYERS[:5] if kind is LoraConfig else UNET_LAYERS[:4]
        config = kind(r=rank, target_modules=layers, **settings, **weights)
        with torch.inference_mode(False):
            unet = inject_adapter_in_model(config, unet, "default")
        for parameter_name, parameter in unet.named_parameters():
            if any(part in parameter_name for part in ["hada_", "lokr_", "lora_"]):
                parameter.data.copy_(torch.randn(parameter.shape) * 0.4)
        state = get_peft_model_state_dict(unet, adapter_name="default")
        assert state
        state = {f"base_model.model.{k}": v for k, v in state.items()}
        yield name, state, settings | {"r": rank}, unet.eval()


def sdxl_original(unet):
    names = {
        "input_blocks.0.0": "conv_in",
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.3.0.emb_layers.1": "down_blocks.1.resnets.0.time_emb_proj",
        "input_blocks.3.1.transformer_blocks.1.attn2.to_k": "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        "input_blocks.5.1.proj_in": "down_blocks.2.attentions.0.proj_in",
        "middle_block.0.out_layers.3": "mid_block.resnets.0.conv2",
        "middle_block.1.transformer_blocks.2.attn1.to_q": "mid_block.attentions.0.transformer_blocks.2.attn1.to_q",
        "middle_block.2.in_layers.2": "mid_block.resnets.1.conv1",
        "output_blocks.0.1.transformer_blocks.0.ff.net.0.proj": "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.2.1.proj_out": "up_blocks.1.attentions.0.proj_out",
        "output_blocks.4.0.skip_connection": "up_blocks.2.resnets.0.conv_shortcut",
        "output_blocks.5.0.out_layers.3": "up_blocks.2.resnets.1.conv2",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "out.2": "conv_out",
    }
    torch.manual_seed(51)
    state = {}
    for original, path in names.items():
        down, up = down_up(shape_of(unet, path))
        name = "lora_unet_" + original.replace(".", "_")
        state |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(float(RANK)),
        }
    return state
