"""Pictures: determinism, outputs, inputs, and the same latents as diffusers."""

import array
import json

import diffusion_py
import numpy as np
import pytest
from conftest import EMOJI, PROMPT


def test_same_seed_same_picture(pipe, short):
    first, again = pipe.generate(**short), pipe.generate(**short)
    other = pipe.generate(**{**short, "seed": 2})
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert first.images[0].tobytes() != other.images[0].tobytes()


def test_pil(pipe, short):
    out = pipe.generate(**short, num_images=2)
    assert [(image.mode, image.size) for image in out.images] == [("RGB", (128, 128))] * 2
    assert out.seeds == [1, 2]
    assert out.warnings == []
    assert set(out.timings) == {"encode", "sample", "decode"}
    assert all(seconds > 0 for seconds in out.timings.values())
    alone = pipe.generate(**{**short, "seed": 2})
    assert out.images[1].tobytes() == alone.images[0].tobytes()


def test_numpy_is_the_picture_before_rounding(pipe, short):
    floats = pipe.generate(**short, output_type="np").images
    assert (floats.dtype, floats.shape) == (np.float32, (1, 128, 128, 3))
    assert floats.min() >= 0 and floats.max() <= 1
    picture = np.asarray(pipe.generate(**short).images[0], np.float32)
    assert np.abs(floats[0] * 255 - picture).max() <= 0.501
    floats[0] = 0  # It is the caller's own.


def test_size(pipe, short):
    assert pipe.default_size == (128, 128)
    assert pipe.generate(**short, width=160, height=96).images[0].size == (160, 96)


def test_latents_out_and_decode(pipe, short):
    latents = pipe.generate(**short, num_images=2, output_type="latent").images
    assert (latents.dtype, latents.shape) == (np.float32, (2, 4, 16, 16))
    pictures = pipe.generate(**short, num_images=2)
    decoded = pipe.decode(latents)
    assert [a.tobytes() for a in decoded] == [b.tobytes() for b in pictures.images]
    assert pipe.decode(latents[1:], output_type="np").shape == (1, 128, 128, 3)


def test_batches(pipe, short):
    single = pipe.generate(**short, num_images=3, output_type="latent").images
    batched = pipe.generate(**short, num_images=3, batch_size=2, output_type="latent").images
    assert np.abs(single - batched).max() <= 1e-3 * np.abs(single).max()


def test_random_seed_is_told(pipe, short):
    del short["seed"]
    out = pipe.generate(**short)
    again = pipe.generate(**short, seed=out.seeds[0])
    assert out.images[0].tobytes() == again.images[0].tobytes()


class HasArray:
    """As a PyTorch tensor: no buffer protocol, but ``__array__``."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_latents_in(pipe, short, recorded):
    _, tensors = recorded("emoji_ddim")
    noise = tensors["initial_noise"]
    by_seed = np.asarray(pipe.generate(**short).images[0], int)
    del short["seed"]
    by_noise = np.asarray(pipe.generate(**short, latents=noise).images[0])
    # Not to the bit: PyTorch's vectorized logarithm and cosine round differently from ours.
    assert np.abs(by_noise - by_seed).max() <= 2

    flat = memoryview(array.array("f", noise.ravel()))
    wide = np.zeros((1, 4, 16, 32), np.float32)
    wide[..., ::2] = noise
    for latents in [HasArray(noise), wide[..., ::2], flat.cast("B").cast("f", noise.shape)]:
        again = pipe.generate(**short, latents=latents).images[0]
        assert again.tobytes() == by_noise.tobytes()


def test_latents_set_the_size(pipe, short):
    latents = np.zeros((1, 4, 8, 24), np.float32)
    assert pipe.generate(**short, latents=latents).images[0].size == (192, 64)


@pytest.mark.parametrize("name", ["emoji_ddim", "emoji_euler", "emoji_dpmpp_2m"])
def test_same_latents_as_diffusers(pipe, recorded, name):
    case, tensors = recorded(name)
    out = pipe.generate(
        case["prompt"],
        case["negative_prompt"],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        width=case["width"],
        height=case["height"],
        seed=case["seeds"][0],
        eta=case["eta"],
        scheduler=case["scheduler"],
        output_type="latent",
    )
    expected = tensors[f"step{case['steps'] - 1}"]
    assert np.abs(out.images - expected).max() <= 1e-3 * np.abs(expected).max()


def test_scheduler_as_name_mapping_and_json(pipe, short, recorded):
    case, _ = recorded("emoji_euler")
    config = case["scheduler"] | {"sigma_max": float("inf")}

    def run(scheduler):
        return pipe.generate(**short, scheduler=scheduler).images[0].tobytes()

    by_name = run("euler")
    assert by_name != run(None)
    assert by_name != run("euler_karras")
    assert by_name == run("EulerDiscreteScheduler") == run(config) == run(json.dumps(config))


def test_schedulers():
    assert {"ddim", "euler", "dpmpp_2m"} <= set(diffusion_py.schedulers())
    assert {"native", "karras", "align_your_steps"} <= set(diffusion_py.sigma_schedules())


def test_every_scheduler_makes_a_picture(pipe):
    def run(scheduler):
        return pipe.generate(PROMPT, num_inference_steps=3, seed=1, scheduler=scheduler).images[0]

    for name in diffusion_py.schedulers():
        assert run(name).size == (128, 128)
    assert run("DPM++ 2M Karras") == run("dpmpp_2m_karras") == run("k_dpmpp_2m karras")
    levels = {"_class_name": "EulerDiscreteScheduler", "sigmas": [14.6, 2.0, 0.0]}
    assert run(levels) == run(levels | {"num_steps": 7})


def test_dtypes(short):
    class Dtype:  # As PyTorch's print.
        def __str__(self):
            return "torch.float16"

    full = diffusion_py.Pipeline.from_pretrained(str(EMOJI), dtype="float32", device="cpu")
    half = diffusion_py.Pipeline.from_pretrained(EMOJI, dtype=Dtype())
    a, b = (p.generate(**short, output_type="np").images for p in (full, half))
    assert np.abs(a - b).mean() < 0.02


def test_truncated_prompt_warns(pipe, short):
    short["prompt"] = "a red heart " * 40
    assert not pipe.generate(**short, negative_prompt="blue").warnings
    plain = pipe.generate(**short, negative_prompt="blue", prompt_syntax="plain")
    (warning,) = plain.warnings
    assert warning.startswith("the prompt is longer than 30 tokens")
