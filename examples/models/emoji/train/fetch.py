"""Fetches the icon sets and the names from their npm packages, each checked by its sha512."""

import base64
import hashlib
import io
import os
import tarfile
import time
import urllib.request

REGISTRY = os.environ.get("EMOJI_NPM_REGISTRY", "https://registry.npmjs.org")

# name: (version, the registry's integrity, the files that are used)
PACKAGES = {
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ("icons.json", "chars.json", "info.json"),
    ),
    "@iconify-json/noto": (
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ("icons.json", "chars.json", "info.json"),
    ),
    "unicode-emoji-json": (
        "0.9.0",
        "HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
        ("data-by-emoji.json",),
    ),
    "emojilib": (
        "4.0.3",
        "KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
        ("dist/emoji-en-US.json",),
    ),
}


def download(url, attempts=4):
    for attempt in range(attempts):
        try:
            with urllib.request.urlopen(url, timeout=120) as answer:
                return answer.read()
        except OSError as error:
            if attempt + 1 == attempts:
                raise SystemExit(f"cannot fetch {url}: {error}") from error
            time.sleep(2**attempt)


def fetch(work, registry=REGISTRY):
    """Puts the packages' files under work/npm/<package>; what is there already is kept."""
    for name, (version, integrity, wanted) in PACKAGES.items():
        folder = work / "npm" / name
        if all((folder / file).exists() for file in wanted):
            continue
        archive = f"{name}/-/{name.rsplit('/', 1)[-1]}-{version}.tgz"
        data = download(f"{registry.rstrip('/')}/{archive}")
        found = base64.b64encode(hashlib.sha512(data).digest()).decode()
        if found != integrity:
            raise SystemExit(f"{name}@{version}: sha512 is {found}, expected {integrity}")
        with tarfile.open(fileobj=io.BytesIO(data)) as files:
            for file in wanted:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files.extractfile(f"package/{file}").read())
        print(f"fetched {name}@{version}", flush=True)
