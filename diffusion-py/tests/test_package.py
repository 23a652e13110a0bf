"""The package itself: what an import costs, and what is missing without the optional packages."""

import dataclasses
import re
import subprocess
import sys

import diffusion_py
import pytest
from conftest import EMOJI, ROOT


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_import_is_lazy():
    python(
        "import sys, diffusion_py\n"
        "assert not {'numpy', 'PIL', 'diffusers', 'torch'} & set(sys.modules)"
    )


def test_import_is_quick():
    code = (
        "import time; start = time.perf_counter(); import diffusion_py; "
        "print(time.perf_counter() - start)"
    )
    assert min(float(python(code)) for _ in range(5)) < 0.2


@pytest.mark.parametrize(
    ("module", "output_type", "extra"), [("PIL", "pil", "pil"), ("numpy", "np", "numpy")]
)
def test_missing_packages_are_told_before_the_run(module, output_type, extra):
    message = python(
        "import sys\n"
        "module, output_type, model = sys.argv[1:]\n"
        "sys.modules[module] = None\n"
        "import diffusion_py\n"
        "pipe = diffusion_py.Pipeline.from_pretrained(model)\n"
        "def called(progress): raise AssertionError('it ran')\n"
        "try:\n"
        "    pipe.generate('', output_type=output_type, callback=called)\n"
        "except ImportError as error: print(error)",
        module,
        output_type,
        EMOJI,
    )
    assert f"pip install 'diffusion-py[{extra}]'" in message


def test_pictures_without_numpy():
    python(
        "import sys; sys.modules['numpy'] = None\n"
        "import diffusion_py\n"
        "pipe = diffusion_py.Pipeline.from_pretrained(sys.argv[1])\n"
        "pipe.generate('', num_inference_steps=1).images[0].load()",
        EMOJI,
    )


def test_version_is_the_workspaces():
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert diffusion_py.__version__ == version[1]


def test_everything_public_has_a_docstring():
    for name in diffusion_py.__all__:
        value = getattr(diffusion_py, name)
        if isinstance(value, str):
            continue
        assert value.__doc__, name
        for attribute, member in vars(value).items() if isinstance(value, type) else ():
            if not attribute.startswith("_"):
                assert member.__doc__ or dataclasses.is_dataclass(value), f"{name}.{attribute}"


def test_example(tmp_path):
    example = ROOT / "examples/python/txt2img.py"
    command = [
        sys.executable,
        example,
        "a red heart, flat style",
        "--steps",
        "2",
        "-o",
        "heart.png",
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / "heart.png").read_bytes().startswith(b"\x89PNG")
