"""A right data set of each kind, and wrong ones: each differs by one mistake that is easily made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.errors import require
from metarun.testing.episodes import Blobs
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Lines:
    """y = a x with a slope a for each task: nothing is wrong with it."""

    kind: ClassVar[Kind] = "regression"

    def input_shape(self) -> tuple[int, ...]:
        return (1,)

    def outputs(self, ways: int) -> int:
        return 1

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Any episode can be drawn."""

    def key(self, split: Split, seed: int, step: int, index: int, tasks: range) -> list[int]:
        return [SPLITS.index(split), seed, step, index]

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = [self.draw(np.random.default_rng(self.key(split, seed, step, i, tasks)), spec) for i in tasks]
        return Task(*(Batch(*map(torch.stack, zip(*part, strict=True))) for part in zip(*drawn, strict=True)))

    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        slope = float(rng.normal())

        def rows(count: int) -> Batch:
            x = torch.from_numpy(rng.normal(size=(count, 1)).astype(np.float32))
            return Batch(x, slope * x)

        return Task(rows(spec.shots), rows(spec.queries))

    def reference_inputs(self, count: int) -> Tensor:
        return torch.linspace(-3, 3, count)[:, None]

    def facts(self) -> dict[str, Any]:
        return {"split": "drawn", "split_sha256": None}


class Least:
    """As little as a data set needs."""

    kind = "regression"
    key, episodes, draw = Lines.key, Lines.episodes, Lines.draw


class NoEpisodes:
    kind = "regression"


class OtherKind(Lines):
    kind: ClassVar[Any] = "regresion"


class OtherShape(Lines):
    def input_shape(self) -> Any:
        return (0,)


class Refuses(Lines):
    def check(self, split: Split, spec: EpisodeSpec) -> None:
        require(spec.shots <= 2, "shots", spec.shots, "must be at most 2")


class NoTaskAxis(Lines):
    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return Task(*(Batch(b.x[0], b.y[0]) for b in super().episodes(split, seed, step, tasks, spec)))


class Arrays(Lines):
    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Any:
        return Task(*(Batch(*(t.numpy() for t in b)) for b in super().episodes(split, seed, step, tasks, spec)))  # type: ignore[arg-type]


class Doubles(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        return Task(*(Batch(b.x, b.y.double()) for b in super().draw(rng, spec)))


class FlatTargets(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        return Task(*(Batch(b.x, b.y[:, 0]) for b in super().draw(rng, spec)))


class Missing(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        return Task(*(Batch(b.x / 0, b.y) for b in super().draw(rng, spec)))


class GlobalDraws(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        return super().draw(np.random, spec)


class SetsSeed(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        np.random.seed(rng.integers(1000))
        return super().draw(np.random, spec)


class Iterates(Lines):
    """It draws the next step, whichever is asked for."""

    calls: ClassVar[list[int]] = []

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        self.calls.append(1)
        return super().episodes(split, seed, len(self.calls) if step else 0, tasks, spec)


class OneStep(Lines):
    def key(self, split: Split, seed: int, step: int, index: int, tasks: range) -> list[int]:
        return super().key(split, seed, 0, index, tasks)


class OneSplit(Lines):
    def key(self, split: Split, seed: int, step: int, index: int, tasks: range) -> list[int]:
        return super().key("train", seed, step, index, tasks)


class OneTask(Lines):
    def key(self, split: Split, seed: int, step: int, index: int, tasks: range) -> list[int]:
        return super().key(split, seed, step, 0, tasks)


class SameRows(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        task = super().draw(rng, spec._replace(queries=spec.shots))
        return Task(task.support, Batch(*(t[: spec.queries] for t in task.support)))


class ByRange(Lines):
    def key(self, split: Split, seed: int, step: int, index: int, tasks: range) -> list[int]:
        return [*super().key(split, seed, step, index, tasks), len(tasks)]


class FewRows(Lines):
    """A task has twenty rows, and `check` does not know."""

    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        task = super().draw(rng, EpisodeSpec(1, 20, 20))
        return Task(Batch(*(t[: spec.shots] for t in task.support)), Batch(*(t[: spec.queries] for t in task.query)))


class OtherKey(Lines):
    def check(self, split: Split, spec: EpisodeSpec) -> None:
        require(spec.shots <= 20, "data.shots", spec.shots, "must be at most 20")


class FewReferences(Lines):
    def reference_inputs(self, count: int) -> Tensor:
        return super().reference_inputs(min(count, 10))


class RandomReferences(Lines):
    def reference_inputs(self, count: int) -> Tensor:
        return torch.randn(count, 1)


class CountsFacts(Lines):
    calls: ClassVar[list[int]] = []

    def facts(self) -> dict[str, Any]:
        self.calls.append(1)
        return {"calls": len(self.calls)}


class TensorFact(Lines):
    def facts(self) -> dict[str, Any]:
        return super().facts() | {"mean": torch.zeros(1)}


class GlobalLabels(Blobs):
    def _episode(self, key: list[int], spec: EpisodeSpec) -> Task:
        return Task(*(Batch(b.x, b.y + 10) for b in super()._episode(key, spec)))


class OneHot(Blobs):
    def _episode(self, key: list[int], spec: EpisodeSpec) -> Task:
        return Task(*(Batch(b.x, torch.nn.functional.one_hot(b.y)) for b in super()._episode(key, spec)))


class ShortLabels(Blobs):
    def _episode(self, key: list[int], spec: EpisodeSpec) -> Task:
        return Task(*(Batch(b.x, b.y.int()) for b in super()._episode(key, spec)))


class Unbalanced(Blobs):
    def _episode(self, key: list[int], spec: EpisodeSpec) -> Task:
        task = super()._episode(key, spec)
        return task._replace(query=Batch(task.query.x, torch.tensor([0, 0, 0, 1, 2, 2])[: len(task.query.y)]))


class FewClasses(Blobs):
    """It has five classes, and `check` does not know."""

    def _episode(self, key: list[int], spec: EpisodeSpec) -> Task:
        np.random.default_rng(0).choice(5, spec.ways, replace=False)
        return super()._episode(key, spec)
