"""Files as torch.save, safetensors and ggml write them, and the values that their readers give."""

import sys
import types
from collections import OrderedDict

import numpy
import torch
from safetensors.torch import save_file

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def make(here, _emoji):
    folder = here / "containers"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    save_pickles(folder)
    save_float8(folder)
    save_gguf(folder)


def tensors():
    """One tensor of every type, and every way in which tensors lie in storages."""
    kinds = {f"kind.{t}".replace("torch.", ""): (4 * torch.randn(3, 5)).to(t) for t in FLOATS}
    kinds |= {
        f"kind.{t}".replace("torch.", ""): torch.randint(-100, 100, (3, 5)).to(t) for t in INTEGERS
    }
    shared = torch.randn(6, 8)
    return OrderedDict(
        kinds,
        **{
            "kind.bool": torch.tensor([True, False, True]),
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "layout.whole": shared,
            "layout.rows": shared[2:4],
            "layout.columns": shared[:, 3:5],
            "layout.transposed": shared.t(),
            "layout.every_other": shared[::2, 1::3],
            "layout.permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
            "layout.expanded": shared[:1, :2].expand(3, 2),
            "layout.channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        },
    )


def lightning_checkpoint(state_dict):
    """What a trainer puts around the weights; only the names of its classes are in the file."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for i in range(name.count(".") + 1):
        package = ".".join(name.split(".")[: i + 1])
        sys.modules[package] = module if package == name else types.ModuleType(package)
    return {
        "epoch": 3,
        "global_step": 2**40,
        "callbacks": {
            module.ModelCheckpoint: {"best_model_score": torch.tensor(0.25), "monitor": "loss"}
        },
        "instance": module.ModelCheckpoint(),
        "loss": numpy.float64(0.1),
        "counts": [1, -2, 3.5, None, True, b"bytes \xff", (4, "five")],
        "shape": torch.Size([2, 3]),
        "dtype": torch.float16,
        "state_dict": state_dict,
    }


def save_pickles(folder):
    state = tensors()
    checkpoint = lightning_checkpoint(state)
    torch.save(checkpoint, folder / "zip.pt")
    torch.save(checkpoint, folder / "protocol4.pt", pickle_protocol=4)
    torch.save(checkpoint, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    # safetensors has no shared storages, and the readers in the tests no type but this for all.
    expected = {name: value.to(torch.float64).clone().contiguous() for name, value in state.items()}
    save_file(expected, folder / "pickled.safetensors")

    torch.manual_seed(1)
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.GroupNorm(1, 3))
    torch.save(layer.state_dict(keep_vars=True), folder / "parameters.pt")
    save_file(layer.state_dict(), folder / "parameters.safetensors")

    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.randn(2, 4))})
    embedding = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": parameters,
        "name": "tiny",
        "step": 1875,
        "sd_checkpoint": None,
    }
    torch.save(embedding, folder / "embedding.pt")
    save_file({"vectors": parameters["*"].detach()}, folder / "embedding.safetensors")


def save_float8(folder):
    codes = torch.arange(256, dtype=torch.uint8)
    values = {name: codes.clone().view(dtype) for name, dtype in FLOAT8.items()}
    save_file(values, folder / "float8.stored.safetensors")
    torch.save(values, folder / "float8.pt")
    converted = {
        f"{name}.{str(target).removeprefix('torch.')}": value.to(target)
        for name, value in values.items()
        for target in FLOATS
    }
    save_file(converted, folder / "float8.safetensors")


def save_gguf(folder):
    import gguf
    from gguf import GGMLQuantizationType as Kind

    random = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(folder / "kinds.gguf", "sd")
    writer.add_string("text", "found by its first bytes")
    writer.add_array("list", ["a", "list", "of", "texts"])
    writer.add_array("numbers", [1, 2, 3])
    expected = {}

    def add(name, stored, kind):
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected[name] = torch.from_numpy(gguf.dequantize(stored, kind).astype(numpy.float32))

    weights = random.normal(size=(6, 64)).astype(numpy.float32)
    for kind in (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.F16, Kind.BF16, Kind.F32):
        add(f"kind.{kind.name}", gguf.quantize(weights, kind), kind)
    # The package has no quantiser for these; any bytes are blocks as long as their scales are finite.
    for kind in (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
        add(f"kind.{kind.name}", random_blocks(gguf, random, kind, rows=3), kind)
    add("dims", random.normal(size=(2, 3, 4, 5)).astype(numpy.float32), Kind.F32)

    # Rows of 10 are no whole blocks, so ComfyUI's converter writes them as one and notes the shape.
    flat = gguf.quantize(random.normal(size=(1, 320)).astype(numpy.float32), Kind.Q8_0)
    writer.add_array("comfy.gguf.orig_shape.flattened", [32, 10])
    writer.add_tensor("flattened", flat, raw_dtype=Kind.Q8_0)
    expected["flattened"] = torch.from_numpy(gguf.dequantize(flat, Kind.Q8_0).reshape(32, 10))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, folder / "gguf.safetensors")


def random_blocks(gguf, random, kind, rows):
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = []
    while len(blocks) < rows:
        block = random.integers(0, 256, size=(1, size), dtype=numpy.uint8)
        values = gguf.dequantize(block, kind)
        if numpy.isfinite(values).all() and abs(values).max() < 1e4:
            blocks.append(block)
    return numpy.concatenate(blocks)
