"""What happens within the networks: against diffusers and PyTorch, where they have it."""

import json

import numpy as np
import pytest
from conftest import GOLDENS, SD15, read_safetensors, tiny_run
from diffusion_py import DeepShrink, InvalidArgumentError, Pipeline

PERTURBED = json.loads((GOLDENS / "perturbed.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tiny():
    return Pipeline.from_pretrained(SD15)


@pytest.mark.parametrize("case", [PERTURBED[2], PERTURBED[3], PERTURBED[4]], ids=lambda case: case["name"])
def test_perturbed_attention(case):
    pipe = Pipeline.from_pretrained(GOLDENS / "models" / case["model"])
    latents = pipe.generate(
        case["prompt"],
        case["negative_prompt"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        pag_scale=case["pag_scale"],
        pag_adaptive_scale=case["pag_adaptive_scale"],
        pag_applied_layers=case["pag_layers"],
        width=case["width"],
        height=case["height"],
        seed=case["seeds"][0],
        num_images=len(case["seeds"]),
        batch_size=len(case["seeds"]),
        scheduler=case["scheduler"],
        output_type="latent",
    ).images
    expected = read_safetensors(GOLDENS / f"perturbed/{case['name']}.safetensors")["latents"]
    assert np.abs(latents - expected).max() <= 1e-3 * np.abs(expected).max()


def test_defaults_of_perturbed_attention(tiny):
    assert np.array_equal(tiny_run(tiny, pag_applied_layers="mid"), tiny_run(tiny))
    named = tiny_run(tiny, pag_scale=3, pag_applied_layers="mid")
    assert np.array_equal(tiny_run(tiny, pag_scale=3), named)
    assert not np.array_equal(named, tiny_run(tiny))
    assert not np.array_equal(tiny_run(tiny, pag_scale=3, pag_adaptive_scale=0.003), named)


@pytest.mark.parametrize(
    "arguments",
    [
        # A run of two steps has none before the default end.
        {"deep_shrink": DeepShrink(end=1)},
        {"deep_shrink": DeepShrink(2, 1.5, False, end=1)},
        {"cfg_zero_star": 1},
        {"deep_cache": 2},
        {"tgate": 1},
        {"token_merging": 0.5},
        {"seamless": True},
        {"seamless": "x"},
        {"seamless": "y"},
    ],
    ids=str,
)
def test_each_changes_the_latents(tiny, arguments):
    assert not np.array_equal(tiny_run(tiny, **arguments), tiny_run(tiny))


@pytest.mark.parametrize(("seamless", "wraps"), [("x", (False, True)), ("y", (True, False)), (True, (True, True))])
def test_seamless_decoding(tiny, seamless, wraps):
    """Latents that are moved around give the picture moved around in the same directions, and no other."""
    run = {"width": 64, "height": 64, "num_inference_steps": 2, "strength": 0.0, "output_type": "np"}
    latents = tiny_run(tiny)

    def decoded(latents):
        return tiny.generate("", image=np.ascontiguousarray(latents), seamless=seamless, **run).images

    picture = decoded(latents)
    factor = picture.shape[1] // latents.shape[2]
    for axis, is_wrapped in enumerate(wraps):
        moved = decoded(np.roll(latents, 3, axis=2 + axis))
        expected = np.roll(picture, 3 * factor, axis=1 + axis)
        assert (np.abs(moved - expected).max() <= 1e-4) == is_wrapped


def test_tiles_and_slices(tiny):
    run = {"width": 128, "height": 64, "output_type": "np"}
    whole = tiny_run(tiny, **run)
    assert np.array_equal(tiny_run(tiny, vae_tiling="off", vae_slicing=True, **run), whole)
    assert np.array_equal(tiny_run(tiny, vae_tiling="auto", **run), whole)
    tiles = tiny_run(tiny, vae_tiling=(32, 0.25), **run)
    assert not np.array_equal(tiles, whole)
    assert np.abs(tiles - whole).mean() < 0.1
    pixels = tiny_run(tiny, vae_tiling=(32, 0.25), **{**run, "output_type": "pil"})[0]
    assert np.abs(np.asarray(pixels) - tiles[0] * 255).max() <= 0.501


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pag_scale": -1.0}, InvalidArgumentError, "^pag_scale"),
        ({"pag_scale": 3, "pag_applied_layers": ["roof"]}, InvalidArgumentError, "^pag_applied_layers"),
        ({"pag_scale": "much"}, TypeError, "pag"),
        ({"deep_shrink": DeepShrink(block=99)}, InvalidArgumentError, "deep_shrink block"),
        ({"deep_shrink": DeepShrink(end=2)}, InvalidArgumentError, "deep_shrink end"),
        ({"deep_shrink": 2}, TypeError, "deep_shrink"),
        ({"deep_cache": 0}, InvalidArgumentError, "deep_cache"),
        ({"tgate": 0}, InvalidArgumentError, "tgate"),
        ({"tgate": 0.5}, TypeError, "tgate"),
        ({"token_merging": 1.0}, InvalidArgumentError, "token_merging"),
        ({"seamless": "z"}, InvalidArgumentError, "seamless"),
        ({"seamless": 1}, TypeError, "seamless"),
        ({"vae_tiling": "on"}, InvalidArgumentError, "vae_tiling"),
        ({"vae_tiling": (7, 0.25)}, InvalidArgumentError, "multiple"),
        ({"vae_tiling": (64, 0.75)}, InvalidArgumentError, "overlap"),
        ({"vae_tiling": 64}, TypeError, "vae_tiling"),
        ({"cfg_zero_star": -1}, InvalidArgumentError, "cfg_zero_star"),
        ({"guidance_scale": "12"}, TypeError, "guidance_scale"),
    ],
    ids=str,
)
def test_bad_arguments(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_run(tiny, **{"output_type": "pil", **arguments})


def test_memory_estimate(tiny):
    small = tiny.memory_estimate(64, 64)
    assert isinstance(small, int) and 0 < small < tiny.memory_estimate(128, 64)
    assert tiny.memory_estimate(64, 64, batch_size=2) > small
    width, height = tiny.default_size
    assert tiny.memory_estimate() == tiny.memory_estimate(width, height)
    with pytest.raises(InvalidArgumentError):
        tiny.memory_estimate(-1)
