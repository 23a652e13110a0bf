"""Prompts in compel's syntax, by compel. It is imported here alone, so that the other parts do without it."""

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from common import save, save_json

LONG = "A very long story about two cats. "
PHRASES = "a very long story about two cats and their house, "

PROMPTS = [
    "a red heart, flat style",
    "a red++ heart",
    "a red- heart",
    "a (big heart)++ on--- a roof",
    "a (big heart)1.3, flat",
    "(a cat)0.4 on a (roof)1.6",
    "a (big (red)++ heart)- flat",
    "((((a cat)+)+)+)+",
    "(a cat)0",
    "(unbalanced cat++",
    "unbalanced) cat-",
    r"\(literal\) (and \(inside\))+",
    r"plus\+ \"quoted\" (x\=y)-",
    "",
    "   ",
    '""',
    "+ ++ a - b",
    "😀++ party 👩\u200d👩\u200d👧",
    "你好 (世界)++ 日本語-",
    "(caf\u00e9)1.2 nai\u0308ve",
    "well-known (well-known)+ 3.5 (3.5 cats)-",
    "cat++,dog--, (bird,fish)1.4",
    'a "red cat"++ on "a roof"',
    "hello(world)++ (a=b)+ c",
    "a.attend(1.5) (b c).attend(--) d",
    "(a)-0.5 (b)+.5 (c).5",
    '("a cat", "a dog++").and()',
    '("a cat", "a dog on a roof").and(1, 0.5)',
    '("a cat", "a dog", "a bird-").blend(0.5, 1.5, 1)',
    '("a cat", "a dog").blend(1, -0.3, no_normalize)',
    '("hello + world", (a cat)).blend(1,2)',
    "cat " * 75,
    "cat " * 76,
    LONG * 12,
    PHRASES * 8,
    "a (" + PHRASES * 8 + "end)1.3 and (" + LONG * 5 + ")0.6",
    "a line\nand\tanother+ one",
]
WORDS = ["a <cat-toy>++ on a roof", "(worst-thing)0.5, blurry, pairs+"]


def make(out, emoji):
    from compel import CompelForSD, CompelForSDXL, DiffusersTextualInversionManager

    tensors, cases = {}, []

    def record(model, prompt, conditioning):
        name = f"{len(cases)}.0"
        tensors[f"{name}.embeds"] = conditioning.embeds
        if conditioning.pooled_embeds is not None:
            tensors[f"{name}.pooled"] = conditioning.pooled_embeds
        cases.append({"model": model, "rows": [0], "prompt": prompt})

    def open(cls, model, **options):
        folder = out / "models" / model
        return cls.from_pretrained(folder, dtype=torch.float32, **options)

    pipe = open(StableDiffusionPipeline, "sd15", safety_checker=None)
    compel = CompelForSD(pipe)
    for prompt in PROMPTS:
        record("sd15", prompt, compel(prompt))
    for name, token in [("cat-toy", None), ("worst-thing", "worst-thing"), ("pairs", "pairs")]:
        state = load_file(out / f"embeddings/{name}.safetensors")
        pipe.load_textual_inversion({"pairs": state.get("clip_l")}.get(name, state), token=token)
    compel = CompelForSD(pipe, DiffusersTextualInversionManager(pipe))
    for prompt in WORDS:
        record("sd15", prompt, compel(prompt))
    compel = CompelForSDXL(open(StableDiffusionXLPipeline, "sdxl"))
    # With weights in `.and()` compel fails on SDXL.
    for i in [1, 4, 6, 13, 18, 26]:
        record("sdxl", PROMPTS[i], compel(PROMPTS[i]))
    save(out / "prompts_compel.safetensors", tensors)
    save_json(out / "prompts_compel.json", cases)
