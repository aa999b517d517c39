r"""Classes with Gaussian features of one covariance: tasks of which logistic regression is the right model.

    mu_k = common c_k + spread z_k     c_k ~ N(0, I), the same in every task; z_k ~ N(0, I), of each task and class
    x | y = k ~ N(mu_k, Lambda)        Lambda diagonal, from 1 down to 1 / `condition` in equal ratios
    p(y = k | x) = softmax_k(w_k . x + b_k),    w_k = Lambda^-1 mu_k,    b_k = -mu_k' Lambda^-1 mu_k / 2

for classes of equal size. `common` is what tasks share and a start can know; `spread` is what support sets have to
tell. With common=0 no class differs from another before it is seen. With `model=linear` and a term (lambda/2) |phi -
theta|^2 the inner problem is strongly convex: what implicit gradients assume holds exactly (docs/theory.md).

The best predictor (`oracle`) knows c_k and has the posterior of mu_k from K rows of mean xbar_k:

    V = (I / spread^2 + K Lambda^-1)^-1,    m_k = V (common c_k / spread^2 + K Lambda^-1 xbar_k)
    p(y = k | x, support) = softmax_k(-(x - m_k)' (Lambda + V)^-1 (x - m_k) / 2)

Symbols: D features, N ways, K shots, M query rows, T tasks.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import bits_of_steps, normal, random_bits
from metarun.data.prefetch import EpisodePrefetcher
from metarun.errors import SettingError, require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

COMMON_STEP = 2**42
"""The means that tasks share are drawn at this step, which no training reaches."""


@dataclass(frozen=True)
class Logistic:
    features: int
    condition: float
    common: float
    spread: float

    kind: ClassVar[Kind] = "classification"

    def __post_init__(self) -> None:
        require(self.features >= 1, "features", self.features, "must be at least 1")
        require(1 <= self.condition < math.inf, "condition", self.condition, "must be at least 1 and finite")
        for name in ("common", "spread"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "must be at least 0 and finite")
        needed = "must be above 0 where data.common=0: classes would be the same"
        require(self.spread + self.common > 0, "spread", self.spread, needed)

    @property
    def spectrum(self) -> np.ndarray:
        """The diagonal of Lambda [D]."""
        return np.geomspace(1.0, 1.0 / self.condition, self.features)

    def input_shape(self) -> tuple[int, ...]:
        return (self.features,)

    def outputs(self, ways: int) -> int:
        return ways

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        if spec.ways < 2:
            raise SettingError("ways", spec.ways, "must be at least 2")

    def common_means(self, ways: int) -> np.ndarray:
        """common c_k [N, D]."""
        return self.common * normal(
            *np.split(random_bits("train", 0, COMMON_STEP, range(ways), 2 * self.features), 2, 1)
        )

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._prefetcher(split, seed, step, tasks, spec)

    @functools.cached_property
    def _prefetcher(self) -> EpisodePrefetcher:
        return EpisodePrefetcher(self._draw)

    def _draw(self, split: Split, seed: int, steps: range, tasks: range, spec: EpisodeSpec) -> list[Task]:
        rows, (ways, shots, queries) = spec.shots + spec.queries, spec
        bits = bits_of_steps(split, seed, steps, tasks, 2 * ways * (1 + rows) * self.features)
        drawn = normal(*np.split(bits, 2, axis=1)).reshape(len(steps), len(tasks), ways, 1 + rows, self.features)
        means = self.common_means(ways)[:, None] + self.spread * drawn[..., :1, :]
        x = torch.from_numpy((means + np.sqrt(self.spectrum) * drawn[..., 1:, :]).astype(np.float32))
        # Shot by shot, as other data sets have their rows.
        support, query = (part.transpose(2, 3).flatten(2, 3) for part in x.split([shots, queries], 3))
        y, y_query = (torch.arange(ways).repeat(len(tasks), k) for k in (shots, queries))
        return [Task(Batch(a, y), Batch(b, y_query)) for a, b in zip(support, query, strict=True)]

    def oracle(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> dict[str, Tensor]:
        """The accuracy and cross-entropy [T] of the best predictor on the queries."""
        logits, y = self.posterior(split, seed, step, tasks, spec)
        losses = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), y, reduction="none")
        return {"accuracy": (logits.argmax(-1) == y).double().mean(1), "cross_entropy": losses.mean(1)}

    def posterior(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> tuple[Tensor, Tensor]:
        """Logits [T, M, N] of the best predictor on the queries, and their labels [T, M]."""
        support, query = self.episodes(split, seed, step, tasks, spec)
        mean = support.x.double().numpy().reshape(len(tasks), spec.shots, spec.ways, -1).mean(1)
        # V / spread^2 and V K Lambda^-1, in a form that spread=0 has too
        known = self.spectrum / (self.spectrum + spec.shots * self.spread**2)
        centre = known * self.common_means(spec.ways) + (1 - known) * mean
        away = query.x.double().numpy()[:, :, None] - centre[:, None]
        return torch.from_numpy(-0.5 * (away**2 / (self.spectrum + known * self.spread**2)).sum(-1)), query.y

    def reference_inputs(self, count: int) -> Tensor:
        spec = EpisodeSpec(2, 8, 8)
        rows = self.episodes("train", 0, 0, range(-(-count // 16)), spec).support.x
        return rows.flatten(0, 1)[:count]

    def facts(self) -> dict[str, Any]:
        names = ("features", "condition", "common", "spread")
        return {"split": "sampled", "split_sha256": None, **{name: getattr(self, name) for name in names}}
