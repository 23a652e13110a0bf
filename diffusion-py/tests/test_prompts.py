"""Prompts with weights and schedules, and embeddings in place of prompts."""

import json

import diffusion_py
import numpy as np
import pytest
from conftest import GOLDENS, SD15, read_safetensors
from diffusion_py import Pipeline


@pytest.fixture(scope="module")
def tiny():
    return Pipeline.from_pretrained(SD15)


def run(pipe, *prompts, **arguments):
    arguments = {"num_inference_steps": 2, "seed": 3, "output_type": "latent"} | arguments
    return pipe.generate(*prompts, **arguments).images


def test_runs_of_schedules_and_compositions(tiny):
    golden = read_safetensors(GOLDENS / "prompts_a1111.safetensors")
    for i, case in enumerate(json.loads((GOLDENS / "prompts_runs.json").read_text())):
        latents = run(tiny, **case, scheduler="euler", num_inference_steps=6)
        expected = golden[f"run.{i}"]
        assert np.abs(latents - expected).max() <= 1e-3 * np.abs(expected).max(), case


def test_syntaxes(tiny):
    assert (run(tiny, "(a cat:1.4)") == run(tiny, "(a cat:1.4)", prompt_syntax="a1111")).all()
    readings = [run(tiny, "(a cat)1.4", prompt_syntax=name) for name in ("plain", "a1111", "compel")]
    assert not (readings[0] == readings[1]).all()
    assert not (readings[1] == readings[2]).all()
    with pytest.raises(diffusion_py.InvalidArgumentError, match="plain, a1111 or compel"):
        run(tiny, "a cat", prompt_syntax="latin")


def test_clip_skip(tiny):
    assert (run(tiny, "a cat") == run(tiny, "a cat", clip_skip=1)).all()
    assert not (run(tiny, "a cat") == run(tiny, "a cat", clip_skip=2)).all()
    with pytest.raises(diffusion_py.InvalidArgumentError, match="clip_skip"):
        run(tiny, "a cat", clip_skip=0)


def test_embeddings_in_place_of_prompts(tiny):
    golden = read_safetensors(GOLDENS / "prompts_a1111.safetensors")
    cases = json.loads((GOLDENS / "prompts_a1111.json").read_text())
    for i in (1, 21):
        embeds = golden[f"{i}.0.embeds"]
        expected = run(tiny, cases[i]["prompt"], "blue")
        found = run(tiny, negative_prompt="blue", prompt_embeds=embeds)
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
        expected = run(tiny, "blue", cases[i]["prompt"])
        found = run(tiny, "blue", negative_prompt_embeds=embeds)
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    for wrong in (embeds[0], embeds[:, :, :5], np.zeros((3, 77, 32), "float32")):
        with pytest.raises(diffusion_py.InvalidArgumentError):
            run(tiny, prompt_embeds=wrong)
    with pytest.raises(diffusion_py.InvalidArgumentError, match="pooled_prompt_embeds"):
        run(tiny, pooled_prompt_embeds=embeds)
