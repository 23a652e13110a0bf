"""LoRAs and words that come and go between runs, and under them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import diffusion_py
import numpy as np
import pytest
from conftest import GOLDENS, SD15, tiny_run
from diffusion_py import LoraReport, Pipeline

LORA = GOLDENS / "loras/kohya_a.safetensors"
OTHER_FAMILY = GOLDENS / "loras/sdxl_original_a.safetensors"
WORD = GOLDENS / "embeddings/cat-toy.safetensors"


@pytest.fixture
def tiny():
    return Pipeline.from_pretrained(SD15)


def test_loras_come_and_go(tiny):
    base = tiny_run(tiny)
    assert tiny.loras == []
    tiny.set_loras([(LORA, 0.8)])
    (report,) = tiny.loras
    assert isinstance(report, LoraReport)
    assert "kohya_a" in report.name and report.num_modules > 10 and report.unused == []
    merged = tiny_run(tiny)
    assert np.array_equal(
        merged, tiny_run(Pipeline.from_pretrained(SD15, loras=[(LORA, 0.8)]))
    )
    tiny.set_loras([(LORA, 0.8)], merged=False)
    beside = tiny_run(tiny)
    assert np.abs(beside - merged).max() <= 1e-4 * np.abs(merged).max()
    assert np.abs(beside - base).max() > 1e-2 * np.abs(base).max()
    tiny.clear_loras()
    assert tiny.loras == []
    assert np.array_equal(tiny_run(tiny), base)


def test_less_memory(tiny):
    base = tiny_run(tiny)
    tiny.drop_text_encoders()
    assert np.array_equal(tiny_run(tiny), base)
    with pytest.raises(diffusion_py.UnsupportedError, match="text encoder"):
        tiny_run(tiny, "a circle")
    quantized = tiny_run(Pipeline.from_pretrained(SD15, quantize="int8"))
    assert 0 < np.abs(quantized - base).max() < 0.1 * np.abs(base).max()
    with pytest.raises(diffusion_py.InvalidArgumentError, match="int8"):
        Pipeline.from_pretrained(SD15, quantize="int4")


def test_strengths_of_parts_and_blocks(tiny):
    base = tiny_run(tiny)
    tiny.set_loras([(LORA, 0.8)])
    whole = tiny_run(tiny)
    tiny.set_loras([(LORA, {"unet": 0.8, "text_encoder": 0.8})])
    assert np.array_equal(tiny_run(tiny), whole)
    seen = [whole]
    for strength in [
        {"unet": 0.8, "text_encoder": 0},
        {"unet": 0, "text_encoder": 0.8},
        {"unet": 0.8, "text_encoder": 0.8, "up_blocks": 0.25},
        {},
    ]:
        tiny.set_loras([(LORA, strength)])
        latents = tiny_run(tiny)
        assert all(not np.array_equal(latents, other) for other in seen)
        seen.append(latents)
    tiny.set_loras([(LORA, 1)])
    assert np.array_equal(tiny_run(tiny), seen[-1])
    tiny.set_loras([(LORA, {"unet": 0, "text_encoder": 0.0})])
    assert np.array_equal(tiny_run(tiny), base)
    with pytest.raises(TypeError, match="up_blocks"):
        tiny.set_loras([(LORA, {"up_blocks": "much"})])


def test_what_was_assumed(tiny):
    assert tiny.notes == []


def test_what_is_refused_changes_nothing(tiny, tmp_path):
    tiny.set_loras(LORA)
    before = tiny_run(tiny)
    for loras, error in [
        (OTHER_FAMILY, diffusion_py.InvalidArgumentError),
        ([LORA, OTHER_FAMILY], diffusion_py.InvalidArgumentError),
        ([(LORA, float("nan"))], diffusion_py.InvalidArgumentError),
        (tmp_path / "nowhere.safetensors", diffusion_py.NotFoundError),
        (SD15 / "model_index.json", diffusion_py.FormatError),
        ([(LORA, "much")], TypeError),
    ]:
        with pytest.raises(error):
            tiny.set_loras(loras)
    assert len(tiny.loras) == 1
    assert np.array_equal(tiny_run(tiny), before)


def test_words(tiny):
    before = tiny_run(tiny, "a <cat-toy>")
    assert tiny.add_embedding(WORD) == "<cat-toy>"
    after = tiny_run(tiny, "a <cat-toy>")
    assert not np.array_equal(after, before)
    assert tiny.add_embedding(str(WORD), "<mine>") == "<mine>"
    assert np.array_equal(tiny_run(tiny, "a <mine>"), after)
    with pytest.raises(diffusion_py.InvalidArgumentError, match="<mine>"):
        tiny.add_embedding(WORD, "<mine>")
    with pytest.raises(diffusion_py.NotFoundError):
        tiny.add_embedding("nowhere.pt")


def test_a_run_keeps_what_it_began_with(tiny):
    base = tiny_run(tiny)
    inside = []

    def change(progress):
        if progress.step == 1:
            tiny.set_loras(LORA)
            inside.append(tiny_run(tiny))

    assert np.array_equal(tiny_run(tiny, callback=change), base)
    after = tiny_run(tiny)
    assert np.array_equal(inside[0], after)
    assert not np.array_equal(after, base)


def test_threads_change_what_others_run(tiny):
    known = [tiny_run(tiny)]
    tiny.set_loras(LORA)
    known.append(tiny_run(tiny))
    done = threading.Event()

    def change():
        while not done.is_set():
            tiny.clear_loras()
            tiny.set_loras(LORA)

    def run(_):
        latents = tiny_run(tiny)
        return [np.array_equal(latents, each) for each in known]

    with ThreadPoolExecutor(3) as threads:
        changes = threads.submit(change)
        try:
            found = list(threads.map(run, range(20)))
        finally:
            done.set()
        changes.result()
    assert all(sum(which) == 1 for which in found)
