"""Renders the icons with resvg: RGBA pictures of 128 x 128 and what they show."""

import io
import json
import re

import numpy
import resvg_py
from PIL import Image

SIZE = 128
STYLES = {"flat": "@iconify-json/fluent-emoji-flat", "noto": "@iconify-json/noto"}
GROUPS = {
    "Smileys & Emotion",
    "Animals & Nature",
    "Food & Drink",
    "Activities",
    "Objects",
    "Travel & Places",
}
# Of the symbols only those that can be drawn from their name; the others are letters and signs in boxes.
SYMBOLS = re.compile(
    "heart|circle|square|diamond|triangle|star|arrow|spade|club|recycling|radioactive|biohazard|peace|yin yang|"
    "musical|check|cross mark|question|exclamation|infinity|dollar|plus|minus|warning|no entry|wheel|aries|taurus|"
    "fleur|trident|battery"
)
WORDS = re.compile("[a-z_ ]{3,24}")


def without_selectors(text):
    return text.replace("\ufe0f", "")


def described(work):
    """What each emoji that is drawn shows: its name, group and keywords, by its characters."""
    names = json.loads((work / "npm/unicode-emoji-json/data-by-emoji.json").read_text())
    keywords = json.loads((work / "npm/emojilib/dist/emoji-en-US.json").read_text())
    found = {}
    for emoji, entry in names.items():
        symbol = entry["group"] == "Symbols" and SYMBOLS.search(entry["name"])
        if entry["skin_tone_support"] or not (entry["group"] in GROUPS or symbol):
            continue
        name = entry["name"].lower()
        words = [word.replace("_", " ") for word in keywords.get(emoji, []) if WORDS.fullmatch(word)]
        found[without_selectors(emoji)] = {
            "name": name,
            "group": entry["group"],
            "keywords": [word for word in words if word != name],
        }
    return found


def svg(icons, icon):
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )


def picture(text):
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=SIZE, height=SIZE))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    whole = Image.new("RGBA", (SIZE, SIZE))
    whole.paste(drawn, ((SIZE - drawn.width) // 2, (SIZE - drawn.height) // 2))
    return numpy.asarray(whole)


def render(work, limit=None):
    """Writes work/pictures.npy, [n, 128, 128, 4] in 8 bits, and work/icons.json in the same order; of each style
    all icons or the first so many."""
    if (work / "icons.json").exists():
        return
    shown = described(work)
    pictures, listed = [], []
    for style, package in STYLES.items():
        icons = json.loads((work / "npm" / package / "icons.json").read_text())
        characters = json.loads((work / "npm" / package / "chars.json").read_text())
        seen = set()
        for codes, key in characters.items():
            emoji = without_selectors("".join(chr(int(code, 16)) for code in codes.split("-")))
            if key in seen or emoji not in shown or key not in icons["icons"]:
                continue
            if len(seen) == limit:
                break
            seen.add(key)
            pictures.append(picture(svg(icons, icons["icons"][key])))
            listed.append({"style": style, **shown[emoji]})
        print(f"rendered {len(seen)} icons of the {style} style", flush=True)
    numpy.save(work / "pictures.npy", numpy.stack(pictures))
    # Last, because it says that all is there.
    (work / "icons.json").write_text(json.dumps(listed, indent=0))
