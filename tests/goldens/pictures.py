"""Pictures in every mode as Pillow writes them, and as diffusers' load_image reads them."""

import struct
import zlib

import numpy as np
import torch
from diffusers.utils import load_image
from PIL import Image, PngImagePlugin

from common import save, save_json

WIDTH, HEIGHT = 37, 22
PARAMETERS = (
    "a cat, {}\nNegative prompt: dog,\nsecond line\nSteps: 20, Sampler: Euler a, Schedule type: Automatic, "
    'CFG scale: 7, Seed: 5, Size: 64x96, Model hash: 1a2b, Model: "v1, 5", RNG: CPU, Version: v1.10.1'
)
LATIN, WIDE = PARAMETERS.format("caf\u00e9"), PARAMETERS.format("\u732b \U0001f408")
ORIENTATION, EXIF, USER_COMMENT = 0x0112, 0x8769, 0x9286


def picture():
    """Smooth colours, edges and some noise."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    rgb = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, 128 + 100 * np.sin(x / 5 + y / 7)], -1)
    rgb[5:12, 8:20] = (250, 30, 60)
    rgb += np.random.default_rng(0).normal(0, 6, rgb.shape)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8), "RGB")


def alpha():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(((x * 7 + y * 11) % 256).astype(np.uint8), "L")


def modes(rgb):
    """Name: the picture, and how it is saved."""
    clear = rgb.copy()
    clear.putalpha(alpha())
    grey_clear = rgb.convert("LA")
    grey_clear.putalpha(alpha())
    palette = rgb.quantize(16)
    see_through = {"transparency": bytes(range(0, 256, 16))}
    deep = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    yield from {
        "rgb.png": (rgb, {}),
        "rgba.png": (clear, {}),
        "grey.png": (rgb.convert("L"), {}),
        "grey_alpha.png": (grey_clear, {}),
        "bits.png": (rgb.convert("1"), {}),
        "palette.png": (palette, {}),
        "palette_alpha.png": (palette, see_through),
        "grey16.png": (Image.fromarray(deep), {}),
        "rgb.jpg": (rgb, {"quality": 92, "subsampling": 0}),
        "subsampled.jpg": (rgb, {"quality": 92}),
        "progressive.jpg": (rgb, {"quality": 92, "subsampling": 0, "progressive": True}),
        "grey.jpg": (rgb.convert("L"), {"quality": 92}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"quality": 98}),
        "lossy.webp": (rgb, {"quality": 90}),
        "lossless.webp": (rgb, {"lossless": True}),
        "alpha.webp": (clear, {"lossless": True, "exact": True}),
        "palette.gif": (palette, {}),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (palette, {}),
        "grey.bmp": (rgb.convert("L"), {}),
        "rgb.tiff": (rgb, {}),
        "lzw.tiff": (rgb, {"compression": "tiff_lzw"}),
        "grey.tiff": (rgb.convert("L"), {}),
        "rgba.tiff": (clear, {}),
    }.items()
    frames = [rgb.rotate(turn).quantize(16) for turn in (90, 180)]
    yield "frames.gif", (palette, {"save_all": True, "append_images": frames, "duration": 70})
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        ending = "png" if turn % 2 else "webp"
        yield f"turned{turn}.{ending}", (rgb, {"exif": exif} | ({} if turn % 2 else {"lossless": True}))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    yield "turned.jpg", (rgb, {"quality": 92, "subsampling": 0, "exif": exif})


def deep_png(rgb):
    """A PNG of 16 bits a colour, which Pillow reads and does not write."""
    levels = (np.asarray(rgb).astype(np.uint16) * 256 + 0x9C).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", *rgb.size, 16, 2, 0, 0, 0)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def comment(text):
    """A user comment as A1111 writes it."""
    exif = Image.Exif()
    exif.get_ifd(EXIF)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif


def texts(rgb):
    """Name: how the picture is saved, and the text in it."""
    for name, text, compressed in [
        ("latin.png", LATIN, False),
        ("wide.png", WIDE, False),
        ("latin_compressed.png", LATIN, True),
        ("wide_compressed.png", WIDE, True),
    ]:
        info = PngImagePlugin.PngInfo()
        if text is WIDE:
            info.add_itxt("parameters", text, zip=compressed)
        else:
            info.add_text("parameters", text, zip=compressed)
        yield name, {"pnginfo": info}, text
    yield "latin.jpg", {"exif": comment(LATIN)}, LATIN
    yield "wide.jpg", {"exif": comment(WIDE)}, WIDE
    yield "wide.webp", {"exif": comment(WIDE)}, WIDE


def make(here, _emoji):
    folder = here / "pictures"
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    rgb = picture()
    golden = {}
    (folder / "rgb16.png").write_bytes(deep_png(rgb))
    for name, (image, options) in modes(rgb):
        image.save(folder / name, **options)
    for path in sorted(folder.glob("*.*")):
        name = path.name
        golden[f"{name}.rgb"] = torch.from_numpy(np.array(load_image(str(path))))
        again = Image.open(path)
        if "transparency" in again.info or "A" in again.getbands():
            golden[f"{name}.alpha"] = torch.from_numpy(np.array(again.convert("RGBA"))[:, :, 3].copy())
    save(here / "pictures.safetensors", golden)
    found = {}
    for name, options, text in texts(rgb.resize((4, 3))):
        rgb.resize((4, 3)).save(folder / "texts" / name, **options)
        found[name] = text
    save_json(here / "pictures.json", found)
