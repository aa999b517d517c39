"""`check_dataset`: whether a data set does what the trainer, the evaluation and a resumed run count on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.data.own import check_drawn, complete, require_members
from metarun.errors import SettingError, one_line
from metarun.testing.episodes import SPECS, select_task
from metarun.testing.failure import Checks, expect, naming, refuse_unknown_steps, run_checks
from metarun.testing.gradients import are_equal
from metarun.types import Dataset, EpisodeSpec, Split, Task

SPLITS: tuple[Split, ...] = ("train", "val", "test")
TASKS = 5
LARGE, LARGE_REGRESSION = 1 << 22, 1000
"""Numbers of inputs that few data sets of classes can supply to one task, and rows that few of a regression can; yet
memory holds them easily."""


@dataclass(frozen=True)
class DatasetCase:
    made: Any  # the data set as it was given
    dataset: Dataset  # with the members that it may leave out
    spec: EpisodeSpec

    def draw(self, split: Split = "train", seed: int = 0, step: int = 0, tasks: range = range(TASKS)) -> Task:
        return self.dataset.episodes(split, seed, step, tasks, self.spec)


def check_interface(case: DatasetCase) -> None:
    """What kind of data it is, and the sizes that it supplies."""
    shape = case.dataset.input_shape()
    sizes = all(isinstance(n, int) and n > 0 for n in shape)
    expect(sizes, f"input_shape() is {shape!r}, no tuple of whole numbers", "a shape with a batch axis or of floats")
    for split in SPLITS:
        try:
            case.dataset.check(split, case.spec)
        except SettingError as error:
            refused = f"check({split!r}, {case.spec}) refuses: {one_line(error)}"
            expect(False, refused, "an episode that is too large: give check_dataset a smaller spec")


def check_shapes(case: DatasetCase) -> None:
    """What a run checks before its first step (`metarun.data.own`), and that each class has as many rows."""
    if case.dataset.kind == "control":  # a task is an environment, whose tensors are its own
        return
    check_drawn(case.made, dict.fromkeys(SPLITS, case.spec))
    if case.dataset.kind == "classification":
        for split in SPLITS:
            for name, batch in case.draw(split)._asdict().items():
                counts = torch.stack([row.bincount(minlength=case.spec.ways) for row in batch.y])
                found = f"{split}, {name}: classes have {int(counts.min())} to {int(counts.max())} rows"
                expect(bool((counts == counts[0, 0]).all()), found, "rows drawn without regard to their class")


def check_purity(case: DatasetCase) -> None:
    """The same arguments give the same bits, in any order of the calls; the global random state is not touched."""

    def numpy_state() -> list[Any]:
        return [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]

    before = torch.get_rng_state(), numpy_state(), random.getstate()
    drawn = {step: case.draw(step=step) for step in (0, 1, 2, 7)}  # consecutive ones may be drawn ahead
    cause = "torch.rand or np.random without a generator seeded by (split, seed, step, task index)"
    same = torch.equal(before[0], torch.get_rng_state()) and before[1:] == (numpy_state(), random.getstate())
    expect(same, "episodes draws from the global random state", cause)
    for step in (7, 1, 0, 2):
        expect(are_equal(case.draw(step=step), drawn[step]), f"step {step} drawn again has other tasks", cause)


def check_variety(case: DatasetCase) -> None:
    """Other seeds, steps, splits and task indices give other tasks."""
    here = case.draw()
    others = {
        "another step": case.draw(step=1),
        "another seed": case.draw(seed=1),
        "split val": case.draw("val"),
        "split test": case.draw("test"),
        "range(5, 10) of the tasks": case.draw(tasks=range(TASKS, 2 * TASKS)),
    }
    cause = "a generator whose seed lacks one of split, seed, step and task index"
    for name, other in others.items():
        expect(not are_equal(here, other), f"{name} has the same tasks", cause)
    first, *rest = (select_task(here, i) for i in range(TASKS))
    expect(not any(are_equal(first, other) for other in rest), "the tasks of a step are equal", cause)
    if case.dataset.kind != "control":
        shared = min(case.spec.shots, case.spec.queries)
        same = torch.equal(here.support.x[:, :shared], here.query.x[:, :shared])
        expect(not same, "support and query have the same inputs", "one sample used twice")


def check_sizes(case: DatasetCase) -> None:
    """`check` refuses by `SettingError` what cannot be supplied, and what it accepts can be drawn."""
    classes = case.dataset.kind == "classification"
    if case.dataset.kind == "control":
        return
    names = ("ways", "shots", "queries") if classes else ("shots", "queries")
    rows = max(2, LARGE // math.prod(case.dataset.input_shape())) if classes else LARGE_REGRESSION
    for split in SPLITS:
        for name in names:
            others = max(case.spec.shots, case.spec.queries) if name == "ways" else case.spec.ways if classes else 1
            spec = case.spec._replace(**{name: max(2, rows // others)})
            try:
                case.dataset.check(split, spec)
            except SettingError as error:
                named = f"check({split!r}, {spec}) names the setting {error.key!r}, not of {', '.join(names)}"
                expect(error.key in names, named, "the first argument of SettingError is the name in the spec")
            else:
                _draw_accepted(case, split, spec, name)


def _draw_accepted(case: DatasetCase, split: Split, spec: EpisodeSpec, name: str) -> None:
    """Draw one task of a size that `check` accepts."""
    advice = f"raise SettingError({name!r}, spec.{name}, ...) in check where the split has too few"
    try:
        drawn = case.dataset.episodes(split, 0, 0, range(1), spec)
    except Exception as error:  # of the data set's code
        why = f"{type(error).__name__}: {one_line(error)[:200]}"
        text = f"check accepts {spec} of {split}, and episodes fails ({why})\nusual cause: {advice}"
        raise AssertionError(text) from error
    rows = spec.shots * (spec.ways if case.dataset.kind == "classification" else 1)
    found = len(drawn.support.x[0])
    expect(found == rows, f"check accepts {spec} of {split}, and episodes gives {found} support rows", advice)


def check_reference(case: DatasetCase) -> None:
    """`reference_inputs(count)`: a fixed sample [count, ...] of training inputs."""
    for count in (3, 64):
        found, needed = case.dataset.reference_inputs(count), [count, *case.dataset.input_shape()]
        what = f"{[*found.shape]} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        right = what == f"{needed} {torch.float32}"
        expect(right, f"reference_inputs({count}) is {what}, not {needed} {torch.float32}", "a sample that runs out")
        again = case.dataset.reference_inputs(count)
        expect(torch.equal(found, again), "reference_inputs differs from call to call", "a draw without a fixed seed")


def check_facts(case: DatasetCase) -> None:
    """What is written beside a result is the same each time, and nothing that JSON does not know."""
    found = case.dataset.facts()
    try:
        json.dumps(found)
    except TypeError as error:
        expect(False, f"facts() cannot be written as JSON: {error}", "a tensor, an array or a path: float(), str()")
    expect(found == case.dataset.facts(), "facts() differs from call to call", "a clock")


DATASET_CHECKS: Checks = {
    "interface": check_interface,
    "shapes": check_shapes,
    "purity": check_purity,
    "variety": check_variety,
    "sizes": check_sizes,
    "reference": check_reference,
    "facts": check_facts,
}
"""The steps of `check_dataset` by name, in their order."""


def check_dataset(dataset: Any, spec: EpisodeSpec | None = None, *, skip: Collection[str] = ()) -> None:
    """Raise AssertionError if a data set does not do what metarun counts on.

        check_dataset(Lines())
        check_dataset(Folder("photos", image_size=32), EpisodeSpec(ways=5, shots=1, queries=2))

    Args:
        dataset: with `kind` and `episodes`, and what else `metarun.types.Dataset` has.
        spec: an episode that each split can supply. None: 3 ways, 2 shots and 2 queries a class; of a regression 6
            support and 5 query rows.
        skip: names of steps to leave out, of `metarun.testing.datasets.DATASET_CHECKS`.
    """
    refuse_unknown_steps(skip, DATASET_CHECKS)
    title = type(dataset).__name__
    with naming(f"{title}, interface"):
        require_members(dataset)
    size = spec or SPECS[dataset.kind]
    run_checks(title, DATASET_CHECKS, DatasetCase(dataset, complete(dataset, size), size), skip)
