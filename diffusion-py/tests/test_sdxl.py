"""What SDXL and its refiner are told, against diffusers."""

import json

import diffusion_py
import numpy as np
import pytest
from conftest import GOLDENS, read_safetensors, tiny_run
from diffusion_py import Pipeline

CASES = {
    case["name"]: case for case in json.loads((GOLDENS / "sdxl.json").read_text())["cases"]
}
# What diffusers' pipelines call the same.
SAME = {
    "prompt",
    "prompt_2",
    "negative_prompt",
    "negative_prompt_2",
    "width",
    "height",
    "scheduler",
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
    "aesthetic_score",
    "negative_aesthetic_score",
}


@pytest.fixture(scope="module")
def base():
    return Pipeline.from_pretrained(GOLDENS / "models/sdxl")


@pytest.fixture(scope="module")
def refiner():
    return Pipeline.from_pretrained(GOLDENS / "models/refiner")


def run(pipe, case, **arguments):
    case = CASES[case] if isinstance(case, str) else case
    out = pipe.generate(
        **{key: value for key, value in case.items() if key in SAME},
        prompt_syntax="plain",
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        seed=case["seeds"][0],
        num_images=len(case["seeds"]),
        batch_size=len(case["seeds"]),
        output_type="latent",
        **arguments,
    )
    return out.images


def assert_golden(latents, name):
    expected = read_safetensors(GOLDENS / f"sdxl/{name}.safetensors")["latents"]
    assert np.abs(latents - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["no_negative", "second_prompts", "sizes"])
def test_prompts_and_sizes(base, name):
    assert_golden(run(base, name), name)


def test_sizes_that_are_not_given(base):
    """As the size of the picture, and beside the negative prompt as beside the prompt."""
    plain = {key: value for key, value in CASES["sizes"].items() if "size" not in key}
    plain = {key: value for key, value in plain.items() if "crops" not in key}
    picture = (plain["height"], plain["width"])
    told = {"original_size": picture, "crops_coords_top_left": [0, 0], "target_size": picture}
    expected = run(base, plain)
    assert np.array_equal(run(base, plain | told), expected)
    negative = {f"negative_{key}": value for key, value in told.items()}
    assert np.array_equal(run(base, plain | negative), expected)
    moved = plain | {"crops_coords_top_left": (16, 8)}
    assert not np.array_equal(run(base, moved), expected)
    both = moved | {"negative_crops_coords_top_left": (16, 8)}
    assert np.array_equal(run(base, moved), run(base, both))
    assert not np.array_equal(run(base, moved), run(base, moved | negative))


@pytest.mark.parametrize("name", ["hand_over_euler", "hand_over_scores"])
def test_the_refiner_goes_on(base, refiner, name):
    case = CASES[name]
    noisy = run(base, case, denoising_end=case["share"])
    assert_golden(noisy, name)
    refined = run(refiner, case, denoising_start=case["share"], latents=noisy)
    assert_golden(refined, f"{name}_refined")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("original_size", 5),
        ("original_size", (1, 2, 3)),
        ("target_size", (-1, 2)),
        ("negative_target_size", (1,)),
        ("negative_crops_coords_top_left", (0, -1)),
        ("denoising_end", 1.5),
        ("denoising_start", -0.5),
        ("aesthetic_score", 11),
        ("negative_aesthetic_score", float("nan")),
    ],
)
def test_bad_arguments(base, name, value):
    with pytest.raises(diffusion_py.InvalidArgumentError, match=f"^{name}: expected"):
        tiny_run(base, **{name: value})


def test_going_on_needs_latents(base):
    with pytest.raises(diffusion_py.InvalidArgumentError, match="latents"):
        tiny_run(base, denoising_start=0.5)
