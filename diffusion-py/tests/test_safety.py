"""The safety checker, against diffusers."""

import json

import diffusion_py
import numpy as np
import PIL.Image
import pytest
from conftest import GOLDENS, read_safetensors
from diffusion_py import SafetyChecker

EXPECTED = json.loads((GOLDENS / "safety_checker.json").read_text())


@pytest.fixture(scope="module")
def checker():
    return SafetyChecker.from_pretrained(GOLDENS / "safety_checker")


@pytest.fixture(scope="module")
def golden():
    tensors = read_safetensors(GOLDENS / "safety_checker.safetensors")
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def test_scores_and_flags(checker, golden):
    pictures = [golden[f"{i}.picture"].astype(np.uint8) for i in range(len(EXPECTED))]
    reports = checker.check(pictures)
    flags = [report.is_flagged for report in reports]
    assert flags == [expected["flagged"] for expected in EXPECTED]
    assert True in flags and False in flags
    for i, report in enumerate(reports):
        special = golden[f"{i}.special"]
        raised = 0.01 if (special > 0.0005).any() else 0.0
        excess = golden[f"{i}.excess"] + raised
        # Thousandths, and what f32 rounds otherwise.
        assert np.abs(np.array(report.scores) - excess).max() < 0.00051
        assert report.concepts == [j for j, score in enumerate(report.scores) if score > 0]
        assert (len(report.scores), len(report.special_scores)) == (17, 3)
    assert checker.check([PIL.Image.fromarray(pictures[3])]) == reports[3:4]
    assert checker.check([]) == []


def test_what_is_refused(checker, tmp_path):
    with pytest.raises(diffusion_py.InvalidArgumentError):
        checker.check([np.zeros((0, 5, 3), np.uint8)])
    with pytest.raises(diffusion_py.InvalidArgumentError, match="images"):
        checker.check(np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(diffusion_py.NotFoundError):
        SafetyChecker.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(diffusion_py.WeightsError):
        SafetyChecker.from_pretrained(GOLDENS / "ip_adapters/image_encoder")
