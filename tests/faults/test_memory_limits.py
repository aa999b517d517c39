"""A machine without enough memory, and what a long run holds on to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY

import metarun
from metarun.jobs.train import suggest_less_memory
from metarun.training.experiment import assemble
from metarun.training.memory import is_out_of_memory

LIMITED = """
import resource, sys
from pathlib import Path
import metarun.jobs.train, metarun.storage.loggers.console
from metarun.cli.main import main
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + {more} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""

GROWTH = """
import sys
from pathlib import Path
import metarun
from metarun.training.recorder import Recorder
kept, on_step = {}, Recorder.on_step
def count_memory(self, state):
    on_step(self, state)
    if state.step in (2000, 10000):
        kept[state.step] = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
Recorder.on_step = count_memory
metarun.run(metarun.compose(sys.argv[2:]), sys.argv[1])
print(kept[2000], kept[10000])
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_out_of_memory_is_one_line_with_the_setting_that_needs_less(tmp_path: Path) -> None:
    large = ["train.tasks=4096", "data.queries=500", "device.chunk_size=null", f"hydra.run.dir={tmp_path}/run"]
    command = [sys.executable, "-c", LIMITED.format(more=1500), *TINY, *large]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "metarun: out of memory with 4096 tasks at once: device.chunk_size=2048 takes half of it, "
        "device.memory_mb=NUMBER as many tasks as fit; the run stopped at step 0, before its first checkpoint\n"
    )
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"
    enough = [o for o in large if "chunk_size" not in o and "run.dir" not in o]
    fits = [*TINY, *enough, "device.chunk_size=32", "train.steps=1", "val.tasks=1", f"hydra.run.dir={tmp_path}/fits"]
    done = subprocess.run([sys.executable, "-c", LIMITED.format(more=1500), *fits], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_one_task_at_once_is_told_of_other_settings() -> None:
    told = suggest_less_memory(assemble(metarun.compose([*TINY, "device.chunk_size=1"])))
    assert told.startswith("out of memory with one task at once: algo.inner_checkpoint=1 or a lower data.queries")


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_does_not_grow_over_ten_thousand_steps(tmp_path: Path) -> None:
    """From step 2000 on: what is compiled, cached and fragmented at the start is none of it."""
    steps = ["train.steps=10000", "train.log_every=10", "train.eval_every=1000", "train.checkpoint_every=1000"]
    few = ["train.tasks=4", "val.tasks=10", "test.tasks=5", "report=false", "device.compile=false", "device.threads=1"]
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "run"), *steps, *few]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    before, after = (float(x) for x in done.stdout.split()[-2:])
    print(f"{before:.1f} MB after 2000 steps, {after:.1f} MB after 10000")
    assert after - before < 10
