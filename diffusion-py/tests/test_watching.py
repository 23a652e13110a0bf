"""Previews and times of runs, cancellation from other threads, and frames between key frames."""

import threading

import diffusion_py
import numpy as np
import pytest
from conftest import SD15, tiny_run
from diffusion_py import Cancelled, CancelToken, Hires, Pipeline


@pytest.fixture(scope="module")
def tiny():
    return Pipeline.from_pretrained(SD15)


def test_previews(tiny):
    seen = []
    latents = tiny_run(tiny, num_images=2, batch_size=2, callback=seen.append)
    last = seen[-1]
    floats = last.preview("np")
    assert (floats.dtype, floats.shape) == (np.float32, (2, *latents.shape[2:], 3))
    pictures = last.preview()
    assert [(p.mode, p.size) for p in pictures] == [("RGB", latents.shape[:1:-1])] * 2
    assert np.array_equal(np.round(floats[1] * 255), np.asarray(pictures[1]))
    # ComfyUI's factors of SD 1.x, for red.
    red = np.tensordot([0.3512, 0.325, -0.2829, -0.212], last.denoised[0], 1)
    expected = np.clip(red / 2 + 0.5, 0, 1)
    assert np.abs(floats[0, ..., 0] - expected).max() <= 0.501 / 255
    assert expected.std() > 0.01
    with pytest.raises(diffusion_py.InvalidArgumentError, match="output_type"):
        last.preview("latent")


def test_times_and_passes(tiny):
    seen = []
    tiny_run(tiny, num_inference_steps=3, callback=seen.append)
    elapsed = [progress.elapsed for progress in seen]
    assert 0 < elapsed[0] < elapsed[1] < elapsed[2]
    left = [progress.time_left for progress in seen]
    assert left[0] == pytest.approx(2 * elapsed[0], rel=1e-6) and left[2] == 0
    assert {(progress.pass_index, progress.num_passes) for progress in seen} == {(0, 1)}
    seen.clear()
    tiny_run(tiny, hires=Hires(96, 96), num_inference_steps=4, callback=seen.append)
    assert [progress.pass_index for progress in seen] == [0] * 4 + [1] * 2
    assert {progress.num_passes for progress in seen} == {2}


def test_cancelled_from_another_thread(tiny):
    token = CancelToken()
    assert not token.is_cancelled
    began = threading.Event()
    thread = threading.Thread(target=lambda: began.wait() and token.cancel())
    thread.start()
    with pytest.raises(Cancelled):
        tiny_run(tiny, num_inference_steps=1000, cancel_token=token, callback=lambda _: began.set())
    thread.join()
    assert token.is_cancelled
    with pytest.raises(Cancelled, match="step 0"):
        tiny_run(tiny, cancel_token=token)
    assert tiny_run(tiny, cancel_token=CancelToken()).shape[0] == 1
    with pytest.raises(TypeError):
        tiny_run(tiny, cancel_token=True)


def test_what_a_cancelled_run_keeps(tiny):
    estimates = []

    def stop(progress):
        estimates.append(progress.denoised)
        return not (progress.images.start == 1 and progress.step == 2)

    run = {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 3, "num_images": 3}
    out = tiny.generate("a heart", callback=stop, keep_cancelled=True, output_type="np", **run)
    assert (len(out.images), out.seeds, len(out.provenance)) == (2, [3, 4], 2)
    assert out.warnings == ["cancelled after step 2 of 4"]
    whole = tiny.generate("a heart", output_type="np", **run).images
    assert np.array_equal(out.images[0], whole[0])
    assert np.array_equal(out.images[1:], tiny.decode(estimates[-1], "np"))
    with pytest.raises(Cancelled):
        tiny.generate("a heart", callback=stop, **run)

    def fail(progress):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tiny.generate("a heart", callback=fail, keep_cancelled=True, **run)


KEYS = [("a heart", 3), ("a cat", 4)]
FRAMES = {"width": 64, "height": 64, "num_inference_steps": 2, "scheduler": "ddim"}


def test_frames(tiny):
    seen = []
    frames = tiny.interpolate(KEYS, 3, callback=seen.append, guidance_scale=5, **FRAMES)
    assert len(frames) == 4
    assert [progress.images.start for progress in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    for frame, (prompt, seed) in [(frames[0], KEYS[0]), (frames[-1], KEYS[1])]:
        key = tiny.generate(prompt, seed=seed, guidance_scale=5, **FRAMES).images[0]
        assert np.array_equal(np.asarray(frame), np.asarray(key))
    closed = tiny.interpolate(KEYS, 3, closed=True, output_type="np", guidance_scale=5, **FRAMES)
    assert (closed.dtype, closed.shape) == (np.float32, (6, 64, 64, 3))
    assert np.array_equal(np.round(closed[1] * 255), np.asarray(frames[1]))


def test_frames_are_decoded_as_asked(tiny):
    asked = {"seamless": True, "vae_tiling": (32, 0.25), **FRAMES}
    frame = tiny.interpolate(KEYS, 1, **asked)[0]
    key = tiny.generate("a heart", seed=3, **asked).images[0]
    assert np.array_equal(np.asarray(frame), np.asarray(key))
    whole = tiny.interpolate(KEYS, 1, **{**asked, "vae_tiling": "off"})[0]
    assert not np.array_equal(np.asarray(frame), np.asarray(whole))


def test_what_frames_refuse(tiny):
    with pytest.raises(diffusion_py.InvalidArgumentError, match="keys"):
        tiny.interpolate(KEYS[:1], 3, **FRAMES)
    with pytest.raises(diffusion_py.InvalidArgumentError, match="frames_per_segment"):
        tiny.interpolate(KEYS, 0, **FRAMES)
    with pytest.raises(diffusion_py.InvalidArgumentError, match="latents"):
        tiny.interpolate(KEYS, 3, latents=np.zeros((1, 4, 8, 8), np.float32))
    with pytest.raises(TypeError, match="zoom"):
        tiny.interpolate(KEYS, 3, zoom=2)
    with pytest.raises(Cancelled):
        tiny.interpolate(KEYS, 3, callback=lambda progress: progress.images.start < 1, **FRAMES)
