"""What is compared: the cases, and the sides that run each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

# A rate so small that thousands of steps on the same tasks leave the work of a step as it is.
COMMON = ("diagnostics=off", "optim.clip=null", "optim.lr=1e-5")
OMNIGLOT = ("data=folder", "data.image_size=28", "data.channels=1", "data.rotations=classes", "model=conv4")
PHOTOS = ("data=folder", "data.image_size=84", "data.channels=3", "model=conv4")
STRIDE = ("model.filters=64", "model.norm=batch", "model.pool=stride", "model.readout=mean")
POOL = ("model.filters=64", "model.norm=population", "model.pool=max", "model.readout=flatten")

EVERYONE = ("metarun", "metarun-eager", "higher", "torchopt", "jax", "loop")
ON_IMAGES = ("metarun", "metarun-module", "higher", "torchopt", "jax", "loop")
AGAINST_LOOP = ("metarun", "loop")
WITH_MODULE = ("metarun", "metarun-module", "loop")


@dataclass(frozen=True)
class Case:
    """One line of work: settings of metarun that define it, and who runs it."""

    name: str
    title: str
    overrides: tuple[str, ...]
    sides: tuple[str, ...]
    images: str = ""  # which synthetic images: drawings, photos, or none
    quick: bool = False  # also in bench-quick
    device: str = "cpu"  # cpu, cuda


def sinusoid(algo: str, steps: int, sides: tuple[str, ...], *more: str, quick: bool = False) -> Case:
    """25 tasks, 10 points for support and 10 for query, an MLP 40-40; as many outer steps as the paper's run."""
    settings = (f"algo={algo}", "data=sinusoid", "train.tasks=25", f"algo.inner_steps={steps}", "train.steps=70000")
    title = f"sinusoid, MLP 40-40, {algo}, 25 tasks, {steps} inner step{'s' * (steps > 1)}"
    return Case(f"sinusoid-{algo}-{steps}", title, (*settings, *more, *COMMON), sides, quick=quick)


def omniglot(
    algo: str, steps: int, tasks: int, queries: int, sides: tuple[str, ...], *more: str, quick: bool = False
) -> Case:
    """5-way 1-shot on drawings of 28x28, conv4-64 with stride 2, batch norm."""
    rate = 0.001 if algo == "reptile" else 0.1  # of Adam, of gradient descent
    shape = (f"algo.inner_steps={steps}", f"train.tasks={tasks}", f"data.queries={queries}", f"algo.inner_lr={rate}")
    settings = (f"algo={algo}", *OMNIGLOT, *STRIDE, *shape, *EPISODE, *more, *COMMON)
    queried = f"{queries} quer{'ies' if queries > 1 else 'y'} a class"
    title = f"28x28, conv4-64, {algo}, 5-way 1-shot, {queried}, {tasks} tasks, {steps} inner step{'s' * (steps > 1)}"
    return Case(f"omniglot-{algo}-{queries}q-{steps}", title, settings, sides, "drawings", quick)


EPISODE = ("data.ways=5", "data.shots=1", "data.test_queries=1")


def metric(algo: str, ways: int, quick: bool = False) -> Case:
    """One episode of many ways a step, 5 queries a class, max-pool, as in their papers."""
    settings = (f"algo={algo}", *OMNIGLOT, *POOL, f"algo.train_ways={ways}", "data.queries=5", "train.tasks=1")
    title = f"28x28, conv4-64 max-pool, {algo}, {ways}-way 1-shot, 5 queries a class, 1 task"
    sides = WITH_MODULE
    return Case(f"omniglot-{algo}-{ways}w", title, (*settings, *EPISODE, *COMMON), sides, "drawings", quick)


def photos() -> Case:
    """The published miniImageNet MAML: 84x84, conv4-32 with max-pool, 5 inner steps, 4 tasks."""
    net = ("model.filters=32", "model.norm=batch", "model.pool=max", "model.readout=flatten")
    work = ("algo.inner_steps=5", "algo.inner_lr=0.01", "train.tasks=4", "data.queries=15")
    title = "84x84, conv4-32 max-pool, maml, 5-way 1-shot, 15 queries a class, 4 tasks, 5 inner steps"
    settings = ("algo=maml", *PHOTOS, *net, *work, *EPISODE, *COMMON)
    return Case("photos-maml-5", title, settings, WITH_MODULE, "photos")


def cell(ways: int, shots: int, queries: int, tasks: int, filters: int) -> Case:
    """MAML of one inner step on drawings; a cell of the grid."""
    shape = (f"data.ways={ways}", f"data.shots={shots}", f"data.queries={queries}", f"train.tasks={tasks}")
    work = ("algo.inner_steps=1", "algo.inner_lr=0.1", "data.test_queries=1")
    settings = ("algo=maml", *OMNIGLOT, *STRIDE, *shape, f"model.filters={filters}", *work, *COMMON)
    name = f"{ways}w{shots}s{queries}q-{tasks}t-{filters}f"
    return Case(name, name, settings, AGAINST_LOOP, "drawings")


REPTILE = ("algo.inner_batch=10", "algo.train_shots=10")
IMAML = ("algo.prox=2.0", "algo.cg_steps=5", "algo.cg_damping=10.0")
IMAML += ("algo.inner_solver=gradient", "algo.curvature=hessian", "algo.zero_head=false")  # as the loops have it

CASES = (
    sinusoid("maml", 1, EVERYONE, quick=True),
    sinusoid("maml", 5, EVERYONE, quick=True),
    omniglot("maml", 1, 32, 1, ON_IMAGES, quick=True),
    omniglot("maml", 5, 32, 1, ON_IMAGES),
    omniglot("maml", 1, 16, 15, ON_IMAGES, quick=True),
    sinusoid("fomaml", 1, AGAINST_LOOP),
    sinusoid("reptile", 5, AGAINST_LOOP, "algo.train_shots=10"),
    sinusoid("imaml", 5, AGAINST_LOOP, *IMAML),
    omniglot("fomaml", 1, 32, 1, AGAINST_LOOP),
    omniglot("reptile", 5, 5, 1, AGAINST_LOOP, *REPTILE),
    omniglot("imaml", 5, 16, 1, AGAINST_LOOP, *IMAML),
    metric("protonet", 20),
    metric("protonet", 60),
    metric("matchingnet", 20),
    metric("matchingnet", 60),
    photos(),
)


def grid() -> tuple[Case, ...]:
    """Cells of MAML with one inner step, those with the least work first."""
    axes = itertools.product((5, 20), (1, 5), (1, 15), (4, 16, 32), (32, 64))
    return tuple(cell(*sizes) for sizes in sorted(axes, key=lambda s: s[0] * (s[1] + s[2]) * s[3] * s[4]))
