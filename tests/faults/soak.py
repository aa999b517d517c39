"""Kill the jobs of a long sweep, and the sweep itself, at random; start it again until it is done.

    python tests/faults/soak.py [JOBS] [SEED]

The sweep has JOBS jobs of two steps, on tiny images that the first one decodes into the cache. A kill (SIGKILL) hits a
job, the sweep, or a process between them; after the end of a sitting the same command is given again. At the end every
job has to have the files of the same job of an undisturbed sweep, byte for byte, and the table that the sweep prints
has to be the same. No process, no temporary file may be left. In the undisturbed sweep neither the cache nor the
sweep's open files may grow from its first half to its second.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.colours import class_folders

TINY = ["train.steps=2", "train.tasks=1", "train.log_every=1", "train.eval_every=2", "train.checkpoint_every=1"]
TINY += ["val.tasks=2", "test.tasks=2", "test.steps=1", "device.compile=false", "device.threads=1", "report=false"]
TINY += ["diagnostics=off", "algo=protonet", "data=folder", "data.image_size=16", "data.ways=3", "data.shots=1"]
TINY += ["data.queries=2", "data.test_queries=2", "model.filters=2"]
SWEPT = "optim.lr=1e-3,1e-2"
PATIENCE = 120.0  # seconds in which the processes of a killed sweep have to end
MARK = "METARUN_SOAK"


class Sweep:
    """A sweep in a folder of its own, sitting after sitting."""

    def __init__(self, place: Path, jobs: int, images: Path) -> None:
        self.place, self.folder, self.cache = place, place / "sweep", place / "cache"
        self.temporary, self.mark = place / "tmp", uuid.uuid4().hex
        seeds = ",".join(map(str, range((jobs + 1) // 2)))
        self.words = ["-m", SWEPT, f"seed={seeds}", *TINY, f"data.root={images}", f"hydra.sweep.dir={self.folder}"]
        self.temporary.mkdir(parents=True)

    def start(self) -> subprocess.Popen[bytes]:
        variables = {**os.environ, MARK: self.mark, "METARUN_CACHE": str(self.cache), "TMPDIR": str(self.temporary)}
        with open(self.place / "output.txt", "wb") as output:  # of the last sitting
            command = [sys.executable, "-m", "metarun", *self.words]
            return subprocess.Popen(command, cwd=self.place, env=variables, stdout=output, stderr=output)

    def processes(self) -> list[int]:
        """All that live, by the variable that they inherit."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lives = (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if lives and f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return sorted(found)

    def wait_until_gone(self) -> list[int]:
        """The processes that are left after `PATIENCE`."""
        end = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        return left

    def completed(self) -> int:
        return sum(json.loads(path.read_text())["status"] == "completed" for path in self.folder.glob("*/job.json"))

    def facts(self) -> dict[str, object]:
        """What has to be the same: the files of each job, and the table."""
        found: dict[str, object] = {}
        for path in sorted(self.folder.glob("*/job.json")):
            files = [(path.parent / name).read_bytes() for name in ("metrics.jsonl", "test.json")]
            found[path.parent.name] = (*files, json.loads(path.read_text())["objective"])
        output = (self.place / "output.txt").read_text().replace(str(self.place), "PLACE")
        found["table"] = re.sub(r"(?m)^(\[|sweep: |.*: \d+ items$).*\n", "", output)
        return found

    def leftovers(self, kills: int = 0) -> list[str]:
        """Files that should not be there. torch has a folder of its own; that of a process's connections (`pymp-`)
        outlives a kill."""
        own, of_killed = self.temporary.glob("torchinductor_*"), sorted(self.temporary.glob("pymp-*"))[:kills]
        expected = [*own, *of_killed]
        found = [path for path in self.temporary.iterdir() if path not in expected]
        found += [path for path in self.folder.rglob("*") if path.name.endswith((".tmp", ".part"))]
        return sorted(str(path.relative_to(self.place)) for path in found)


def open_files(pids: list[int]) -> int:
    """How many open files the processes have that live all the time: the sweep, and the server of its jobs."""
    count = 0
    for pid in pids[:3]:
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/fd"))
    return count


def whole_sweep(sweep: Sweep) -> list[str]:
    """Run it undisturbed; what grew."""
    process, seen = sweep.start(), {}
    while process.poll() is None:
        time.sleep(0.1)
        with contextlib.suppress(OSError, ValueError, KeyError):
            done = sweep.completed()
            cache = sum(path.stat().st_size for path in sweep.cache.rglob("*") if path.is_file())
            files = max(open_files(sweep.processes()), seen.get(done, (0, 0))[1])
            seen[done] = cache, files
    if process.returncode:
        raise RuntimeError((sweep.place / "output.txt").read_text())
    wrong = []
    for number, what in enumerate(("cache", "open files")):
        early, late = (max(v[number] for k, v in seen.items() if k in part) for part in _halves(seen))
        print(f"{what}: {early} in the first half, {late} in the second", flush=True)
        # Files are open for a moment here and there; what is not closed grows with every job.
        if late > early + len(seen) // 4:
            wrong.append(f"{what} grew from {early} to {late}")
    return wrong


def _halves(seen: dict[int, tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The numbers of finished jobs but 0, in two halves."""
    numbers = [k for k in sorted(seen) if k]
    return numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]


def killed_sweep(sweep: Sweep, jobs: int, pause: float, draw: random.Random) -> list[str]:
    """Kill a process `jobs // 2` times, after `pause` seconds on average, until all are done; what was wrong."""
    wrong: list[str] = []
    kills, sittings = {"sweep": 0, "below": 0}, 0
    while True:
        process, sittings = sweep.start(), sittings + 1
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.expovariate(1 / pause))
            living = sweep.processes()
            if process.poll() is None and living and sum(kills.values()) < jobs // 2:
                victim = process.pid if draw.random() < 0.3 else draw.choice(living)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    kills["sweep" if victim == process.pid else "below"] += 1
        if left := sweep.wait_until_gone():
            return [*wrong, f"processes are left after a sitting: {left}"]
        if process.returncode == 0:
            break
        if sum(kills.values()) >= jobs // 2 and sittings > jobs:
            return [*wrong, f"it does not end: {(sweep.place / 'output.txt').read_text()[-2000:]}"]
    print(json.dumps({"kills": kills, "sittings": sittings}), flush=True)
    process = sweep.start()  # there is nothing to do, and the table is that of all jobs
    if process.wait():
        wrong.append("the sweep that is done fails")
    return wrong


def soak(jobs: int, seed: int, place: Path) -> list[str]:
    """What was wrong, a line each."""
    images = class_folders(place / "images", [f"class{i:02d}" for i in range(15)], each=4)
    whole, cut = (Sweep(place / name, jobs, images) for name in ("whole", "cut"))
    began = time.monotonic()
    wrong = whole_sweep(whole)
    pause = 2 * (time.monotonic() - began) / jobs  # some jobs end in between, also on a slow machine
    whole.start().wait()
    wrong += killed_sweep(cut, jobs, pause, random.Random(seed))
    ours, theirs = cut.facts(), whole.facts()
    wrong += [f"{key} differs:\n{ours.get(key)}\n{theirs.get(key)}" for key in theirs if ours.get(key) != theirs[key]]
    wrong += [f"{key} is too much" for key in ours.keys() - theirs.keys()]
    for sweep, kills in ((whole, 0), (cut, jobs // 2)):
        wrong += [f"is left: {sweep.place.name}/{name}" for name in sweep.leftovers(kills)]
        wrong += [f"processes are left: {left}" for left in [sweep.wait_until_gone()] if left]
    print(json.dumps({"jobs": len(theirs) - 1, "seed": seed, "wrong": len(wrong)}), flush=True)
    return wrong


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]] + [60, 0][len(sys.argv) - 1 :]
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(given[0], given[1], Path(temporary))
    sys.exit("\n".join(found) or 0)
