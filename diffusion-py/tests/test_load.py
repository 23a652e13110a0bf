"""What a pipeline is loaded from: folders, files, ids of the hub, and parts from elsewhere."""

import json
import shutil

import diffusion_py
import numpy as np
import pytest
from conftest import GOLDENS, SD15, read_safetensors, tiny_run, write_safetensors
from diffusion_py import Pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = GOLDENS / "loras/kohya_a.safetensors"
WORD = GOLDENS / "embeddings/cat-toy.safetensors"
TAESD = [GOLDENS / f"single_files/taesd_{half}.safetensors" for half in ("encoder", "decoder")]


@pytest.fixture(scope="module")
def base():
    return Pipeline.from_pretrained(SD15)


@pytest.fixture
def one_file(tmp_path):
    """The tiny SD 1.5 in one file, with room for CLIP's vocabulary and notes of what is tiny."""
    tensors = read_safetensors(GOLDENS / "single_files/sd1.safetensors")
    (table,) = (name for name in tensors if name.endswith("token_embedding.weight"))
    tensors[table] = np.resize(tensors[table], (49408, tensors[table].shape[1]))
    settings = json.loads((GOLDENS / "single_files/settings.json").read_text())["sd1"]
    notes = {f"{part}.config.json": json.dumps(values) for part, values in settings.items()}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors, notes)
    return path


def test_one_file(one_file):
    for path in [one_file, str(one_file)]:
        pipe = Pipeline.from_pretrained(path)
        hearts = tiny_run(pipe)
        assert np.isfinite(hearts).all()
        assert not np.array_equal(hearts, tiny_run(pipe, "a cat"))
    assert np.array_equal(hearts, tiny_run(pipe))


def test_what_is_no_model(tmp_path):
    with pytest.raises(diffusion_py.NotFoundError, match="kohya_a"):
        Pipeline.from_pretrained(LORA)
    damaged = tmp_path / "model.ckpt"
    damaged.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(diffusion_py.FormatError, match="model.ckpt"):
        Pipeline.from_pretrained(damaged)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with the tiny model in it, and no network."""
    repository = tmp_path / "models--owner--name"
    shutil.copytree(SD15, repository / "snapshots" / COMMIT)
    for name in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("cache")
def test_ids_of_the_hub(base):
    expected = tiny_run(base)
    for revision in (None, "main", "v1", COMMIT):
        pipe = Pipeline.from_pretrained("owner/name", revision=revision)
        assert np.array_equal(tiny_run(pipe), expected)
    for path, revision in [("owner/other", None), ("owner/name", "v2")]:
        with pytest.raises(diffusion_py.NotFoundError, match=path):
            Pipeline.from_pretrained(path, revision=revision)


def test_an_unreachable_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    # Nobody listens there.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(diffusion_py.IoError, match="127.0.0.1"):
        Pipeline.from_pretrained("owner/name")


def test_another_autoencoder(base, tmp_path):
    def decoded(pipe):
        return tiny_run(pipe, output_type="np")

    own = decoded(base)
    whole = shutil.copytree(GOLDENS / "models/sd21", tmp_path / "model")
    swapped = decoded(Pipeline.from_pretrained(SD15, vae=whole))
    assert not np.array_equal(swapped, own)
    assert np.array_equal(decoded(Pipeline.from_pretrained(SD15, vae=[whole / "vae"])), swapped)
    tiny = Pipeline.from_pretrained(SD15, vae=TAESD)
    # This one's latents are a fourth of a picture's side.
    quarter = {"width": 32, "height": 32}
    assert np.array_equal(tiny_run(tiny, **quarter), tiny_run(base))
    assert tiny_run(tiny, **quarter, output_type="np").shape == (1, 32, 32, 3)
    with pytest.raises(diffusion_py.NotFoundError, match="unet"):
        Pipeline.from_pretrained(SD15, vae=whole / "unet")
    with pytest.raises(diffusion_py.WeightsError):
        Pipeline.from_pretrained(SD15, vae=TAESD[1])


def test_loras(base):
    def run(loras):
        return tiny_run(Pipeline.from_pretrained(SD15, loras=loras))

    whole = run(LORA)
    assert not np.array_equal(whole, tiny_run(base))
    assert np.array_equal(whole, run([str(LORA)]))
    assert np.array_equal(whole, run([(LORA, 1)]))
    assert not np.array_equal(whole, run([(LORA, 0.5)]))
    assert np.abs(whole - run([(LORA, 0.5), (LORA, 0.5)])).max() <= 1e-4 * np.abs(whole).max()
    assert np.array_equal(run([]), tiny_run(base))


def test_embeddings():
    pipe = Pipeline.from_pretrained(SD15, embeddings=WORD)
    named = Pipeline.from_pretrained(SD15, embeddings=[(WORD, "<mine>")])
    assert np.array_equal(tiny_run(pipe, "a <cat-toy>"), tiny_run(named, "a <mine>"))
    assert not np.array_equal(tiny_run(pipe, "a <cat-toy>"), tiny_run(named, "a <cat-toy>"))


@pytest.mark.parametrize("name", ["loras", "embeddings", "vae"])
def test_missing_parts(name, tmp_path):
    for values in [tmp_path / "nowhere.pt", [tmp_path / "nowhere.pt"]]:
        with pytest.raises(diffusion_py.NotFoundError, match="nowhere"):
            Pipeline.from_pretrained(SD15, **{name: values})
    for values in [5, [5], [(0.5, LORA)]]:
        with pytest.raises(TypeError):
            Pipeline.from_pretrained(SD15, **{name: values})


def test_parts_of_another_family():
    for name, path in [
        ("loras", GOLDENS / "loras/sdxl_original_a.safetensors"),
        ("embeddings", GOLDENS / "sdxl/wheel.safetensors"),
    ]:
        with pytest.raises(diffusion_py.InvalidArgumentError):
            Pipeline.from_pretrained(SD15, **{name: path})
