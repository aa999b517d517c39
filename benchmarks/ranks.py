"""Tasks per second of training in one process and in several: python benchmarks/ranks.py [CASE ...]

Each line is the best of a few runs, taken in turns: what else runs on the machine only ever takes time. Records while
training give the rate (timing.jsonl), so that starting, validation and test are not in it. METARUN_DATA=PATH for
Omniglot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPEATS = 2
PLAIN = ["val.tasks=2", "test.tasks=2", "test.steps=1", "report=false", "diagnostics=off", "device.compile=off"]
SINUSOID = ["algo=maml", "train.steps=1500", "train.log_every=250", "train.eval_every=1500"]
OMNIGLOT = ["algo=maml", "data=omniglot", "train.steps=6", "train.log_every=2", "train.eval_every=6"]
CASES = {
    "sinusoid, 4 tasks": [*SINUSOID, "train.tasks=4"],
    "sinusoid, 64 tasks": [*SINUSOID, "train.tasks=64"],
    "omniglot, 32 tasks": [*OMNIGLOT, "train.tasks=32", "data.queries=1"],
}
WAYS = ((1, 1), (1, 2), (2, 1))  # processes, threads of each
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def rate(case: list[str], processes: int, threads: int) -> float:
    """Tasks per second of one run; of its records the first has the start in it, the last the end."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable] if processes == 1 else [*TORCHRUN, f"--nproc-per-node={processes}"]
        typed = [*case, *PLAIN, f"device.threads={threads}", f"hydra.run.dir={folder}/run"]
        subprocess.run([*launcher, "-m", "metarun", *typed], check=True, capture_output=True)
        lines = Path(folder, "run/timing.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return max(r["tasks_per_second"] for r in records if r["kind"] == "train" and "tasks_per_second" in r)


def main() -> None:
    chosen = sys.argv[1:] or list(CASES)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name in chosen:
        found: dict[tuple[int, int], float] = {}
        for _ in range(REPEATS):
            for way in WAYS:
                found[way] = max(found.get(way, 0.0), rate(CASES[name], *way))
        cells = "   ".join(f"{p} x {t} threads: {found[p, t]:.0f}" for p, t in WAYS)
        print(f"{name}   {cells}", flush=True)


if __name__ == "__main__":
    main()
