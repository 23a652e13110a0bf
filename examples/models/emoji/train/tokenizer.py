"""A byte-pair tokenizer in CLIP's format, learnt from the captions: vocab.json and merges.txt of 2,048 entries.

The model's folder has one already, and its weights belong to it; this is how such a folder is begun anew.

    python examples/models/emoji/train/tokenizer.py WORK FOLDER
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from captions import COLOURS, caption

ENTRIES = 2048
LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: contractions, letters together, digits one by one, other signs together.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learnt(texts):
    """The pairs that byte-pair encoding joins first in the texts, as "left right"."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ENTRIES, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    learner.train_from_iterator(texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def vocabulary(merges):
    """CLIP's order: the bytes, the bytes that end a word, what the merges make, the two marks; and the merges kept."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    kept = merges[: ENTRIES - len(entries) - 2]
    entries += [merge.replace(" ", "") for merge in kept] + [START, END]
    return {entry: index for index, entry in enumerate(entries)}, kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="the working folder, with icons.json")
    parser.add_argument("folder", type=Path, help="where the tokenizer is written")
    chosen = parser.parse_args()
    chance = random.Random(0)
    icons = json.loads((chosen.work / "icons.json").read_text())
    texts = [caption(icon, chance.choice(list(COLOURS)), chance) for icon in icons for _ in range(12)]
    entries, merges = vocabulary(learnt(texts))
    chosen.folder.mkdir(parents=True, exist_ok=True)
    (chosen.folder / "vocab.json").write_text(json.dumps(entries, ensure_ascii=False))
    (chosen.folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (chosen.folder / "special_tokens_map.json").write_text(json.dumps(marks))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, **marks}
    (chosen.folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"{len(CLIPTokenizer.from_pretrained(chosen.folder))} entries, {len(merges)} merges")


if __name__ == "__main__":
    main()
