"""Training speed beside busy programs, as a share of the speed alone: in fresh processes, one after another.

    python -m benchmarks.shared                     # as many busy programs as cores
    python -m benchmarks.shared --busy 1 --only sinusoid

Each line is a run of `metarun` with default settings, and with threads that spin while they wait
(OMP_WAIT_POLICY=ACTIVE, which is close to the default of torch's OpenMP). A busy program is an endless loop in Python,
in a session of its own. The speed is the median of the run's logged tasks a second, without the first record. Other
programs on the machine make the figures wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CONV4 = ["algo=maml", "data=omniglot", "algo.train_ways=null", "algo.zero_head=false", "model.filters=64"]
WORKS = {
    "sinusoid": ["algo=maml", "data=sinusoid", "train.steps=6000", "train.log_every=500"],
    "conv4": [*CONV4, "data.queries=15", "train.tasks=16", "train.steps=12", "train.log_every=2"],
}
SHORT = ["train.eval_every=100000", "val.tasks=2", "test.tasks=2", "test.steps=1", "report=false", "diagnostics=off"]
PATIENCE = 120  # seconds
LOOP = "while True: pass"


def measure(work: str, policy: str | None) -> float:
    """Tasks a second of a run, or of what it did within `PATIENCE`; 0 if it logged less than two records."""
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    variables = {k: v for k, v in os.environ.items() if k not in own}
    variables |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "metarun", *WORKS[work], *SHORT, f"hydra.run.dir={folder}/run"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=variables, check=True, capture_output=True, timeout=PATIENCE)
        timing = Path(folder, "run/timing.jsonl")
        lines = timing.read_text(encoding="utf-8").splitlines() if timing.exists() else []
    rates = [record["tasks_per_second"] for record in map(json.loads, lines) if record["kind"] == "train"]
    return statistics.median(rates[1:]) if len(rates) > 1 else 0.0


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    programs = [subprocess.Popen([sys.executable, "-c", LOOP], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed beside busy programs.")
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="number of busy programs")
    parser.add_argument("--only", nargs="*", choices=WORKS, default=list(WORKS), help="what to train")
    arguments = parser.parse_args()
    print(
        f"{'work':10} {'waiting threads':16} {'alone, tasks/s':>15} {'beside ' + str(arguments.busy):>10} {'share':>7}"
    )
    for work in arguments.only:
        for name, policy in (("default", None), ("spin", "ACTIVE")):
            alone = measure(work, policy)
            with busy_programs(arguments.busy):
                beside = measure(work, policy)
            share = f"{beside / alone:.0%}" if alone else "-"
            print(f"{work:10} {name:16} {alone:15.1f} {beside:10.1f} {share:>7}", flush=True)


if __name__ == "__main__":
    main()
