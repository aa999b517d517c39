"""What data cost: decoding, start-up, sampling as a share of a training step, and memory.

    python benchmarks/data.py                     # 60 000 synthetic JPEGs of 84x84 in 100 classes, as miniImageNet has
    python benchmarks/data.py --root PATH         # your own images, in any layout that data=folder reads

Run it on a machine that does nothing else. Every figure is of this machine and this run; compare ratios, not seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, EACH, SIDE = 100, 600, 84
SETTINGS = ["data=folder", "data.image_size=84", "data.queries=15", "data.test_queries=15", "device.compile=false"]


def synthesise(folder: Path) -> None:
    """Smooth coloured noise: JPEGs of about the size that photographs of these dimensions have."""
    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        place = folder / f"class{c:03d}"
        place.mkdir(parents=True)
        coarse = rng.integers(0, 256, (EACH, 12, 12, 3), dtype=np.uint8)
        for i, pixels in enumerate(coarse):
            Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
                place / f"{i:04d}.jpg", quality=90
            )


def seconds(action: Callable[[], object], repeats: int) -> float:
    """The median time of one call, after a first one that is not counted."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure_decoding(root: str) -> None:
    """In this process, into an empty cache."""
    import metarun
    from metarun.training.experiment import build_dataset

    dataset = build_dataset(metarun.compose([*SETTINGS, f"data.root={root}"]))
    start = time.perf_counter()
    table = dataset.source.table  # type: ignore[attr-defined]
    taken = time.perf_counter() - start
    print(f"decoding: {len(table.images)} images in {taken:.1f} s, {len(table.images) / taken:.0f} a second")


def measure_steps(root: str, algo: str, tasks: int) -> None:
    """Sampling beside the whole of an outer step, 5-way 1-shot with 15 queries a class."""
    import metarun
    from metarun.training.experiment import assemble
    from metarun.training.meta_gradient import build_meta_gradient

    config = metarun.compose([*SETTINGS, f"algo={algo}", f"data.root={root}", f"train.tasks={tasks}"])
    experiment = assemble(config)
    trainer, params = experiment.trainer(), experiment.initial_params()
    meta_gradient = build_meta_gradient(trainer)
    step = iter(range(10**9))

    def sample() -> object:
        return experiment.dataset.episodes("train", 0, next(step), range(tasks), experiment.train_spec)

    sampling = seconds(sample, 50)
    batch = sample()
    learning = seconds(lambda: meta_gradient(params, batch), 5)  # type: ignore[arg-type]
    share = sampling / (sampling + learning)
    print(
        f"{algo}, {tasks} tasks: sampling {1e3 * sampling:.1f} ms ({1 / sampling:.0f} batches a second), "
        f"meta-gradient {1e3 * learning:.0f} ms, sampling is {100 * share:.1f} % of both"
    )


def measure_memory(root: str, steps: int) -> None:
    """Resident memory of a training process once it has drawn so many episodes that every image was touched."""
    import metarun
    from metarun.training.experiment import assemble
    from metarun.training.meta_gradient import build_meta_gradient

    experiment = assemble(metarun.compose([*SETTINGS, "algo=protonet", f"data.root={root}", "train.tasks=4"]))
    meta_gradient = build_meta_gradient(experiment.trainer())
    params = experiment.initial_params()
    for step in range(steps):
        batch = experiment.dataset.episodes("train", 0, step, range(4), experiment.train_spec)
        if step % 100 == 0:
            meta_gradient(params, batch)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    peak, own, mapped = (int(status[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon", "RssFile"))
    print(f"memory after {steps} steps: peak {peak:.0f} MB; at the end {own:.0f} MB own and {mapped:.0f} MB of files")


def measure_start(root: str) -> None:
    """From the start of the process to the first batch of episodes."""
    import metarun
    from metarun.training.experiment import build_dataset
    from metarun.types import EpisodeSpec

    dataset = build_dataset(metarun.compose([*SETTINGS, f"data.root={root}"]))
    dataset.episodes("train", 0, 0, range(4), EpisodeSpec(5, 1, 15))


def in_a_process(name: str, *values: str) -> float:
    """Run one measurement in a process of its own; how long that took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--only", name, *values], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="your own images")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        name, *values = options.only
        globals()[name](*(int(v) if v.isdigit() else v for v in values))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["METARUN_CACHE"] = f"{folder}/cache"
        if not options.root:
            print(f"making {CLASSES * EACH} images ...", flush=True)
            synthesise(Path(folder) / "images")
        root = options.root or f"{folder}/images"
        in_a_process("measure_decoding", root)
        starts = [in_a_process("measure_start", root) for _ in range(5)]
        print(f"start of a process to its first episodes, decoded images in the cache: {np.median(starts):.2f} s")
        in_a_process("measure_memory", root, "1000")
        for algo, tasks in (("protonet", "4"), ("maml", "4")):
            in_a_process("measure_steps", root, algo, tasks)


if __name__ == "__main__":
    main()
