"""Processes that are measured in turn, and pairs of turns in which the machine held its speed.

Nothing large is imported here: a child's peak memory starts at its parent's.
"""

import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from statistics import median

# Idle threads of the last turn spin for a moment.
SETTLE = 0.3


class Unavailable(Exception):
    """A process could not do what was asked; its last words."""


def last_words(stderr, command):
    """The line that names the error, behind which there may be advice."""
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    lines = [line for line in lines if "error" in line.lower()] or lines
    return Unavailable(lines[-1] if lines else f"{command[0]} ended without a word")


class Part:
    """A process that has loaded one part of a model and works once for each line."""

    def __init__(self, command, environment):
        self.command = [str(word) for word in command]
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=environment,
            text=True,
        )

    def load(self):
        """Waits until the model is there and has worked once."""
        self._read()
        self.turn()

    def turn(self):
        """One piece of work: its seconds, the peak memory so far, a sample of its result."""
        # One that has ended is met when its answer is read.
        with suppress(BrokenPipeError):
            print(file=self.process.stdin, flush=True)
        return self._read()

    def close(self):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.stderr.close()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise last_words(self.stderr, self.command)


class WholeRun:
    """A program that is started anew for each turn."""

    def __init__(self, command, steps, environment):
        self.command = [str(word) for word in command]
        self.steps = steps
        self.environment = environment

    def load(self):
        """A run of one step, after which all files are warm."""
        self._run(1)

    def turn(self):
        """The seconds and the peak memory of a run, and what it said."""
        return self._run(self.steps)

    def close(self):
        pass

    def _run(self, steps):
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            start = time.perf_counter()
            process = subprocess.Popen(
                [*self.command, "--steps", str(steps)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=self.environment,
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                raise last_words(stderr, self.command)
            stdout.seek(0)
            said = stdout.read().decode().strip().splitlines()[-1]
        return {"seconds": seconds, "peak_memory": usage.ru_maxrss * 1024, "said": said}


class Calibration:
    """The processor's speed at the moment, by `e2e fma`."""

    def __init__(self, e2e, threads, environment):
        self.process = Part([e2e, "fma", "--threads", threads], environment)

    def gflops(self):
        time.sleep(SETTLE)
        return self.process.turn()["gflops"]

    def close(self):
        self.process.close()


def measure_pairs(calibration, ours, peer, wanted, attempts, tolerance):
    """Up to `wanted` pairs out of `attempts`, between the three calibrations of which lies no more than
    `tolerance`; and how many were dropped."""
    kept, dropped = [], 0
    before = calibration.gflops()
    while len(kept) < wanted and len(kept) + dropped < attempts:
        first = ours.turn()
        between = calibration.gflops()
        second = peer.turn()
        after = calibration.gflops()
        speeds = [before, between, after]
        if max(speeds) <= min(speeds) * (1 + tolerance):
            kept.append({"ours": first, "peer": second, "gflops": speeds})
        else:
            dropped += 1
        before = after
    return kept, dropped


def summary(pairs):
    """Medians of the pairs, and how far the two results are apart, relative to the peer's."""
    middle = {
        side: {
            "seconds": median(pair[side]["seconds"] for pair in pairs),
            "peak_memory": max(pair[side]["peak_memory"] for pair in pairs),
        }
        for side in ("ours", "peer")
    }
    ratio = median(pair["ours"]["seconds"] / pair["peer"]["seconds"] for pair in pairs)
    return middle | {"ratio": ratio, "difference": difference(pairs[0])}


def difference(pair):
    if "sample" not in pair["ours"]:
        return None
    ours, peer = pair["ours"]["sample"], pair["peer"]["sample"]
    squares = sum((a - b) ** 2 for a, b in zip(ours, peer, strict=True))
    return (squares / sum(b**2 for b in peer)) ** 0.5
