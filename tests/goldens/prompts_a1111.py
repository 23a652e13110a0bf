"""Prompts in A1111's syntax, by an implementation of its formulas on torch that is independent of ours.

A1111 is no package, so what it does is written down here: brackets multiply weights by 1.1 or divide by it, `:1.3)`
closes a round one with a weight of its own; prompts become chunks of 75 tokens, which end behind a comma where one is
among the last 20; a chunk's embeddings are multiplied by the weights and then by what restores their mean. The texts of
a schedule are read as one batch, of one length and one mean.
"""

import re

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from common import save, save_json

ROOM = 75
NEAR = 20
LONG = "a very long story about two cats and their house, "

PROMPTS = [
    "a red heart, flat style",
    "a (red:1.3) heart",
    "a ((red)) [heart], (((flat))) style",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    "(unbalanced heart and [more",
    "closed) too ](often:1.2)",
    r"\(literal\) \[brackets\] back\\slash (and \(inside\):1.4)",
    "",
    " ",
    "()",
    "(:1.3)",
    "😀 (🎉:1.5) party 👩\u200d👩\u200d👧",
    "你好，(世界:1.3)。[日本語]",
    "(caf\u00e9:1.2) nai\u0308ve (Ünïcödé ẞ:0.7)",
    "(a:0) b",
    "(a:-0.6) b",
    "(a:+1.5) b (c:.5) (d:2.)",
    "time 12:30, ratio 16:9",
    "(one:1.2.3) two",
    "[a (b] c)",
    "(a (b:1.5) c:1.2) [[[d]]]",
    LONG * 8,
    "(" + LONG * 5 + ":1.2) end, " + LONG * 8 + "[over]",
    "cat " * 75,
    "cat " * 76,
    "cat " * 60 + ", " + "dog " * 20,
    "cat " * 50 + ", " + "dog " * 30,
    "cat " * 75 + ", dog",
    "a cat BREAK a dog",
    "a (cat:1.3)  BREAK\n(dog:0.8) BREAK a roof",
    "BREAK",
    "a BREAKER and an OUTBREAK",
    "a <cat-toy> on a roof",
    "(worst-thing:1.3), blurry, ((<cat-toy>)) [pairs]",
    "cat " * 73 + "worst-thing",
    "cat " * 60 + ", dog " + "cat " * 12 + "pairs (worst-thing:1.2)",
    "wow! (that:1.1)'s !great!! hi!there",
    "a\\b c\\",
]

# In runs of ten steps.
SCHEDULES = [
    "a [red:blue:0.5] heart",
    "a [(red:1.3):3] heart, (flat:1.2)",
    "a [cat:dog:0.3][ on a [roof|hill]::7]",
    "[a|(b:1.4)|[c]]",
    "a [cat:" + LONG * 7 + ":4]",
]

# Prompts to be composed with their weights, the negative prompt, and guidance.
RUNS = [
    ([("a [cat:dog:0.5]", 1.0)], "blurry", 7.5),
    ([("a cat", 1.2), ("a (dog:1.3)", -0.5), ("a roof", 1.0)], "", 5.0),
    ([("a [cat|dog] AND_B", 0.7), (LONG * 9, 0.6)], "[blurry:dark:2]", 4.0),
    ([("a cat", 1.0), ("a dog", 0.8)], "ugly, " * 60, 1.0),
]


def weigh(text):
    """Pieces of text with their weights; None stands for BREAK."""
    spans = []
    for match in re.finditer(r"\\[()\[\]\\]|:[+-]?[.\d]+\)|[^\\()\[\]:]+|.", text, re.S):
        spans.append(match.group())
    pieces, opened = [], {"(": [], "[": []}

    def close(bracket, factor):
        for piece in pieces[opened[bracket].pop() :]:
            piece[1] *= factor

    def number(span):
        try:
            return float(span[1:-1])
        except ValueError:
            return None

    while spans:
        span = spans.pop(0)
        if span[0] == "\\":
            pieces.append([span[1:], 1.0])
        elif span in opened:
            opened[span].append(len(pieces))
        elif span == ")" and opened["("]:
            close("(", 1.1)
        elif span == "]" and opened["["]:
            close("[", 1 / 1.1)
        elif len(span) > 2 and span[0] == ":" and number(span) is None:
            # A1111 fails there; the colon is text, the rest is read again.
            spans = [":", span[1:-1], ")"] + spans
        elif len(span) > 2 and span[0] == ":" and opened["("]:
            close("(", number(span))
        else:
            for i, part in enumerate(re.split(r"\s*\bBREAK\b\s*", span)):
                if i:
                    pieces.append([None, 1.0])
                pieces.append([part, 1.0])
    for bracket, factor in [("(", 1.1), ("[", 1 / 1.1)]:
        while opened[bracket]:
            close(bracket, factor)
    joined = []
    for piece in pieces:
        if joined and None not in (piece[0], joined[-1][0]) and joined[-1][1] == piece[1]:
            joined[-1][0] += piece[0]
        else:
            joined.append(piece)
    return joined


def chunked(text, tokenizer, words):
    """Chunks of (id, weight); the vectors of a word are a tuple of ids that stays whole."""
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks, chunk, last_comma = [], [], None

    def size():
        return sum(len(ids) for ids, _ in chunk)

    def finish():
        nonlocal chunk, last_comma
        chunks.append([(i, weight) for ids, weight in chunk for i in ids])
        chunk, last_comma = [], None

    for piece, weight in weigh(text):
        if piece is None:
            finish()
            continue
        for i in tokenizer(piece, add_special_tokens=False).input_ids:
            ids = words.get(i, (i,))
            if i == comma:
                last_comma = size()
            elif size() == ROOM and last_comma is not None and ROOM - last_comma <= NEAR:
                moved, at = [], last_comma + 1
                while size() > at:
                    moved.insert(0, chunk.pop())
                finish()
                chunk = moved
            if size() + len(ids) > ROOM:
                finish()
            chunk.append((ids, weight))
    if chunk or not chunks:
        finish()
    return chunks


class Reader:
    def __init__(self, folder, suffix="", cls=CLIPTextModel, layer=1, norm=True, pipe=None):
        self.tokenizer = pipe.tokenizer if pipe else CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        self.model = pipe.text_encoder if pipe else cls.from_pretrained(
            folder / f"text_encoder{suffix}", dtype=torch.float32
        )
        self.model.eval()
        self.layer, self.norm = layer, norm
        self.words = {}

    def add_words(self, names):
        for name, count in names.items():
            spelled = [name] + [f"{name}_{i}" for i in range(1, count)]
            ids = self.tokenizer.convert_tokens_to_ids(spelled)
            self.words[ids[0]] = tuple(ids)

    def chunks(self, text):
        return chunked(text, self.tokenizer, self.words)

    def read(self, batch, count):
        """Texts in chunks to (texts, count * 77, dim) and the pooled vectors of the first chunks."""
        parts, pooled = [], None
        for n in range(count):
            rows = [chunks[n] if n < len(chunks) else [] for chunks in batch]
            ids, weights = [], []
            for row in rows:
                end = 77 - 1 - len(row)
                pad = [self.tokenizer.eos_token_id] + [self.tokenizer.pad_token_id] * (end - 1)
                ids.append([self.tokenizer.bos_token_id, *[i for i, _ in row], *pad])
                weights.append([1.0, *[weight for _, weight in row], *[1.0] * end])
            output = self.model(torch.tensor(ids), output_hidden_states=True)
            hidden = output.hidden_states[-self.layer]
            z = self.model.final_layer_norm(hidden) if self.norm else hidden
            mean = z.double().mean()
            z = z * torch.tensor(weights)[..., None]
            z = z * (mean / z.double().mean()).float()
            parts.append(z)
            if pooled is None:
                pooled = output.get("text_embeds")
        return torch.cat(parts, 1), pooled


def read(readers, texts):
    """As one batch, by all encoders side by side."""
    chunks = [[reader.chunks(text) for text in texts] for reader in readers]
    count = max(len(c) for of_reader in chunks for c in of_reader)
    reads = [reader.read(of_reader, count) for reader, of_reader in zip(readers, chunks)]
    return torch.cat([embeds for embeds, _ in reads], -1), reads[-1][1]


def schedule(text, steps):
    """[(last step, text)], by taking innermost square brackets apart over and over again."""
    ends = {steps}

    def number(when):
        if not re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*", when):
            return None
        value = float(when) * steps if "." in when else float(when)
        return min(int(value), steps)

    def split(inside, step):
        """What a bracket without unread brackets inside becomes, or None."""
        if "|" in inside:
            parts = inside.split("|")
            ends.update(range(1, steps + 1))
            return parts[(step - 1) % len(parts)]
        parts = inside.split(":")
        when = number(parts[-1]) if len(parts) in (2, 3) else None
        if when is None:
            return None
        if when >= 1:
            ends.add(when)
        return ("" if len(parts) == 2 else parts[0]) if step <= when else parts[-2]

    def at(step):
        done, kept = text, []

        def keep(literal):
            kept.append(literal)
            return chr(0xE000 + len(kept) - 1)

        # Round brackets hold nothing of schedules in the cases here.
        done = re.sub(r"\([^()\[\]|]*\)", lambda m: keep(m.group()), done)
        while match := re.search(r"\[([^\[\]]*)\]", done):
            chosen = split(match.group(1), step)
            new = keep(match.group()) if chosen is None else chosen
            done = done[: match.start()] + new + done[match.end() :]
        while any(0xE000 <= ord(c) < 0xE000 + len(kept) for c in done):
            done = "".join(kept[ord(c) - 0xE000] if 0xE000 <= ord(c) < 0xE000 + len(kept) else c for c in done)
        return done

    for step in range(1, steps + 1):
        at(step)
    return [(end, at(end)) for end in sorted(ends)]


def run(pipe, reader, parts, negative, guidance, steps=6):
    """`u + sum of w_i * guidance * (c_i - u)`; A1111 repeats the last vector of shorter prompts, and fills up what is
    shorter of the prompts and the negative one with empty prompts."""
    scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(3))
    latents = noise * scheduler.init_noise_sigma

    def along(text):
        entries = schedule(text, steps)
        embeds, _ = read([reader], [text for _, text in entries])
        ends = [end for end, _ in entries]
        return [embeds[[n <= end for end in ends].index(True)][None] for n in range(1, steps + 1)]

    def grown(embeds, tokens, by):
        missing = tokens - embeds.shape[1]
        return torch.cat([embeds, by.repeat(1, missing // by.shape[1], 1)], 1)

    plans, against = [along(text) for text, _ in parts], along(negative)
    empty = read([reader], [""])[0]
    for n, t in enumerate(scheduler.timesteps):
        prompts = [plan[n] for plan in plans]
        longest = max(p.shape[1] for p in prompts)
        prompts = [grown(p, longest, p[:, -1:]) for p in prompts]
        tokens = max(longest, against[n].shape[1])
        prompts[0] = grown(prompts[0], tokens, empty)
        sample = scheduler.scale_model_input(latents, t)
        u = pipe.unet(sample, t, grown(against[n], tokens, empty)).sample
        output = u.clone()
        for prompt, (_, weight) in zip(prompts, parts):
            output += weight * guidance * (pipe.unet(sample, t, prompt).sample - u)
        latents = scheduler.step(output, t, latents).prev_sample
    return latents


def make(out, emoji):
    assert [weight for _, weight in weigh("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).")] == [
        1.0,
        1.3 * 1.1 * 1.1,
        1.1,
        1.1 / 1.1,
        1.1,
        0.5 * 1.1,
        1.1,
        1.1 * 1.1 * 1.1 * 1.1,
        1.1,
    ]
    assert schedule("a[b:[c:d:2]:1]e", 10) == [(1, "abe"), (2, "ace"), (10, "ade")]
    tensors, cases = {}, []

    def record(model, readers, texts, **case):
        embeds, pooled = read(readers, texts)
        rows = [texts.index(text) for text in texts]
        for i in sorted(set(rows)):
            tensors[f"{len(cases)}.{i}.embeds"] = embeds[i : i + 1]
            if pooled is not None:
                tensors[f"{len(cases)}.{i}.pooled"] = pooled[i : i + 1]
        cases.append({"model": model, "rows": rows} | case)

    folder = out / "models/sd15"
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    for name, token in [("cat-toy", None), ("worst-thing", "worst-thing"), ("pairs", "pairs")]:
        state = load_file(out / f"embeddings/{name}.safetensors")
        pipe.load_textual_inversion({"pairs": state.get("clip_l")}.get(name, state), token=token)
    words = {"<cat-toy>": 1, "worst-thing": 3, "pairs": 2}
    sd15 = Reader(folder, pipe=pipe)
    sd15.add_words(words)
    for prompt in PROMPTS:
        record("sd15", [sd15], [prompt], prompt=prompt)
    for prompt in SCHEDULES:
        entries = schedule(prompt, 10)
        ends = [end for end, _ in entries]
        record("sd15", [sd15], [text for _, text in entries], prompt=prompt, ends=ends)
    skipping = Reader(folder, pipe=pipe, layer=2)
    skipping.add_words(words)
    record("sd15", [skipping], [PROMPTS[3]], prompt=PROMPTS[3], clip_skip=2)

    sd21 = Reader(out / "models/sd21")
    for i in [1, 3, 7, 29]:
        record("sd21", [sd21], [PROMPTS[i]], prompt=PROMPTS[i])

    def sdxl(layer):
        folder = out / "models/sdxl"
        second = CLIPTextModelWithProjection
        return [
            Reader(folder, layer=layer, norm=False),
            Reader(folder, "_2", second, layer=layer, norm=False),
        ]

    for i in [3, 7, 12, 22, 29]:
        record("sdxl", sdxl(2), [PROMPTS[i]], prompt=PROMPTS[i])
    record("sdxl", sdxl(3), [PROMPTS[3]], prompt=PROMPTS[3], clip_skip=3)
    runs = []
    for parts, negative, guidance in RUNS:
        tensors[f"run.{len(runs)}"] = run(pipe, sd15, parts, negative, guidance)
        text = " AND ".join(f"{text} :{weight}" for text, weight in parts)
        prompt = text if len(parts) > 1 else parts[0][0]
        runs.append({"prompt": prompt, "negative_prompt": negative, "guidance_scale": guidance})
    save(out / "prompts_a1111.safetensors", tensors)
    save_json(out / "prompts_a1111.json", cases)
    save_json(out / "prompts_runs.json", runs)
