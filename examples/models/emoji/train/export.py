"""Writes the averaged weights as a diffusers folder in half precision, as loaders of Stable Diffusion expect it."""

import copy
import json
import shutil

import torch
from safetensors.torch import load_file, save_file

COPIED = ("tokenizer", "scheduler", "vae", "licences", "model_index.json")


def export(text, unet, base, folder):
    """Writes the networks in f16 beside the base folder's own tokenizer, scheduler, autoencoder and licences."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (base / name).is_dir():
            shutil.copytree(base / name, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy(base / name, folder / name)
    for name, network in (("text_encoder", text), ("unet", unet)):
        copy.deepcopy(network).to("cpu", torch.float16).save_pretrained(folder / name)
        shutil.copy(base / name / "config.json", folder / name / "config.json")
    prefix_text_encoder(folder / "text_encoder" / "model.safetensors")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"exported {folder}: {size / 1e6:.1f} MB", flush=True)


def prefix_text_encoder(path):
    """Published checkpoints name the encoder's weights text_model.*; newer versions of transformers leave that out."""
    tensors = load_file(path)
    named = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in tensors.items()}
    path.unlink()
    save_file(named, path, metadata={"format": "pt"})


def curve(entries, path):
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")
