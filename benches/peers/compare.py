"""Ours against PyTorch and OpenVINO on the CPU: a model of Stable Diffusion 1.5's size, in interleaved pairs.

Needs the packages of requirements.txt and `cargo build --release -p diffusion-benches --bin e2e`. The first start
makes the model: 6 GiB in the cache, and as much again for OpenVINO.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from measure import Calibration, Part, Unavailable, WholeRun, measure_pairs, summary

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PROMPT = "a red heart, flat style"


@dataclass(frozen=True)
class Row:
    work: str
    dtype: str
    peer: str
    peer_dtype: str
    # What the ratio of the times, and our peak memory in GB, shall be at most.
    goal: float | None = None
    memory_goal: float | None = None

    def __str__(self):
        return f"{self.work} {self.dtype} / {self.peer} {self.peer_dtype}"


ROWS = [
    Row("unet", "f32", "torch", "f32", 0.75),
    Row("unet", "f32", "openvino", "f32", 0.95),
    Row("unet", "bf16", "torch", "bf16", 0.75),
    Row("unet", "bf16", "openvino", "bf16", 1.0),
    # Where the processor has no bf16, PyTorch's fastest is f32.
    Row("unet", "bf16", "torch", "f32"),
    Row("unet", "int8", "ours", "bf16", 0.75),
    Row("vae", "f32", "torch", "f32", 0.5),
    Row("vae", "f32", "openvino", "f32"),
    Row("vae", "bf16", "torch", "bf16", 0.6),
    Row("vae", "bf16", "openvino", "bf16"),
    Row("run", "f32", "diffusers", "f32", None, 5.0),
    Row("run", "bf16", "diffusers", "bf16", 0.7, 2.6),
    Row("run", "bf16", "diffusers", "f32", 0.7, 2.6),
    Row("run", "int8", "diffusers", "f32", None, 1.8),
    Row("run", "int8", "diffusers", "bf16", None, 1.8),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "diffusion-peers"
    )
    parser.add_argument("--e2e", type=Path, default=REPOSITORY / "target/release/e2e")
    parser.add_argument("--only", default="", help="rows whose name has this, such as 'unet f32'")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each row")
    parser.add_argument("--run-pairs", type=int, default=3, help="pairs of whole runs")
    parser.add_argument("--attempts", type=int, default=3, help="tries for each pair")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of the calibration")
    parser.add_argument("--steps", type=int, default=20, help="of whole runs")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where all pairs go")
    return parser.parse_args()


def side(args, row, program, dtype, environment):
    """What one side of a row runs."""
    # int8 is made of bf16 when it is loaded.
    model = args.cache / ("f32" if dtype == "f32" else "bf16")
    held = ["--dtype", "bf16", "--quantize", "int8"] if dtype == "int8" else ["--dtype", dtype]
    given = ["--model", model, *held, "--size", args.size]
    if row.work == "run":
        command = {
            "ours": [args.e2e, "run", "--prompt", PROMPT, "--drop-text-encoders"],
            "diffusers": [sys.executable, HERE / "diffusers_txt2img.py", PROMPT, "--channels-last"],
        }[program]
        guidance = ["--guidance", "7.5", "--output", args.cache / f"{program}-{dtype}.png"]
        return WholeRun([*command, *given, *guidance], args.steps, environment)
    command = {
        "ours": [args.e2e],
        "torch": [sys.executable, HERE / "torch_worker.py"],
        "openvino": [sys.executable, HERE / "openvino_worker.py"],
    }[program]
    # Guidance asks the UNet twice.
    batch = {"unet": 2, "vae": 1}[row.work]
    return Part([*command, row.work, *given, "--batch", batch], environment)


def measure(args, row, calibration, environment):
    wanted = args.run_pairs if row.work == "run" else args.pairs
    with ExitStack() as stack:
        both = []
        # One after the other, so that none is measured while another still loads.
        for program, dtype in (("ours", row.dtype), (row.peer, row.peer_dtype)):
            process = stack.enter_context(closing(side(args, row, program, dtype, environment)))
            process.load()
            both.append(process)
        pairs, dropped = measure_pairs(
            calibration, *both, wanted, wanted * args.attempts, args.tolerance
        )
    found = {"pairs": pairs, "dropped": dropped}
    return found | summary(pairs) if pairs else found | {"missing": "the speed never held still"}


def line(row, found):
    if "missing" in found:
        return f"| {row} | not measured: {found['missing']} |"
    ours, peer = found["ours"], found["peer"]
    goal = "" if row.goal is None else row.goal
    memory_goal = "" if row.memory_goal is None else f" (at most {row.memory_goal})"
    apart = "" if found["difference"] is None else f"{found['difference']:.0e}"
    return (
        f"| {row} | {found['ratio']:.2f} | {goal} | {ours['seconds']:.2f} s | {peer['seconds']:.2f} s "
        f"| {ours['peak_memory'] / 1e9:.2f} GB{memory_goal} | {peer['peak_memory'] / 1e9:.2f} GB "
        f"| {apart} | {len(found['pairs'])} of {len(found['pairs']) + found['dropped']} |"
    )


def machine(args):
    """What figures depend on."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    facts = dict(line.split(":", 1) for line in cpu if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    packages = {}
    for name in ("torch", "diffusers", "openvino"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "processor": facts.get("model name"),
        "features": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"}),
        "threads": args.threads,
        "size": args.size,
        "packages": packages,
    }


def main():
    args = arguments()
    rows = [row for row in ROWS if args.only in str(row)]
    if args.list:
        return print(*rows, sep="\n")
    args.cache.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, HERE / "models.py", args.cache], check=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "RAYON_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
    }
    report = {"machine": machine(args), "rows": {}}
    print(json.dumps(report["machine"]))
    print("| ours / peer | ratio | at most | ours | peer | peak memory, ours | peer | apart | pairs |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with closing(Calibration(args.e2e, args.threads, environment)) as calibration:
        for row in rows:
            try:
                found = measure(args, row, calibration, environment)
            except Unavailable as reason:
                found = {"missing": str(reason)}
            print(line(row, found), flush=True)
            report["rows"][str(row)] = found
            if args.json:
                args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
