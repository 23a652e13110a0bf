"""What every part of the generator needs: random weights, and writing files."""

import json
import math

import torch
from safetensors.torch import save_file


def randomize(model):
    """Gives every parameter a value that matters.

    Fresh models start with many zeros and ones (biases, norms, output layers), which would hide
    a missing bias or a swapped norm. The values are rounded to f16 so that a file of half
    precision weights loses nothing.
    """
    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape)
            if isinstance(module, norms) and name == "weight":
                value = 1 + 0.1 * noise
            elif isinstance(module, torch.nn.Embedding):
                value = 0.5 * noise
            elif parameter.ndim < 2:
                value = 0.1 * noise
            else:
                value = 0.9 * noise / math.sqrt(parameter[0].numel())
            parameter.data.copy_(value.half().float())
    return model.eval()


def build(make, **config):
    """Builds a model whose weights do not depend on what was built before it."""
    torch.manual_seed(0)
    return randomize(make(**config))


def weights(model):
    """The weights to embed in a file; randomize made them exact in half precision."""
    return {f"weights.{name}": value.half() for name, value in model.state_dict().items()}


def prefixed(prefix, tensors):
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def save(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {}
    for name, value in tensors.items():
        if value.is_floating_point():
            half = "weights." in name
            assert value.dtype == (torch.float16 if half else torch.float32), name
            assert value.isfinite().all(), f"{path.name}: {name} is not finite"
        # A slice or a transpose shares its storage, which safetensors refuses.
        kept[name] = value.detach().clone(memory_format=torch.contiguous_format)
    save_file(kept, path)


def save_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_rows(path, value):
    """Writes a dictionary of lists with one row a line, so that a change reads well in a diff."""
    lists = []
    for name, rows in value.items():
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        lists.append(json.dumps(name) + ": [\n  " + ",\n  ".join(lines) + "\n]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lists) + "\n}\n")
