"""Peak memory of one task's meta-gradient against inner steps: conv4-64, 5-way 1-shot, images as large as Omniglot's.

    python benchmarks/memory.py                 # counts what is allocated, and peak resident memory
    python benchmarks/memory.py --steps 5 100   # only these

Each figure is of a process of its own. Two of them: the most bytes that tensors took at once
(metarun/training/memory.py), the same on every run and machine, and how far the peak resident memory rose above what it
was before, which has the allocator's habits in it. Pixels are noise: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

STEPS = (1, 5, 10, 20, 50, 100)
ALGORITHMS = ("maml", "maml, checkpoints", "fomaml", "imaml", "reptile")


def measure(name: str, steps: int, tasks: int, counted: bool) -> float:
    """MB (2^20 bytes) of one meta-gradient of `tasks` tasks together."""
    import resource

    import torch

    from metarun.algorithms.imaml import IMAML
    from metarun.algorithms.losses import CrossEntropy
    from metarun.algorithms.maml import MAML
    from metarun.algorithms.reptile import Reptile
    from metarun.compute.task_axis import map_tasks
    from metarun.models.conv4 import conv4
    from metarun.training.memory import MB, peak_bytes
    from metarun.types import Batch, Task

    torch.set_num_threads(1)
    model = conv4((1, 28, 28), 5, filters=64, norm="batch", pool="stride", readout="mean")
    loop = {"inner_lr": 0.01, "inner_steps": steps, "test_inner_steps": 1}
    learners = {
        "maml": lambda: MAML(model, CrossEntropy(), **loop, first_order=False),
        "maml, checkpoints": lambda: MAML(model, CrossEntropy(), **loop, first_order=False, inner_checkpoint=True),
        "fomaml": lambda: MAML(model, CrossEntropy(), **loop, first_order=True),
        "imaml": lambda: IMAML(model, CrossEntropy(), 2.0, **loop, cg_steps=5, cg_damping=0.0),
        "reptile": lambda: Reptile(model, CrossEntropy(), "adam", **loop, inner_batch=None),
    }
    batch = Batch(torch.rand(tasks, 5, 1, 28, 28), torch.arange(5).repeat(tasks, 1))
    step, params = map_tasks(learners[name]().meta_grad, tasks, None), model.init(0)
    if counted:
        return peak_bytes(step, params, Task(batch, batch)) / MB
    model.apply(params, batch.x[0])  # so that what kernels keep for good is not counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(params, Task(batch, batch))
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / MB


def in_a_process(name: str, steps: int, tasks: int, counted: bool) -> str:
    command = [sys.executable, __file__, "--one", name, str(steps), str(tasks), str(int(counted))]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def table(steps: list[int], tasks: int, counted: bool) -> None:
    print(
        f"| MB {'counted' if counted else 'resident'}, {tasks} task(s); inner steps: | {' | '.join(map(str, steps))} |"
    )
    print("|---" * (len(steps) + 1) + "|")
    for name in ALGORITHMS:
        print(f"| {name} | {' | '.join(in_a_process(name, n, tasks, counted) for n in steps)} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--counted-only", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, steps, tasks, counted = arguments.one
        print(f"{measure(name, int(steps), int(tasks), counted == '1'):.1f}")
        return
    for counted in (True,) if arguments.counted_only else (True, False):
        table(arguments.steps, arguments.tasks, counted)


if __name__ == "__main__":
    main()
