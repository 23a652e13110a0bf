"""Words that were learned, read by diffusers into a tiny text encoder."""

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from common import save, save_json

PROMPTS = [
    "a photo of <cat-toy> on a table",
    "worst-thing, blurry, <cat-toy> and pairs",
    "worst-thing worst-thing",
    "pairs " * 40,
]


def make(out, emoji):
    folder = out / "embeddings"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(61)
    files = {
        # diffusers: the word and its vector.
        "cat-toy": ({"<cat-toy>": torch.randn(32) * 0.5}, None),
        # The user interfaces: vectors whose word is the file's name.
        "worst-thing": ({"emb_params": torch.randn(3, 32) * 0.5}, "worst-thing"),
        "pairs": ({"clip_l": torch.randn(2, 32) * 0.5, "clip_g": torch.randn(2, 40) * 0.5}, "pairs"),
    }
    pipe = StableDiffusionPipeline.from_pretrained(
        out / "models/sd15", dtype=torch.float32, safety_checker=None
    )
    for name, (state, token) in files.items():
        save_file(state, folder / f"{name}.safetensors")
        read = state["clip_l"] if "clip_l" in state else state
        pipe.load_textual_inversion(read, token=token)
    tensors, cases = {}, []
    for i, prompt in enumerate(PROMPTS):
        converted = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
        ids = pipe.tokenizer(
            converted, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        tensors[f"{i}.last_hidden_state"] = pipe.text_encoder(ids).last_hidden_state
        cases.append({"text": prompt, "ids": ids[0].tolist()})
    save(out / "embeddings.safetensors", tensors)
    save_json(out / "embeddings.json", cases)
