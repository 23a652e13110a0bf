"""DeepCache: inner levels that are asked in each so-many-th evaluation alone."""

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from common import save, save_rows
from guidance import BASE
from runs import generators

INTERVALS = [2, 3]


def told(block, text):
    return {"encoder_hidden_states": text} if hasattr(block, "attentions") else {}


def cached(unet, interval):
    """The UNet's forward pass, with the last block on the way up around what the one before it gave last."""
    whole, last, first = unet.forward, unet.up_blocks[-1], unet.down_blocks[0]
    state = {"calls": 0}

    def note(module, args, kwargs):
        state["features"] = kwargs["hidden_states"]

    last.register_forward_pre_hook(note, with_kwargs=True)

    def forward(sample, timestep, encoder_hidden_states, added_cond_kwargs=None, **kwargs):
        is_whole = state["calls"] % interval == 0
        state["calls"] += 1
        if is_whole:
            return whole(
                sample, timestep, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs, **kwargs
            )
        features = state["features"]
        emb = unet.time_embedding(unet.get_time_embed(sample, timestep))
        more = unet.get_aug_embed(emb, encoder_hidden_states, added_cond_kwargs)
        emb = emb if more is None else emb + more
        x = unet.conv_in(sample)
        _, skips = first(hidden_states=x, temb=emb, **told(first, encoder_hidden_states))
        skips = (x, *skips)[: len(last.resnets)]
        more = told(last, encoder_hidden_states)
        # The hook notes the same features again.
        x = last(hidden_states=features, temb=emb, res_hidden_states_tuple=skips, **more)
        answer = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return (answer,) if not kwargs.get("return_dict", True) else UNet2DConditionOutput(answer)

    unet.forward = forward


def make(out, emoji):
    tensors, rows = {}, []
    for model, cls in [("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]:
        for interval in INTERVALS:
            pipe = cls.from_pretrained(out / "models" / model, dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            with torch.no_grad():
                cached(pipe.unet, interval)
                name = f"{model}_{interval}"
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
            rows.append({"name": name, "model": model, "interval": interval} | BASE)
    save(out / "deep_cache.safetensors", tensors)
    save_rows(out / "deep_cache.json", {"cases": rows})
