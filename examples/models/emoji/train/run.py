"""Makes the emoji model: fetches, renders and encodes the icons, trains for a budget and exports a diffusers folder.

    python examples/models/emoji/train/run.py --minutes 10

Every part is kept in the working folder, so that the same command goes on where it stopped; more --minutes than
were worked before continue the training. A machine without a network needs only emoji.safetensors there (--prepare
makes it elsewhere).
"""

import argparse
from pathlib import Path

import torch

from dataset import hush, load
from export import curve, export
from train import Training

HERE = Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="time to train in all, earlier runs included")
    parser.add_argument("--work", type=Path, default=Path("emoji-work"), help="where everything is kept")
    parser.add_argument("--out", type=Path, help="the exported folder (default: export in the working folder)")
    parser.add_argument("--base", type=Path, default=HERE.parent, help="the diffusers folder to start from")
    parser.add_argument("--fresh", action="store_true", help="start from new weights instead of the base folder's")
    parser.add_argument("--prepare", action="store_true", help="write emoji.safetensors and end")
    parser.add_argument("--icons", type=int, help="only the first so many of each style, to try the scripts out")
    parser.add_argument("--registry", help="npm registry (default: EMOJI_NPM_REGISTRY or the public one)")
    parser.add_argument("--styles", nargs="+", default=["flat", "noto"], help="the styles to train on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--batch", type=int, help="pictures a step (default: 64, on a GPU 1,024)")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="learning rate")
    parser.add_argument("--probe", type=float, help="minutes between two probes (default: 20, on a GPU 2)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    cuda = chosen.device.startswith("cuda")
    chosen.batch = chosen.batch or (1024 if cuda else 64)
    chosen.probe = chosen.probe or (2 if cuda else 20)
    chosen.out = chosen.out or chosen.work / "export"
    return chosen


def prepare(chosen):
    """The prepared file, made where it is missing."""
    path = chosen.work / "emoji.safetensors"
    if not path.exists():
        # Only here, because a machine that is handed the file needs neither a network nor resvg.
        from dataset import prepare
        from fetch import REGISTRY, fetch
        from render import render

        fetch(chosen.work, chosen.registry or REGISTRY)
        render(chosen.work, chosen.icons)
        prepare(chosen.work, chosen.base)
    return path


def main():
    chosen = arguments()
    hush()
    chosen.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(chosen.threads)
    path = prepare(chosen)
    if chosen.prepare:
        return
    training = Training(chosen.base, chosen.work, *load(path), chosen)
    training.run()
    with training.averaged() as (text, unet):
        export(text, unet, chosen.base, chosen.out)
    curve(training.curve, chosen.out / "training.json")


if __name__ == "__main__":
    main()
