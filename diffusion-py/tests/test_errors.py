"""Each kind of error has its exception class, and the builtin one of the same meaning."""

import json
import shutil

import diffusion_py
import numpy as np
import pytest
from conftest import EMOJI, PROMPT
from diffusion_py import Pipeline


def test_missing_path(tmp_path):
    with pytest.raises(diffusion_py.NotFoundError, match="nowhere") as caught:
        Pipeline.from_pretrained(tmp_path / "nowhere")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, diffusion_py.DiffusionError)


def test_not_a_model_folder(tmp_path):
    with pytest.raises(diffusion_py.FormatError, match="model_index"):
        Pipeline.from_pretrained(tmp_path)


@pytest.fixture
def broken(tmp_path):
    """A copy of the model, to be broken."""
    return shutil.copytree(EMOJI, tmp_path / "emoji")


def test_damaged_file(broken):
    (broken / "unet/config.json").write_text("{")
    with pytest.raises(diffusion_py.FormatError, match="config") as caught:
        Pipeline.from_pretrained(broken)
    assert isinstance(caught.value, ValueError)


def test_weights_of_another_model(broken):
    path = broken / "unet/config.json"
    config = json.loads(path.read_text())
    config["block_out_channels"] = [2 * n for n in config["block_out_channels"]]
    path.write_text(json.dumps(config))
    with pytest.raises(diffusion_py.WeightsError, match="expected"):
        Pipeline.from_pretrained(broken)


def test_unknown_model(broken):
    path = broken / "unet/config.json"
    config = json.loads(path.read_text())
    config["down_block_types"][0] = "NovelBlock2D"
    path.write_text(json.dumps(config))
    with pytest.raises(diffusion_py.DiffusionError, match="NovelBlock2D"):
        Pipeline.from_pretrained(broken)


@pytest.mark.parametrize(
    "arguments", [{"dtype": "int8"}, {"device": "abacus"}, {"device": "cuda:x"}]
)
def test_bad_load_arguments(arguments):
    with pytest.raises(diffusion_py.InvalidArgumentError, match=next(iter(arguments))):
        Pipeline.from_pretrained(EMOJI, **arguments)


NOISE = np.zeros((1, 4, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 100),
        ("height", 0),
        ("width", -8),
        ("num_inference_steps", 0),
        ("num_inference_steps", -1),
        ("num_inference_steps", 2**70),
        ("num_inference_steps", 1001),
        ("guidance_scale", float("nan")),
        ("guidance_scale", -1),
        ("num_images", 0),
        ("batch_size", 0),
        ("eta", 1.5),
        ("seed", -1),
        ("latents", NOISE[0]),
        ("latents", NOISE[:, :3]),
        ("latents", NOISE.astype(np.float64)),
        ("latents", NOISE * np.nan),
        ("scheduler", "{"),
        ("output_type", "jpeg"),
    ],
)
def test_bad_arguments(pipe, name, value):
    with pytest.raises(diffusion_py.InvalidArgumentError, match=f"^{name}: expected") as caught:
        pipe.generate(PROMPT, **{name: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", 5),
        ("num_inference_steps", 2.5),
        ("guidance_scale", "much"),
        ("latents", "noise"),
        ("scheduler", 5),
        ("callback", 5),
    ],
)
def test_wrong_types(pipe, name, value):
    with pytest.raises(TypeError):
        pipe.generate(**{"prompt": PROMPT, "num_inference_steps": 2, name: value})


CLIPPED = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1}


@pytest.mark.parametrize(
    "scheduler", ["sundial", '{"_class_name": "SundialScheduler"}', CLIPPED]
)
def test_unknown_schedulers(pipe, scheduler):
    with pytest.raises(diffusion_py.UnsupportedError):
        pipe.generate(PROMPT, scheduler=scheduler)


@pytest.mark.parametrize("device", ["cuda:99", "metal:99"])
def test_absent_devices(device):
    with pytest.raises(diffusion_py.UnsupportedError, match=device):
        Pipeline.from_pretrained(EMOJI, device=device)


def test_too_large_for_memory(pipe):
    with pytest.raises(diffusion_py.OutOfMemoryError) as caught:
        pipe.generate(PROMPT, width=65536, height=65536)
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("shape", [(4, 16, 16), (1, 3, 16, 16), (0, 4, 16, 16), (1, 4, 0, 16)])
def test_decode_checks_the_shape(pipe, shape):
    with pytest.raises(diffusion_py.InvalidArgumentError, match="^latents: expected"):
        pipe.decode(np.zeros(shape, np.float32))


def test_decode_makes_pictures_only(pipe):
    with pytest.raises(diffusion_py.InvalidArgumentError, match="^output_type: expected"):
        pipe.decode(NOISE, output_type="latent")
