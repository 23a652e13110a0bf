"""Every field of a request that is data, through a file and back."""

import inspect
import json

import diffusion_py
import numpy as np
import pytest
from conftest import GOLDENS, SD15, read_safetensors
from diffusion_py import DeepShrink, Hires, Pipeline, Provenance, _native, _recall

LEVELS = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def tiny():
    return Pipeline.from_pretrained(SD15)


@pytest.fixture(scope="module")
def pictures():
    tensors = read_safetensors(GOLDENS / "images/inputs.safetensors")
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


# None of them is at its default.
COMMON = {
    "prompt": "a (heart:1.2), \u732b",
    "negative_prompt": "dark++",
    "prompt_2": "a second",
    "negative_prompt_2": "another",
    "prompt_syntax": "compel",
    "clip_skip": 2,
    "num_inference_steps": 5,
    "guidance_scale": [3.0, 6.5, 2.0],
    "guidance_rescale": 0.25,
    "guidance_interval": (0.1, 0.9),
    "image_guidance_scale": 1.25,
    "pag_scale": 2.5,
    "pag_adaptive_scale": 0.001,
    "pag_applied_layers": ["up.block_1", "mid"],
    "deep_shrink": DeepShrink(2, 1.5, False, 0.1, 0.9),
    "deep_cache": 2,
    "tgate": 2,
    "token_merging": 0.25,
    "seamless": "y",
    "vae_tiling": (32, 0.5),
    "vae_slicing": True,
    "seed": 7,
    "num_images": 3,
    "batch_size": 2,
    "eta": 0.5,
    "scheduler": LEVELS,
    "variation": (9, 0.25),
    "original_size": (7, 9),
    "crops_coords_top_left": (1, 2),
    "target_size": (5, 6),
    "negative_original_size": (8, 4),
    "negative_crops_coords_top_left": (3, 0),
    "negative_target_size": (2, 2),
    "aesthetic_score": 5.5,
    "negative_aesthetic_score": 3.5,
}


def kinds(pictures):
    """Runs that together have all of a request's data, and what of each is not data."""
    image = {"image": pictures["even"]}
    masked = {"mask_image": pictures["mask"], **image}
    return {
        "hires": (
            {"hires": Hires(96, 104, "bicubic", 0.6, 3, "a cat"), "width": 64, "height": 56},
            {},
        ),
        "latent_hires": ({"hires": Hires(96, 104), "cfg_zero_star": 1, "width": 64}, {}),
        "inpaint": (
            {
                "strength": 0.75,
                "resize_mode": "crop",
                "mask_blur": 1.5,
                "padding_mask_crop": 6,
                "paste_back": False,
                "masked_content": "noise",
                "width": 64,
                "height": 64,
                "vae_tiling": "off",
            },
            masked,
        ),
        "outpaint": (
            {"margins": (8, 3, 0, 16), "mask_blur": 0.0, "masked_content": "original"},
            image,
        ),
        "part": ({"denoising_end": 0.75, "width": 64, "height": 64}, {}),
        "img2img": ({"strength": 0.5, "seamless": "x", "vae_tiling": "auto"}, image),
    }


@pytest.mark.parametrize("kind", ["hires", "latent_hires", "inpaint", "outpaint", "part", "img2img"])
def test_the_same_picture(tiny, pictures, tmp_path, kind):
    data, others = kinds(pictures)[kind]
    out = tiny.generate(**{**COMMON, **data}, **others)
    path = tmp_path / "a.png"
    # The last, which is alone in its batch.
    out.save(path, 2)
    found = diffusion_py.read_request(path).arguments
    told = {name: value for name, value in {**COMMON, **data}.items() if name != "scheduler"}
    told |= {"num_images": 1, "variation": (11, 0.25)}
    assert {name: found[name] for name in told} == told
    again = tiny.generate(**found, **others).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(out.images[2]))


@pytest.mark.parametrize("name", sorted(COMMON.keys() - {"num_images", "batch_size", "vae_slicing"}))
def test_each_counts(name):
    """What :func:`test_the_same_picture` changes is no default, so that a field that is lost shows."""
    default = inspect.signature(Pipeline.generate).parameters[name].default
    assert COMMON[name] != default


def test_instructions(pictures, tmp_path):
    pipe = Pipeline.from_pretrained(GOLDENS / "models/pix2pix")
    run = {"num_inference_steps": 2, "image_guidance_scale": 1.25, "seed": 2}
    out = pipe.generate("make it winter", image=pictures["even"], **run)
    out.save(tmp_path / "a.png")
    record = json.loads(out.provenance[0].record)
    record["request"]["is_instruction"] = True
    told = Provenance("", json.dumps(record))
    diffusion_py.save_picture(out.images[0], tmp_path / "b.png", told)
    for name in ["a.png", "b.png"]:
        arguments = diffusion_py.read_request(tmp_path / name).arguments
        again = pipe.generate(**arguments, image=pictures["even"])
        assert np.array_equal(np.asarray(again.images[0]), np.asarray(out.images[0]))


def test_latents_go_on(tiny, tmp_path):
    run = {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 3}
    half = tiny.generate("a cat", denoising_end=0.5, output_type="latent", **run).images
    out = tiny.generate("a cat", denoising_start=0.5, latents=half, **run)
    out.save(tmp_path / "a.png")
    found = diffusion_py.read_request(tmp_path / "a.png")
    assert any("latents" in warning for warning in found.warnings)
    again = tiny.generate(**found.arguments, latents=half)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(out.images[0]))


def test_every_field_has_an_argument(tmp_path):
    text = "a cat\nSteps: 5, Sampler: Euler a, CFG scale: 4, Seed: 1, RNG: CPU"
    picture = np.zeros((8, 8, 3), np.uint8)
    diffusion_py.save_picture(picture, tmp_path / "a.png", Provenance(text))
    fields, _, _ = _native.recall(tmp_path / "a.png")
    assert json.loads(fields).keys() == _recall.FIELDS.keys()
    with pytest.raises(TypeError, match="frobnicate, zoom"):
        _recall.arguments({"prompt": "a", "zoom": 2, "frobnicate": None})


@pytest.mark.parametrize(
    "upscaler",
    [
        "latent",
        "latent_nearest",
        "latent_antialiased",
        "latent_bicubic",
        "latent_bicubic_antialiased",
        "nearest",
        "bilinear",
        "bicubic",
        "lanczos",
    ],
)
def test_upscalers(tiny, tmp_path, upscaler):
    hires = Hires(72, 64, upscaler)
    run = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}
    tiny.generate("", hires=hires, **run).save(tmp_path / "a.png")
    assert diffusion_py.read_request(tmp_path / "a.png").arguments["hires"] == hires
