"""A data set of your own needs `kind` and `episodes` alone: the rest is derived here, and everything is checked before
the first step."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from metarun.errors import SettingError, UserError, one_line
from metarun.types import Batch, Dataset, DatasetOptions, EpisodeSpec, Kind, Split, Task, optional

MEMBERS = {
    "kind": 'kind = "classification", or "regression"',
    "episodes": "def episodes(self, split, seed, step, tasks, spec) -> Task, whose tensors have a leading T axis",
}
"""What a data set must have, and what to write where it is missing."""

SHOWN = 2  # tasks of the episodes that are drawn to check
REFERENCES = 3  # reference inputs, likewise


@dataclass(frozen=True)
class OwnDataset:
    """A data set with the members that it may leave out. `spec` is the size of the episode they are derived from."""

    dataset: Any
    spec: EpisodeSpec

    @property
    def kind(self) -> Kind:
        return self.dataset.kind

    def __getattr__(self, name: str) -> Any:
        """Its optional members (`DatasetOptions`)."""
        if name.startswith("__"):  # a copy is asked for these before it has its fields
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self.dataset.episodes(split, seed, step, tasks, spec)

    def input_shape(self) -> tuple[int, ...]:
        own = optional(self.dataset, DatasetOptions, "input_shape")
        return tuple(own() if own else self._drawn.support.x.shape[2:])

    def outputs(self, ways: int) -> int:
        own = optional(self.dataset, DatasetOptions, "outputs")
        if own:
            return own(ways)
        return ways if self.kind == "classification" else int(self._drawn.support.y.shape[-1])

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        own = optional(self.dataset, DatasetOptions, "check")
        if own:
            own(split, spec)

    def reference_inputs(self, count: int) -> Tensor:
        """Its own, or the inputs of the first training tasks of seed 0."""
        own = optional(self.dataset, DatasetOptions, "reference_inputs")
        if own:
            return own(count)
        tasks = -(-count // self._drawn.support.x.shape[1])
        return self.episodes("train", 0, 0, range(tasks), self.spec).support.x.flatten(0, 1)[:count]

    def facts(self) -> dict[str, Any]:
        own = optional(self.dataset, DatasetOptions, "facts")
        found = own() if own else {}
        return {"split": "unknown", "split_sha256": None} | found if isinstance(found, dict) else found

    @functools.cached_property
    def _drawn(self) -> Task:
        return self.dataset.episodes("train", 0, 0, range(1), self.spec)


def complete(dataset: Any, spec: EpisodeSpec) -> Dataset:
    """The data set with all members."""
    return dataset if _is_metarun(dataset) else OwnDataset(dataset, spec)


def _is_metarun(dataset: Any) -> bool:
    return type(dataset).__module__.partition(".")[0] == "metarun"


def require_members(dataset: Any) -> None:
    """Raise `UserError` unless a data set has `kind` and `episodes`."""
    own = dataset if isinstance(dataset, type) else type(dataset)
    for member, advice in MEMBERS.items():
        if not hasattr(dataset, member):
            raise UserError(f"data: {own.__name__} has no `{member}`; write {advice}")
    if isinstance(dataset, type):
        raise UserError(f"data: {own.__name__} is a class; pass an object, {own.__name__}(...)")
    if dataset.kind not in get_args(Kind):
        raise UserError(f"data: {own.__name__}.kind={dataset.kind}: choices: {', '.join(get_args(Kind))}")


def check_own(made: Any, sizes: dict[Split, EpisodeSpec]) -> None:
    """`check_drawn` for a data set of the user's; a task of control is an environment, whose tensors are its own."""
    if not _is_metarun(made) and made.kind != "control":
        check_drawn(made, sizes)


def check_drawn(made: Any, sizes: dict[Split, EpisodeSpec]) -> None:
    """Draw episodes, and raise `UserError` with the member that is wrong and what it needs: shapes, types, labels, and
    that an episode depends on its arguments alone."""
    dataset, name = OwnDataset(made, sizes["train"]), type(made).__name__
    for split, spec in sizes.items():
        tasks = _draw(dataset, name, split, range(SHOWN), spec)
        for problem in _find_problems(tasks, dataset, spec):
            raise UserError(f"data: {name}.episodes({split!r}, ...) {problem}")
        for what, again, expected in (
            ("the same arguments", _draw(dataset, name, split, range(SHOWN), spec), tasks),
            ("task 1 drawn without task 0", _draw(dataset, name, split, range(1, SHOWN), spec), _take(tasks, 1)),
        ):
            if not all(torch.equal(a, b) for a, b in zip(_tensors(again), _tensors(expected), strict=True)):
                pure = "draw from np.random.default_rng([seed, step, task, ...]) of each task in `tasks`"
                raise UserError(f"data: {name}.episodes: {what} gave another episode; {pure}")
    _check_derived(dataset, name, sizes["train"])


def _draw(dataset: OwnDataset, name: str, split: Split, tasks: range, spec: EpisodeSpec) -> Task:
    try:
        drawn = dataset.episodes(split, 0, 0, tasks, spec)
        support, query = drawn
        return Task(Batch(*support), Batch(*query))
    except (SettingError, UserError):
        raise
    except Exception as error:  # code of the user's
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise UserError(
            f"data: {name}.episodes({split!r}, ...): {type(error).__name__}: {one_line(error)} ({at})"
        ) from error


def _tensors(tasks: Task) -> list[Tensor]:
    return [tensor for batch in tasks for tensor in batch]


def _take(tasks: Task, index: int) -> Task:
    return Task(*(Batch(batch.x[index : index + 1], batch.y[index : index + 1]) for batch in tasks))


def _find_problems(tasks: Task, dataset: OwnDataset, spec: EpisodeSpec) -> Iterator[str]:
    """What is wrong with two tasks of a size."""
    classes = dataset.kind == "classification"
    ways = spec.ways if classes else 1
    for part, batch, each in (("support", tasks.support, spec.shots), ("query", tasks.query, spec.queries)):
        rows = ways * each
        for letter, tensor in zip("xy", batch, strict=True):
            at = f"gave {part}.{letter}"
            if not isinstance(tensor, Tensor):
                yield f"{at} of type {type(tensor).__name__}; it must be a torch.Tensor"
                return
            expected = f"[{SHOWN}, {rows}, ...]: tasks, rows ({f'{ways} ways x ' if classes else ''}{each} a task)"
            expected = expected.replace("a task", "a class") if classes else expected
            if tuple(tensor.shape[:2]) != (SHOWN, rows):
                yield f"{at} of shape {list(tensor.shape)}; it must be {expected}"
            if letter == "x" or not classes:
                yield from _find_value_problems(at, tensor)
        yield from _find_label_problems(part, batch, spec) if classes else _find_target_problems(part, batch)
    for letter, a, b in zip("xy", tasks.support, tasks.query, strict=True):
        if a.shape[2:] != b.shape[2:] or a.dtype != b.dtype:
            shapes = f"rows of {list(a.shape[2:])} {a.dtype} and {list(b.shape[2:])} {b.dtype}"
            yield f"gave support.{letter} and query.{letter} with {shapes}; they must be alike"


def _find_value_problems(at: str, tensor: Tensor) -> Iterator[str]:
    if tensor.dtype == torch.float64:
        yield f"{at} of float64; it must be float32, as {at.rpartition('.')[2]}.float() makes it"
    elif tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        yield f"{at} with NaN or infinite numbers"


def _find_label_problems(part: str, batch: Batch, spec: EpisodeSpec) -> Iterator[str]:
    y = batch.y
    if y.dtype != torch.int64 or y.ndim != 2:
        yield f"gave {part}.y of shape {list(y.shape)} and {y.dtype}; labels are [T, rows] of int64"
    elif set(y.unique().tolist()) - {*range(spec.ways)}:
        found = f"labels {int(y.min())} to {int(y.max())}"
        yield f"gave {part}.y with {found}; they must be 0 to {spec.ways - 1}, given anew in each task"
    elif part == "support" and any(len(row.unique()) != spec.ways for row in y):
        yield f"gave support.y without some of the labels 0 to {spec.ways - 1}; a task has {spec.shots} rows of each"


def _find_target_problems(part: str, batch: Batch) -> Iterator[str]:
    y = batch.y
    if y.ndim != 3 or not y.is_floating_point():
        yield f"gave {part}.y of shape {list(y.shape)} and {y.dtype}; targets are [T, rows, d_out] of float32"


def _check_derived(dataset: OwnDataset, name: str, spec: EpisodeSpec) -> None:
    """Raise `UserError` where the data set's own members contradict its episodes."""
    drawn = dataset._drawn
    shape, rows = dataset.input_shape(), tuple(drawn.support.x.shape[2:])
    if shape != rows:
        raise UserError(
            f"data: {name}.input_shape() is {shape}, but the rows of its episodes are {rows}; leave it out or mend it"
        )
    outputs, width = dataset.outputs(spec.ways), drawn.support.y.shape[-1]
    if dataset.kind == "regression" and outputs != width:
        raise UserError(f"data: {name}.outputs({spec.ways}) is {outputs}, but its targets have {width} columns")
    inputs = dataset.reference_inputs(REFERENCES)
    if not isinstance(inputs, Tensor) or tuple(inputs.shape) != (REFERENCES, *shape):
        found = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        needed = f"it must be a tensor {[REFERENCES, *shape]}"
        raise UserError(f"data: {name}.reference_inputs({REFERENCES}) is {found}; {needed}")
    if not isinstance(dataset.facts(), dict):
        raise UserError(f"data: {name}.facts() must be a dict, such as {{'split': 'own'}}")
