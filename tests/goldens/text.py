"""The CLIP tokenizer folder, tokenizer goldens and text encoder goldens."""

import gzip
import json

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from common import build, save, save_json, save_rows, weights

SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}

TEXTS = [
    "",
    "   ",
    "a photo of a cat",
    "A PHOTO OF A CAT",
    "a red heart, flat style",
    "  leading, double  and trailing spaces  ",
    "hello world!!! ... ??? --- ,,,",
    "1234567890 3.14 2024-01-01 4k 8K",
    "it's we're they've I'm he'll she'd don't",
    "IT'S WE'RE O'CLOCK",
    "'s 't 'S ''s '''re x's'",
    "😀🎉 party 👩\u200d👩\u200d👧 🇫🇷",
    "你好,世界。",
    "日本語テキスト 한국어",
    # Composed, then decomposed: the tokenizer composes before anything else.
    "caf\u00e9 na\u00efve",
    "cafe\u0301 nai\u0308ve",
    "\u1112\u1161\u11ab \u212b \u2126",
    # A mark that composes with nothing stays apart from its letter.
    "x\u0302 q\u0323\u0307",
    "line one\nline two\ttabbed\r\nend\x0b\x0c",
    "no\u00a0break\u3000wide\u200bzero\u2028line\u0085next\u001cfile",
    "bell\u0007 nul\u0000 delete\u007f",
    "fish &amp; chips &lt;b&gt; &#39;x&#39;",
    "start <|endoftext|> end",
    "<|startoftext|>hi<|endoftext|>",
    # Not the special token, because its case differs where special tokens are looked for.
    "<|ENDOFTEXT|> loud <|endoftext |>",
    "!",
    "!!!!!!",
    "wow! that's !great!! hi!there",
    "(masterpiece:1.2), [best] {quality}, ((hd))",
    "snake_case kebab-case slash/back\\slash a|b",
    "#hashtag @user http://example.com/?q=1&r=2",
    "Ünïcödé ŠĐ straße STRASSE ẞ",
    # A final sigma and a dotted capital I lower-case differently by rule and by locale.
    "ΟΔΟΣ ΣΑΣ İstanbul ısı",
    "мама МЫЛА раму",
    "नमस्ते दुनिया مرحبا שָׁלוֹם",
    "x² ½ ⅷ ٣ ①",
    "ǅ ﬁ ﬂ Ⓐ",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 200,
    # Exactly at the limit of 77 with both specials, then one over, then far over.
    " ".join(["cat"] * 75),
    " ".join(["cat"] * 76),
    "a very long prompt about a castle on a hill at sunset, " * 12,
]


def rebuild_clip_tokenizer(out, bpe):
    folder = out / "clip-tokenizer"
    folder.mkdir(exist_ok=True)
    with gzip.open(bpe, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]

    # Bytes that print stand for themselves; the rest take the code points from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in printable]
    characters += [chr(256 + i) for i in range(256 - len(printable))]

    tokens = characters + [character + "</w>" for character in characters]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    assert len(tokens) == len(vocab) == 49408

    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    write_tokenizer_config(folder, SPECIAL_TOKENS)


def write_tokenizer_config(folder, special_tokens):
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    save_json(folder / "tokenizer_config.json", config | special_tokens)
    save_json(folder / "special_tokens_map.json", special_tokens)


def padded(tokenizer, texts):
    return tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
    ).input_ids


def tokenizers(out, emoji):
    clip = CLIPTokenizer.from_pretrained(out / "clip-tokenizer")
    sd2 = CLIPTokenizer.from_pretrained(out / "clip-tokenizer", pad_token="!")
    small = CLIPTokenizer.from_pretrained(emoji / "tokenizer")

    def rows(tokenizer):
        ids = padded(tokenizer, TEXTS)
        return [{"text": text, "ids": row} for text, row in zip(TEXTS, ids)]

    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    save_rows(
        out / "tokenizer.json",
        {"clip": rows(clip), "emoji": rows(small), "sd2": rows(sd2)},
    )


def clip(out, emoji):
    prompts = ["a red heart, flat style", "two cats! and a very long story about them, " * 8]
    for name in ["sd15", "sd21"]:
        folder = out / "models" / name
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        ids = torch.tensor(padded(tokenizer, prompts))
        save(out / f"clip_{name}.safetensors", outputs(model.eval(), ids, "pooler_output"))

    config = CLIPTextConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
        bos_token_id=2046,
        eos_token_id=2047,
        pad_token_id=2047,
    )
    model = build(CLIPTextModelWithProjection, config=config)
    tokenizer = CLIPTokenizer.from_pretrained(out / "models/sd15/tokenizer")
    ids = torch.tensor(padded(tokenizer, prompts))
    save(
        out / "clip_projection.safetensors",
        weights(model) | outputs(model, ids, "text_embeds"),
    )
    save_json(out / "clip_projection.json", config.to_diff_dict())


def outputs(model, ids, pooled):
    result = model(ids, output_hidden_states=True)
    hidden = {f"hidden_states.{i}": value for i, value in enumerate(result.hidden_states)}
    return hidden | {
        "input_ids": ids,
        "last_hidden_state": result.last_hidden_state,
        pooled: result[pooled],
    }
