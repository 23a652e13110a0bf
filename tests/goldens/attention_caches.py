"""Less attention: cross-attention behind a gate (T-GATE), self-attention over merged tokens (ToMe)."""

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention import BasicTransformerBlock
from tomesd.merge import bipartite_soft_matching_random2d

from common import save, save_rows
from guidance import BASE
from runs import generators

GATES = [2, 4]
RATIOS = [0.3, 0.5, 0.75]


def blocks(unet):
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


def gate(pipe, num_steps):
    """Cross-attention that answers, after so many steps, the mean of what it found in the last of them; without
    guidance from there on."""
    state = {"calls": 0}
    whole = pipe.unet.forward

    def kept(attention):
        ask = attention.forward

        def forward(hidden_states, *args, **kwargs):
            if state["calls"] > num_steps:
                return attention.found
            found = ask(hidden_states, *args, **kwargs)
            attention.found = sum(found.chunk(2)) / 2
            return found

        attention.forward = forward

    for block in blocks(pipe.unet):
        kept(block.attn2)

    def forward(sample, timestep, encoder_hidden_states, added_cond_kwargs=None, **kwargs):
        state["calls"] += 1
        if state["calls"] <= num_steps:
            return whole(sample, timestep, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs, **kwargs)
        prompted = [x.chunk(2)[1] for x in (sample, encoder_hidden_states)]
        more = {name: value.chunk(2)[1] for name, value in (added_cond_kwargs or {}).items()}
        answer = whole(prompted[0], timestep, prompted[1], added_cond_kwargs=more, **kwargs)[0]
        # Guidance between equal answers is off.
        return (torch.cat([answer, answer]),)

    pipe.unet.forward = forward


def merge(pipe, ratio, size):
    """Self-attention of the outermost level that has it over merged tokens, as tomesd merges."""
    height, width = size
    most = []

    def merging(block):
        ask = block.attn1.forward
        state = {}
        block.norm1.register_forward_pre_hook(lambda module, args: state.update(x=args[0]))

        def forward(hidden_states, *args, **kwargs):
            x = state["x"]
            most.append(x.shape[1])
            if x.shape[1] < max(most):
                return ask(hidden_states, *args, **kwargs)
            # Each level halves both sides.
            side = round((height * width / x.shape[1]) ** 0.5)
            merge, unmerge = bipartite_soft_matching_random2d(
                x, width // side, height // side, 2, 2, int(x.shape[1] * ratio), no_rand=True
            )
            return unmerge(ask(merge(hidden_states), *args, **kwargs))

        block.attn1.forward = forward

    for block in blocks(pipe.unet):
        merging(block)


def make(out, emoji):
    tensors, rows = {}, []
    ways = [("tgate", number) for number in GATES] + [("token_merging", ratio) for ratio in RATIOS]
    for model, cls in [("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]:
        for way, number in ways:
            pipe = cls.from_pretrained(out / "models" / model, dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            if way == "tgate":
                gate(pipe, number)
            else:
                merge(pipe, number, (BASE["height"] // 8, BASE["width"] // 8))
            with torch.no_grad():
                name = f"{model}_{way}_{number}"
                tensors[name] = pipe(
                    BASE["prompt"],
                    negative_prompt=BASE["negative_prompt"],
                    width=BASE["width"],
                    height=BASE["height"],
                    num_inference_steps=BASE["steps"],
                    guidance_scale=BASE["guidance"],
                    num_images_per_prompt=len(BASE["seeds"]),
                    generator=generators(BASE["seeds"]),
                    output_type="latent",
                ).images
            rows.append({"name": name, "model": model, way: number} | BASE)
    save(out / "attention_caches.safetensors", tensors)
    save_rows(out / "attention_caches.json", {"cases": rows})
