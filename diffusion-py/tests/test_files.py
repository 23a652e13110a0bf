"""Pictures into files, and requests out of them."""

import diffusion_py
import numpy as np
import PIL.Image
import pytest
from conftest import GOLDENS, SD15
from diffusion_py import Pipeline, Provenance


@pytest.fixture(scope="module")
def tiny():
    return Pipeline.from_pretrained(SD15)


def run(pipe, **arguments):
    size = {"width": 64, "height": 96, "num_inference_steps": 2, "seed": 3, "guidance_scale": 2.5}
    return pipe.generate("a heart, \u732b", "dark", **{**size, **arguments})


@pytest.mark.parametrize("name", ["one.png", "two.webp"])
def test_a_picture_comes_again_from_its_file(tiny, tmp_path, name):
    out = run(tiny, num_images=2, scheduler="DPM++ 2M Karras")
    assert len(out.provenance) == 2
    path = tmp_path / name
    out.save(path, 1)
    found = diffusion_py.read_request(path)
    assert (found.model, found.warnings) == ("sd15", [])
    assert (found.arguments["seed"], found.arguments["num_images"]) == (4, 1)
    again = tiny.generate(**found.arguments).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(out.images[1]))
    assert np.array_equal(np.asarray(PIL.Image.open(path).convert("RGB")), np.asarray(again))


def test_sizes_and_a_scheduler_of_the_model(tiny, tmp_path):
    sizes = {"original_size": (7, 9), "negative_target_size": (5, 6)}
    run(tiny, **sizes).save(tmp_path / "a.jpg")
    arguments = diffusion_py.read_request(tmp_path / "a.jpg").arguments
    assert {name: arguments[name] for name in sizes} == sizes
    assert arguments["scheduler"]["_class_name"] and arguments["num_inference_steps"] == 2
    again, first = tiny.generate(**arguments), run(tiny, **sizes)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(first.images[0]))


def test_texts_and_errors(tmp_path):
    picture = np.zeros((8, 6, 3), np.uint8)
    text = "a cat\nSteps: 5, Sampler: Euler a, CFG scale: 4, Seed: 1, RNG: CPU"
    diffusion_py.save_picture(picture, tmp_path / "a.png", Provenance(text))
    assert PIL.Image.open(tmp_path / "a.png").info["parameters"] == text
    arguments = diffusion_py.read_request(tmp_path / "a.png").arguments
    assert (arguments["prompt"], arguments["scheduler"], arguments["guidance_scale"]) == ("a cat", "Euler a", 4)
    diffusion_py.save_picture(picture, tmp_path / "b.png")
    with pytest.raises(diffusion_py.FormatError):
        diffusion_py.read_request(tmp_path / "b.png")
    with pytest.raises(diffusion_py.NotFoundError):
        diffusion_py.read_request(tmp_path / "c.png")
    with pytest.raises(diffusion_py.UnsupportedError):
        diffusion_py.save_picture(picture, tmp_path / "a.txt")
    found = diffusion_py.read_request(GOLDENS / "pictures/texts/wide.jpg")
    assert found.arguments["prompt"] == "a cat, \u732b \U0001f408"


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_animations(tmp_path, ending):
    frames = [np.full((8, 10, 3), 60 * i, np.uint8) for i in range(4)]
    path = tmp_path / f"a.{ending}"
    diffusion_py.save_animation(frames, path, delay=0.12)
    with PIL.Image.open(path) as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (10, 8), 0)
        for i, frame in enumerate(frames):
            animation.seek(i)
            # Pillow knows a WebP frame's duration once it is loaded.
            assert np.array_equal(np.asarray(animation.convert("RGB")), frame)
            assert animation.info["duration"] == 120
    with pytest.raises(diffusion_py.InvalidArgumentError):
        diffusion_py.save_animation([], path)
    with pytest.raises(diffusion_py.InvalidArgumentError):
        diffusion_py.save_animation(frames, path, delay=-1)
