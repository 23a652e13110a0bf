"""Pictures that runs follow, against diffusers."""

import json

import diffusion_py
import numpy as np
import PIL.Image
import pytest
from conftest import GOLDENS, SD15, read_safetensors, tiny_run
from diffusion_py import Control, ControlNet, Pipeline, T2IAdapter

RUNS = {
    case["name"]: case
    for case in json.loads((GOLDENS / "controls/runs.json").read_text())["cases"]
}
IP_ADAPTERS = json.loads((GOLDENS / "ip_adapters.json").read_text())


@pytest.fixture(scope="module")
def tiny():
    return Pipeline.from_pretrained(SD15)


@pytest.fixture(scope="module")
def pictures():
    tensors = read_safetensors(GOLDENS / "controls/pictures.safetensors")
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def net():
    return ControlNet.open(GOLDENS / "controls/a")


def control(settings, pictures):
    kind, network = ("net", ControlNet) if "net" in settings else ("adapter", T2IAdapter)
    keys = settings.keys() & {"scale", "start", "end", "guess_mode"}
    named = {key: settings[key] for key in keys}
    model = network.open(GOLDENS / "controls" / settings[kind])
    return Control(model, pictures[settings["picture"]], **named)


@pytest.mark.parametrize("name", ["one", "two", "window", "guess", "full", "two_adapters"])
def test_controls(tiny, pictures, name):
    case = RUNS[name]
    latents = tiny.generate(
        "two cats! on a red roof",
        "blurry, dark",
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        width=case["width"],
        height=case["height"],
        seed=case["seeds"][0],
        num_images=len(case["seeds"]),
        batch_size=len(case["seeds"]),
        control=[control(settings, pictures) for settings in case["controls"]],
        output_type="latent",
    ).images
    expected = read_safetensors(GOLDENS / "controls/runs.safetensors")[f"{name}.latents"]
    assert np.abs(latents - expected).max() <= 1e-4 * np.abs(expected).max()


def test_models_and_pictures_of_each_kind(tiny, pictures, net):
    array = pictures["picture0"]
    expected = tiny_run(tiny, control=Control(net, array))
    assert not np.array_equal(expected, tiny_run(tiny))
    path = GOLDENS / "controls/a"
    wide = np.zeros((*array.shape[:2], 6), np.uint8)
    wide[..., ::2] = array
    for model, image in [
        (path, array),
        (str(path), array),
        (net, PIL.Image.fromarray(array)),
        (net, PIL.Image.fromarray(array).convert("RGBA")),
        (net, wide[..., ::2]),
    ]:
        assert np.array_equal(tiny_run(tiny, control=[Control(model, image)]), expected)
    assert np.array_equal(tiny_run(tiny, control=Control(net, array, scale=0)), tiny_run(tiny))


@pytest.mark.parametrize("name", ["plain", "two_pictures", "plus", "both"])
def test_ip_adapters(name):
    (case,) = (case for case in IP_ADAPTERS["cases"] if case["name"] == name)
    golden = read_safetensors(GOLDENS / "ip_adapters.safetensors")
    pipe = Pipeline.from_pretrained(GOLDENS / "models" / case["model"])
    for file in case["files"]:
        pipe.add_ip_adapter(GOLDENS / "ip_adapters" / file)
    run = IP_ADAPTERS["run"]
    images = [[golden[f"{name}.picture"] for name in names] for names in case["pictures"]]
    scales = case["scales"]
    arguments = {
        "num_inference_steps": run["steps"],
        "guidance_scale": case["guidance"],
        "width": run["width"],
        "height": run["height"],
        "seed": run["seeds"][0],
        "num_images": len(run["seeds"]),
        "batch_size": len(run["seeds"]),
        "output_type": "latent",
    }

    def latents(**pictures):
        out = pipe.generate(run["prompt"], run["negative_prompt"], **arguments, **pictures)
        return out.images

    ours = latents(ip_adapter_image=images, ip_adapter_scale=scales)
    expected = golden[f"{name}.latents"]
    assert np.abs(ours - expected).max() <= 1e-3 * np.abs(expected).max()
    if name == "plain":
        assert np.array_equal(latents(ip_adapter_image=PIL.Image.fromarray(images[0][0])), ours)
        pipe.clear_ip_adapters()
        base = latents()
        pipe.add_ip_adapter(
            GOLDENS / "ip_adapters" / case["files"][0],
            image_encoder=GOLDENS / "ip_adapters/image_encoder",
        )
        assert np.array_equal(latents(), base)
        assert np.array_equal(latents(ip_adapter_image=images), ours)


def test_what_is_refused(tiny, net, pictures, tmp_path):
    picture = pictures["picture0"]
    refused = diffusion_py.InvalidArgumentError
    for arguments, error in [
        ({"control": 5}, TypeError),
        ({"control": [net]}, TypeError),
        ({"control": Control(5, picture)}, TypeError),
        ({"control": Control(net, "picture.png")}, TypeError),
        ({"control": Control(net, picture[0])}, refused),
        ({"control": Control(net, picture.astype(np.float32))}, refused),
        ({"control": Control(net, picture[:0])}, refused),
        ({"control": Control(net, picture, scale=float("nan"))}, refused),
        ({"control": Control(net, picture, start=0.8, end=0.2)}, refused),
        ({"control": Control(net, picture, scale="much")}, TypeError),
        ({"control": Control(tmp_path / "nowhere", picture)}, diffusion_py.NotFoundError),
        ({"ip_adapter_image": picture}, refused),
        ({"ip_adapter_image": [picture], "ip_adapter_scale": [1, 2]}, refused),
    ]:
        with pytest.raises(error):
            tiny_run(tiny, **arguments)
    with pytest.raises(diffusion_py.FormatError):
        ControlNet.open(tmp_path)
    with pytest.raises(diffusion_py.InvalidArgumentError, match="dtype"):
        T2IAdapter.open(GOLDENS / "controls/full", dtype="int8")
    with pytest.raises(diffusion_py.DiffusionError):
        tiny.add_ip_adapter(GOLDENS / "ip_adapters/sdxl.safetensors")
