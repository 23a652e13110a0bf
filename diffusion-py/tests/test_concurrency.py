"""Callbacks, cancellation, Ctrl-C, threads and the GIL."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import diffusion_py
import numpy as np
import pytest
from conftest import EMOJI


def test_progress(pipe, short):
    seen = []
    out = pipe.generate(**short, num_images=2, output_type="latent", callback=seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 4] * 2
    assert [p.images for p in seen] == [range(0, 1)] * 4 + [range(1, 2)] * 4
    assert {(p.num_steps, p.num_images) for p in seen} == {(4, 2)}
    assert [p.fraction for p in seen] == [i / 8 for i in range(1, 9)]
    sigmas = [p.sigma for p in seen[:4]]
    assert sigmas == sorted(sigmas, reverse=True)
    last = seen[3]
    assert "step=4" in repr(last)
    assert (last.denoised.dtype, last.denoised.shape) == (np.float32, (1, 4, 16, 16))
    assert last.latents.shape == (1, 4, 16, 16)
    assert np.abs(last.denoised - out.images[:1]).max() < 1e-4


def test_preview_inside_the_callback(pipe, short):
    previews = []
    pipe.generate(**short, callback=lambda p: previews.append(pipe.decode(p.denoised)[0]))
    assert [preview.size for preview in previews] == [(128, 128)] * 4


@pytest.mark.parametrize("kind", [bool, np.bool_])
def test_cancel(pipe, short, kind):
    steps = []

    def stop_at_two(progress):
        steps.append(progress.step)
        return kind(progress.step < 2)

    with pytest.raises(diffusion_py.Cancelled, match="step 2 of 4"):
        pipe.generate(**short, callback=stop_at_two)
    assert steps == [1, 2]
    assert len(pipe.generate(**short).images) == 1


@pytest.mark.parametrize("answer", [None, 0, "", True])
def test_only_false_cancels(pipe, short, answer):
    assert pipe.generate(**short, callback=lambda progress: answer).images


def test_exceptions_come_out(pipe, short):
    class Mine(Exception):
        pass

    mine = Mine("of the callback")

    def fail(progress):
        raise mine

    with pytest.raises(Mine) as caught:
        pipe.generate(**short, callback=fail)
    assert caught.value is mine
    assert pipe.generate(**short).images


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c(pipe, short):
    short["num_inference_steps"] = 1000
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pipe.generate(**short)
    timer.join()
    assert pipe.default_size == (128, 128)


def test_threads_share_a_pipeline(pipe, short):
    def run(seed):
        return pipe.generate(**{**short, "seed": seed}).images[0].tobytes()

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(run, range(4)))
    assert alone == together


def test_gil_is_released(pipe, short):
    short["num_inference_steps"] = 10
    ticks = []
    done = threading.Event()

    def tick():
        while not done.wait(0.005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    pipe.generate(**short)
    end = time.perf_counter()
    done.set()
    thread.join()
    assert sum(start < tick < end for tick in ticks) >= 10


def test_threads_of_its_own(pipe, short):
    expected = np.asarray(pipe.generate(**short).images[0])
    alone = diffusion_py.Pipeline.from_pretrained(EMOJI, num_threads=1)
    assert np.array_equal(np.asarray(alone.generate(**short).images[0]), expected)
    for count in (0, -1, 10**6):
        with pytest.raises(diffusion_py.InvalidArgumentError, match="num_threads"):
            diffusion_py.Pipeline.from_pretrained(EMOJI, num_threads=count)
