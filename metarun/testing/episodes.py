"""Small episodes of each kind: sinusoids, images of noise whose first pixels tell the class, a place to act in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.data.point_robot import PointRobot
from metarun.data.sinusoid import Sinusoid
from metarun.types import Batch, Dataset, EpisodeSpec, Kind, Split, Task

SPECS = {
    "regression": EpisodeSpec(ways=1, shots=6, queries=5),
    "classification": EpisodeSpec(3, 2, 2),
    "control": EpisodeSpec(1, 2, 1),
}


@dataclass(frozen=True)
class Blobs:
    """Images whose first `informative` pixels are near their class's centre; the others say nothing about the class.

    A centre is drawn anew for every episode if `novelty` is 1, and belongs to its label in all of them if it is 0.
    """

    side: int = 16
    informative: int = 8
    novelty: float = 1.0

    kind: ClassVar[Kind] = "classification"

    def input_shape(self) -> tuple[int, ...]:
        return (1, self.side, self.side)

    def outputs(self, ways: int) -> int:
        return ways

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Any number of classes and images can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = [self._episode([("train", "val", "test").index(split), seed, step, i], spec) for i in tasks]
        return Task(*(Batch(*(torch.stack(t) for t in zip(*part, strict=True))) for part in zip(*drawn, strict=True)))

    def reference_inputs(self, count: int) -> Tensor:
        spec = EpisodeSpec(4, 1, 1)
        return torch.cat([self._episode([3, 0, 0, i], spec).support.x for i in range(-(-count // 4))])[:count]

    def facts(self) -> dict[str, Any]:
        return {"split": "drawn", "split_sha256": None}

    def _episode(self, key: list[int], spec: EpisodeSpec) -> Task:
        draw = np.random.default_rng(key)
        common, new = (d.standard_normal((spec.ways, self.informative)) for d in (np.random.default_rng(0), draw))
        centres = 1.5 * ((1 - self.novelty) * common + self.novelty * new)

        def batch(per_class: int) -> Batch:
            y = np.tile(np.arange(spec.ways), per_class)
            x = draw.standard_normal((len(y), self.side**2))
            x[:, : self.informative] = centres[y] + 0.5 * x[:, : self.informative]
            images = torch.from_numpy(x.astype(np.float32)).view(-1, *self.input_shape())
            return Batch(images, torch.from_numpy(y))

        return Task(batch(spec.shots), batch(spec.queries))


SINUSOIDS = Sinusoid(amplitude=(0.1, 5.0), phase=(0.0, np.pi), x_range=(-5.0, 5.0), noise=0.0)
ROBOT = PointRobot(reward="dense", horizon=4, train_goals=5, val_goals=3, test_goals=3)
DATASETS: dict[str, Dataset] = {"regression": SINUSOIDS, "classification": Blobs(), "control": ROBOT}

EASY: dict[str, tuple[Dataset, EpisodeSpec]] = {
    "regression": (replace(SINUSOIDS, amplitude=(1.0, 2.0), phase=(0.0, 1.0)), EpisodeSpec(1, 10, 10)),
    "classification": (Blobs(side=6, informative=4, novelty=0.3), EpisodeSpec(3, 2, 5)),
}
"""Tasks that differ little: sinusoids of similar amplitude and phase, blobs near the same centres, amid noise."""


def select_task(tasks: Task, i: int) -> Task:
    """One of several tasks, without the T axis."""
    return Task(*(Batch(b.x[i], b.y[i]) for b in tasks))
