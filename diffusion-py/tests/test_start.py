"""Runs that start from pictures, against diffusers."""

import json

import numpy as np
import PIL.Image
import pytest
from conftest import GOLDENS, SD15, read_safetensors
from diffusion_py import Hires, InvalidArgumentError, Pipeline

CASES = {
    case["name"]: case for case in json.loads((GOLDENS / "images/cases.json").read_text())["cases"]
}


@pytest.fixture(scope="module")
def pipelines():
    names = {"sd15": SD15, "inpaint": GOLDENS / "models/inpaint", "pix2pix": GOLDENS / "models/pix2pix"}
    return {name: Pipeline.from_pretrained(path) for name, path in names.items()}


@pytest.fixture(scope="module")
def pictures():
    tensors = read_safetensors(GOLDENS / "images/inputs.safetensors")
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def settings(case):
    return {
        "negative_prompt": case["negative_prompt"],
        "num_inference_steps": case["steps"],
        "guidance_scale": case["guidance"],
        "seed": case["seeds"][0],
        "num_images": len(case["seeds"]),
        "batch_size": len(case["seeds"]),
        "scheduler": case["scheduler"],
        "output_type": "latent",
    }


@pytest.mark.parametrize(
    "name",
    ["img2img_euler_75", "img2img_odd", "inpaint_ddim_30", "inpaint9_odd", "pix2pix_15", "hires_bilinear_75"],
)
def test_latents(pipelines, pictures, name):
    case = CASES[name]
    arguments = settings(case)
    odd = case.get("odd")
    if "mode" in case:
        arguments |= {"width": 96, "height": 64, "hires": Hires(144, 96, strength=case["strength"])}
    else:
        arguments["image"] = pictures["odd" if odd else "even"]
        arguments["strength"] = case.get("strength")
    if "mask" in case:
        arguments["mask_image"] = pictures["odd_mask" if odd else "mask"]
        arguments |= {"width": 96, "height": 64}
    if "image_guidance" in case:
        arguments["image_guidance_scale"] = case["image_guidance"]
    latents = pipelines[case["model"]].generate(case["prompt"], **arguments).images
    expected = read_safetensors(GOLDENS / "images/latents.safetensors")[name]
    assert np.abs(latents - expected).max() <= 1e-3 * np.abs(expected).max()


def test_what_the_mask_leaves_alone(pipelines, pictures):
    image = PIL.Image.fromarray(pictures["odd"])
    mask = PIL.Image.fromarray(pictures["odd_mask"])
    run = {"num_inference_steps": 2, "seed": 1, "image": image, "mask_image": mask}
    pipe = pipelines["sd15"]
    whole = pipe.generate("a cat", **run, padding_mask_crop=8, width=64, height=64).images[0]
    assert whole.size == image.size
    kept = pictures["odd_mask"] == 0
    assert (np.asarray(whole)[kept] == pictures["odd"][kept]).all()
    changed = np.asarray(whole)[pictures["odd_mask"] == 255]
    assert (changed != pictures["odd"][pictures["odd_mask"] == 255]).any()
    floats = pipe.generate("a cat", **run, padding_mask_crop=8, width=64, height=64, output_type="np")
    assert (np.round(floats.images[0] * 255) == np.asarray(whole)).all()
    other = pipe.generate("a cat", **run, paste_back=False).images[0]
    assert other.size == (96, 64)


def test_margins_noise_and_variations(pipelines, pictures):
    pipe = pipelines["sd15"]
    run = {"num_inference_steps": 2, "seed": 1}
    grown = pipe.generate("a cat", image=pictures["even"], margins=(8, 0, 3, 16), **run).images[0]
    assert grown.size == (112, 80)
    inside = np.asarray(grown)[20:40, 30:80]
    assert (inside == pictures["even"][20:40, 22:72]).all()
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    given = pipe.generate("a cat", noise=noise, output_type="latent", **run).images
    named = pipe.generate("a cat", latents=noise, output_type="latent", **run).images
    assert (given == named).all()
    small = run | {"width": 64, "height": 64, "output_type": "latent"}
    plain = pipe.generate("a cat", **small).images
    varied = [pipe.generate("a cat", variation=(7, share), **small).images for share in (0, 0.5)]
    assert np.abs(varied[0] - plain).max() <= 1e-4 * np.abs(plain).max()
    assert (varied[1] != plain).any()
    steady = pipe.generate("a cat", guidance_scale=[7.5], **small).images
    assert (steady == plain).all()
    off = pipe.generate("a cat", guidance_interval=(0.5, 0.5), **small).images
    assert (off != plain).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 2.0}, "strength"),
        ({"mask_image": np.zeros((3, 3), np.uint8)}, "mask: expected 96 x 64"),
        ({"margins": (1, 2, 3)}, "margins"),
        ({"resize_mode": "bend"}, "stretch, crop, fill"),
        ({"masked_content": "x"}, "original, fill"),
        ({"padding_mask_crop": 3}, "mask"),
        ({"image": np.zeros((0, 5, 3), np.uint8)}, "image"),
        ({"image": np.zeros((1, 4, 3, 3), np.float32), "margins": (8, 8, 8, 8)}, "latents"),
        ({"guidance_scale": []}, "guidance_scale"),
        ({"guidance_rescale": -1.0}, "guidance_rescale"),
        ({"variation": (1, 3.0)}, "variation"),
    ],
)
def test_bad_arguments(pipelines, pictures, arguments, message):
    arguments = {"image": pictures["even"], "num_inference_steps": 1} | arguments
    with pytest.raises(InvalidArgumentError, match=message):
        pipelines["sd15"].generate("a cat", **arguments)
