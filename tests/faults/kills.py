"""Kill runs at random moments, go on, and compare with runs that nobody killed.

    python tests/faults/kills.py [CASES] [SEED]

A case is one algorithm. Its run is killed (SIGKILL) up to four times: at a moment of the clock, or at the n-th time
that it opens, renames or removes a file, which is how a checkpoint, a cache or a report is hit in the middle. Then it
goes on as a user would: `resume=FOLDER`, or the command typed again where the kill came before there was a folder. At
the end metrics.jsonl and test.json have to be the same bytes, and both checkpoints the same tensors. Prints a line a
case.

Runs are forks of this process, so that a case takes two seconds and kills fall into the run and not into imports.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch._inductor
from helpers.colours import class_folders

from metarun.cli.main import main as command_line
from metarun.jobs import train
from metarun.report.page import render as page
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint

IMPORTED = (page, train, torch._inductor)  # once, for all forks

COMMON = [
    "train.steps=40",
    "train.tasks=2",
    "train.log_every=1",
    "train.eval_every=4",
    "train.checkpoint_every=3",
    "val.tasks=2",
    "test.tasks=3",
    "test.steps=2",
    "device.compile=false",
    "device.threads=1",
]
IMAGES = ["data=folder", "data.image_size=16", "data.ways=3", "data.queries=2", "data.test_queries=2"]
IMAGES += ["model.filters=4"]
ALGORITHMS = {
    "maml": [],
    "fomaml": [],
    "reptile": [],
    "imaml": [],
    "protonet": [*IMAGES, "data.normalize=centred"],
    "matchingnet": IMAGES,
}
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")
MOST_KILLS = 4


@dataclass(frozen=True)
class Kill:
    """After so many seconds, or at the so many-th file operation."""

    seconds: float | None = None
    operation: int | None = None

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s" if self.operation is None else f"file operation {self.operation}"


@dataclass(frozen=True)
class Whole:
    """The run that nobody killed."""

    facts: dict[str, object]
    seconds: float
    operations: int


def settings(algorithm: str, place: Path, folder: Path) -> list[str]:
    root = [f"data.root={place / 'images'}"] if ALGORITHMS[algorithm] else []
    return [f"algo={algorithm}", *COMMON, *ALGORITHMS[algorithm], *root, f"hydra.run.dir={folder}"]


def run(arguments: Sequence[str], place: Path, cache: Path, kill: Kill | None = None) -> int:
    """The command in a process of its own; its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        _become(arguments, place, cache, kill)
    if kill and kill.seconds is not None:
        end = time.monotonic() + kill.seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(arguments: Sequence[str], place: Path, cache: Path, kill: Kill | None) -> None:
    """The metarun command, in this process."""
    os.chdir(place)
    output = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["METARUN_CACHE"] = str(cache)
    counted = _count_operations(str(place), kill.operation if kill else None)
    sys.argv = ["metarun", *arguments]
    code = 0
    try:
        command_line()
    except SystemExit as error:
        code = int(error.code or 0)
    (place / "operations.txt").write_text(str(counted[0]))
    sys.stdout.flush()
    os._exit(code)


def _count_operations(place: str, last: int | None) -> list[int]:
    """Counts what changes files below `place`; dies at the operation of number `last`, just before it is done."""
    counted = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event not in EVENTS or not str(arguments[0]).startswith(place):
            return
        if event == "open" and (arguments[1] or "r").startswith("r"):
            return
        counted[0] += 1
        if counted[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return counted


def facts(folder: Path) -> dict[str, object]:
    """What has to be the same."""
    record = RunFolder(folder)
    summary = record.read_summary()
    kept = {name: checkpoint.load(path) for name, path in (("last", record.last), ("best", record.best))}
    found: dict[str, object] = {k: (folder / k).read_bytes() for k in ("metrics.jsonl", "test.json")}
    found |= {k: checkpoint.digest([s["params"], s["optimizer"], s["step"]]) for k, s in kept.items()}
    return found | {k: summary.get(k) for k in ("status", "params_sha256", "mean", "best_step", "steps_done", "alarms")}


def whole_run(algorithm: str, place: Path) -> Whole:
    folder = place / "whole"
    start = time.monotonic()
    code = run(settings(algorithm, place, folder), place, place / "whole-cache")
    if code != 0:
        raise RuntimeError((place / "output.txt").read_text())
    return Whole(facts(folder), time.monotonic() - start, int((place / "operations.txt").read_text()))


def killed_run(algorithm: str, place: Path, whole: Whole, draw: random.Random) -> tuple[list[str], list[str]]:
    """The kills of one case, and what was wrong in the end."""
    name = f"cut-{draw.getrandbits(32):08x}"
    folder, cache, kills = place / name, place / f"{name}-cache", []
    typed = settings(algorithm, place, folder)
    arguments = typed
    for _ in range(draw.randint(1, MOST_KILLS)):
        by_clock = draw.random() < 0.5
        kill = (
            Kill(seconds=draw.uniform(0, whole.seconds)) if by_clock else Kill(None, draw.randint(1, whole.operations))
        )
        code = run(arguments, place, cache, kill)
        arguments = [f"resume={folder}"] if (folder / "config.yaml").exists() else typed
        kills.append(f"{kill}{'' if code == -signal.SIGKILL else f' (ended before: {code})'}")
        if code not in (0, -signal.SIGKILL):
            return kills, [f"exit code {code}: {last_line(place)}"]
        if code == 0:
            break
    for _ in range(2):  # the second time there is nothing to do
        code = run(arguments, place, cache)
        arguments = [f"resume={folder}"]
        if code != 0:
            return kills, [f"exit code {code}: {last_line(place)}"]
    found = facts(folder)
    return kills, [key for key in whole.facts if found[key] != whole.facts[key]]


def last_line(place: Path) -> str:
    lines = (place / "output.txt").read_text(errors="replace").splitlines()
    return lines[-1] if lines else ""


def cases(count: int, seed: int, place: Path, algorithms: Sequence[str] = tuple(ALGORITHMS)) -> list[str]:
    """Do so many cases, the algorithms in turn; what went wrong, a line each."""
    torch.set_num_threads(1)
    draw, wholes, wrong = random.Random(seed), {}, []
    kinds: collections.Counter[str] = collections.Counter()
    for number in range(count):
        algorithm = algorithms[number % len(algorithms)]
        own = place / algorithm
        if algorithm not in wholes:
            own.mkdir(parents=True)
            class_folders(own / "images", [f"class{i:02d}" for i in range(15)], each=5)
            wholes[algorithm] = whole_run(algorithm, own)
        kills, different = killed_run(algorithm, own, wholes[algorithm], draw)
        kinds.update("clock" if " s" in kill else "file operation" for kill in kills if "ended" not in kill)
        line = f"{number + 1} {algorithm}: killed at {', '.join(kills)}: {', '.join(different) or 'same bits'}"
        print(line, flush=True)
        wrong += [line] if different else []
    print(json.dumps({"cases": count, "wrong": len(wrong), "seed": seed, "kills": dict(kinds)}))
    return wrong


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]] + [60, 0][len(sys.argv) - 1 :]
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(bool(cases(given[0], given[1], Path(temporary))))
