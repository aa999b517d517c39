"""Images a second and peak memory of ProtoNet's training with each network, beside a plain loop in torch.

    python -m benchmarks.networks                              # the large networks, 5-way 5-shot, 84x84 pixels
    python -m benchmarks.networks --quick                      # small widths and 32x32 pixels: whether it runs
    python -m benchmarks.networks --only resnet12 wrn28_10 --queries 15 --device cuda

Both sides are in one process and take turns. They have the same module, first weights, pixels (noise: neither time nor
memory depends on them) and optimizer; their losses before the first step are compared in float32. The plain loop is the
module in training mode, `backward` for one task after another, and `torch.optim.Adam`. Memory is on a GPU what torch
allocated at most, else the most bytes that tensors took at once (metarun/training/memory.py), the same on each machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun import compose
from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.protonet import ProtoNet
from metarun.compute.device import make_placement
from metarun.compute.task_axis import map_tasks
from metarun.config.components import build
from metarun.training.memory import MB, peak_bytes
from metarun.training.optimizer import apply_update, build_optimizer
from metarun.types import Batch, EpisodeSpec, Task

NETWORKS = ("resnet12", "resnet10", "resnet18", "wrn28_10", "vit_small")
QUICK = {
    "resnet12": ("model.widths=[8,8,16,16]",),
    "vit_small": ("model.width=32", "model.depth=2", "model.heads=2", "model.hidden=64"),
}
WAYS, SHOTS = 5, 5


class Sides(NamedTuple):
    loss: dict[str, float]  # before the first step
    step: dict[str, Callable[[], Any]]
    images: int  # of a step


def prepare(name: str, overrides: tuple[str, ...], arguments: argparse.Namespace) -> Sides:
    """metarun and the plain loop, ready for their first step."""
    config = compose(["algo=protonet", f"model={name}", f"device={arguments.device}", *overrides])
    placement = make_placement(config.device)
    shape, spec = (3, arguments.pixels, arguments.pixels), EpisodeSpec(WAYS, SHOTS, arguments.queries)
    network = build("model", config.model, input_shape=shape, outputs=None)
    learner = ProtoNet(network, CrossEntropy(), WAYS, "euclidean", 64.0)
    generator, labels = torch.Generator().manual_seed(0), torch.arange(WAYS)

    def rows(count: int) -> Batch:
        x = torch.rand(arguments.tasks, WAYS * count, *shape, generator=generator)
        return Batch(x, labels.repeat_interleave(count).expand(arguments.tasks, -1))

    tasks = placement.move_task(Task(rows(SHOTS), rows(spec.queries)))
    params = placement.move_params(network.init(0))
    optimizer = build_optimizer(config.optim, params)
    gradient = map_tasks(learner.meta_grad, arguments.tasks, placement.chunk(spec, shape))

    def metarun_step() -> Any:
        found, metrics = gradient(params, tasks)
        apply_update(optimizer, params, {k: v.mean(0) for k, v in found.items()}, config.optim.lr)
        return metrics["loss"].mean()

    module = copy.deepcopy(network.source).to(placement.device).train()
    own = dict(module.named_parameters())
    with torch.no_grad():
        for here, there in network.names:
            own[there].copy_(params[here])
    adam = torch.optim.Adam(module.parameters(), config.optim.lr)

    def loop_step() -> Tensor:
        adam.zero_grad()
        total = torch.zeros((), device=placement.device)
        for i in range(arguments.tasks):
            z = module(torch.cat([tasks.support.x[i], tasks.query.x[i]]))
            centres = z[: WAYS * SHOTS].unflatten(0, (WAYS, SHOTS)).mean(1)
            distance = (z[WAYS * SHOTS :, None] - centres).square().sum(2)
            loss = F.cross_entropy(-distance / 64.0, tasks.query.y[i]) / arguments.tasks
            loss.backward()
            total += loss.detach()
        return total

    def loop() -> Tensor:
        loss = loop_step()
        adam.step()
        return loss

    first = {"metarun": float(gradient(params, tasks)[1]["loss"].mean()), "loop": float(loop_step())}
    images = arguments.tasks * WAYS * (SHOTS + arguments.queries)
    return Sides(first, {"metarun": metarun_step, "loop": loop}, images)


def peak(step: Callable[[], Any], device: str) -> float:
    """MB that a step takes at most, with what it leaves behind."""
    if device != "cuda":
        return peak_bytes(step) / MB
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / MB


def seconds(step: Callable[[], Any], count: int) -> float:
    """Of one step, the mean of `count`; reading the loss waits for a GPU."""
    start = time.perf_counter()
    for _ in range(count):
        loss = step()
    float(loss)
    return (time.perf_counter() - start) / count


def measure(name: str, overrides: tuple[str, ...], arguments: argparse.Namespace) -> str:
    """The row of a network: medians over the rounds, and the median of the rounds' ratios."""
    sides = prepare(name, overrides, arguments)
    ours, theirs = sides.loss["metarun"], sides.loss["loop"]
    if abs(ours - theirs) > 1e-3 * abs(theirs):
        raise SystemExit(f"{name}: the losses differ, metarun {ours}, loop {theirs}")
    for step in sides.step.values():  # the first steps allocate what the optimizer keeps
        step()
    memory = {side: peak(step, arguments.device) for side, step in sides.step.items()}
    taken: dict[str, list[float]] = {side: [] for side in sides.step}
    for _ in range(arguments.rounds):
        for side, step in sides.step.items():
            taken[side].append(seconds(step, arguments.steps))
    ratios = [loop / own for own, loop in zip(taken["metarun"], taken["loop"], strict=True)]
    speed = {side: sides.images / statistics.median(times) for side, times in taken.items()}
    faster = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"
    cells = [name, f"{speed['metarun']:.3g}", f"{speed['loop']:.3g}", faster]
    cells += [f"{memory['metarun']:.0f}", f"{memory['loop']:.0f}", f"{memory['metarun'] / memory['loop']:.2f}x"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pixels", type=int, default=84)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pixels, arguments.rounds = 32, 2
    names = arguments.only or (tuple(QUICK) if arguments.quick else NETWORKS)
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.tasks} task(s) of 5 ways, 5 shots, {arguments.queries} queries a class, {arguments.pixels} pixels"
    )
    print("| network | metarun, images/s | loop, images/s | metarun is faster by | metarun, MB | loop, MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        print(measure(name, QUICK.get(name, ()) if arguments.quick else (), arguments), flush=True)


if __name__ == "__main__":
    main()
