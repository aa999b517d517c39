r"""Linear regression with known answers: y = w . x + e, one w per task.

A task is of one of G groups, each as likely:

    w ~ N(c_g 1, spread^2 I)        c_g    `centres`: the mean of every coefficient in group g
    x ~ N(0, s_g Lambda)            s_g    `scales`: how large the inputs of group g are
    e ~ N(0, noise^2)               Lambda diagonal, from 1 down to 1 / `condition` in equal ratios

With `design=exact` the 2 D inputs +- sqrt(D s_g Lambda_ii) e_i take the place of random ones: the second moment of
every support set is s_g Lambda, so that losses and gradients are those of the population. Shots are then a multiple of
2 D.

With `train_vectors` = N a training task has one of N pairs (g_i, w_i), drawn once as above, each as likely, and rows of
its own; validation and test stay as they are (Raventos et al. 2023, arXiv 2306.15063, with one group).

The best predictor is the posterior mean: a mixture over groups, each a Gaussian posterior, weighted by how likely the
support set is in the group. Its error is printed beside results (`oracle`). For training tasks of N vectors it is
sum_i p_i w_i, p_i proportional to p(X | g_i) exp(-|y - X w_i|^2 / (2 noise^2)). Groups of different scales and centres
are what makes learners differ: without them the mean of w is the best start for all (docs/theory.md).

Symbols: D features, S support rows, M query rows, T tasks, N vectors.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import Bits, bits_of_steps, normal, random_bits, uniform
from metarun.data.prefetch import EpisodePrefetcher, as_column, split_points
from metarun.errors import SettingError, require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

DESIGNS = ("gaussian", "exact")
POPULATION_STEP = 2**42
"""The support inputs of `population` are those of this step, which no training reaches."""
VECTORS_STEP = 2**44
"""The vectors that training tasks share are those of this step."""
LEAST_NOISE = 1e-6
"""The noise that the posterior assumes at least: without any, its covariance of many rows is singular."""


@dataclass(frozen=True)
class Linear:
    features: int
    condition: float
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    spread: float
    noise: float
    design: str = "gaussian"
    train_vectors: int | None = None
    vectors_seed: int = 0

    kind: ClassVar[Kind] = "regression"

    def __post_init__(self) -> None:
        require(self.features >= 1, "features", self.features, "must be at least 1")
        require(1 <= self.condition < math.inf, "condition", self.condition, "must be at least 1 and finite")
        finite = bool(self.centres) and all(math.isfinite(c) for c in self.centres)
        require(finite, "centres", list(self.centres), "must be a list of finite numbers, one for each group of tasks")
        sound = len(self.scales) == len(self.centres) and all(0 < s < math.inf for s in self.scales)
        require(sound, "scales", list(self.scales), f"must be {len(self.centres)} numbers above 0, one for each centre")
        for name in ("spread", "noise"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "must be at least 0 and finite")
        require(self.design in DESIGNS, "design", self.design, "choices: " + ", ".join(DESIGNS))
        enough = self.train_vectors is None or self.train_vectors >= 1
        require(enough, "train_vectors", self.train_vectors, "must be at least 1, or null for a new one in each task")
        require(self.vectors_seed >= 0, "vectors_seed", self.vectors_seed, "must be at least 0")

    @property
    def spectrum(self) -> np.ndarray:
        """The diagonal of Lambda [D]."""
        return np.geomspace(1.0, 1.0 / self.condition, self.features)

    def input_shape(self) -> tuple[int, ...]:
        return (self.features,)

    def outputs(self, ways: int) -> int:
        return 1

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        period = 2 * self.features
        for key, rows in (("shots", spec.shots), ("queries", spec.queries)):
            if self.design == "exact" and rows % period:
                raise SettingError(f"data.{key}", rows, f"must be a multiple of {period} with data.design=exact")

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._prefetcher(split, seed, step, tasks, spec)

    @functools.cached_property
    def _prefetcher(self) -> EpisodePrefetcher:
        return EpisodePrefetcher(self._draw)

    def _draw(self, split: Split, seed: int, steps: range, tasks: range, spec: EpisodeSpec) -> list[Task]:
        rows, width = spec.shots + spec.queries, self.features
        bits = bits_of_steps(split, seed, steps, tasks, 1 + 2 * (width + rows * (width + 1)))
        drawn = normal(*np.split(bits[:, 1:], 2, axis=1))  # [T, D + rows (D + 1)]
        w, x, e = np.split(drawn, [width, width + rows * width], axis=1)
        if split == "train" and self.train_vectors is not None:
            chosen = uniform(bits[:, 0], 0, self.train_vectors).astype(int)
            group, w = (values[chosen] for values in self._vectors)
        else:
            group, w = self._place(bits[:, 0], w)
        x = x.reshape(-1, rows, width)
        x = self._axes(rows) if self.design == "exact" else x
        x = x * self._deviations(group)
        y = (x @ w[..., None])[..., 0] + self.noise * e
        return split_points(torch.from_numpy(x.astype(np.float32)), as_column(y), len(steps), spec.shots)

    def _place(self, bits: Bits, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Random words [T] and standard normals [T, D] -> groups [T] and coefficients [T, D]."""
        group = uniform(bits, 0, len(self.centres)).astype(int)
        return group, np.array(self.centres)[group, None] + self.spread * z

    @functools.cached_property
    def _vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Groups [N] and coefficients [N, D] of training tasks; of fewer vectors they are the first ones."""
        numbers = range(self.train_vectors or 0)
        bits = random_bits("train", self.vectors_seed, VECTORS_STEP, numbers, 1 + 2 * self.features)
        return self._place(bits[:, 0], normal(*np.split(bits[:, 1:], 2, axis=1)))

    def _axes(self, rows: int) -> np.ndarray:
        """Inputs [rows, D] whose second moment is I."""
        axes = np.sqrt(self.features) * np.concatenate([np.eye(self.features), -np.eye(self.features)])
        return np.tile(axes, (rows // len(axes), 1))

    def _deviations(self, group: np.ndarray) -> np.ndarray:
        """The standard deviation of each input [T, 1, D]."""
        return np.sqrt(np.array(self.scales)[group, None, None] * self.spectrum)

    def population(self, spec: EpisodeSpec, count: int) -> Task:
        """About `count` tasks whose mean query loss after adaptation is the expected one but for a constant, of
        learners whose adapted function is linear in theta and y, given the inputs.

        The groups in turn, with w = c_g 1 and no noise: both would add to the loss what does not depend on theta. With
        `train_vectors` these in turn, with inputs for each.
        Queries have the second moment s_g Lambda exactly; support inputs are those of the design.
        """
        exact, own = self.design == "exact", self.train_vectors is not None
        groups = np.arange(len(self.centres)), np.array(self.centres)[:, None] * np.ones(self.features)
        group, w = self._vectors if own else groups
        repeats, shared = 1 if exact else max(1, count // len(group)), 1 if own else len(group)
        group, w = np.tile(group, repeats), np.tile(w, (repeats, 1))
        bits = random_bits("train", 0, POPULATION_STEP, range(len(w) // shared), 2 * spec.shots * self.features)
        drawn = normal(*np.split(bits, 2, axis=1)).reshape(-1, spec.shots, self.features)
        support = self._axes(spec.shots) if exact else np.repeat(drawn, shared, 0)
        rows = (inputs * self._deviations(group) for inputs in (support, self._axes(2 * self.features)))
        return Task(*(Batch(torch.from_numpy(x), torch.from_numpy(x @ w[..., None])) for x in rows))

    def oracle(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> dict[str, Tensor]:
        """The mean squared error [T] of the posterior mean on the queries."""
        task = self.episodes(split, seed, step, tasks, spec)
        return {"mse": (task.query.y.double() - self.posterior_mean(split, task)).square().mean((1, 2))}

    def posterior_mean(self, split: Split, tasks: Task) -> Tensor:
        """E[y | support set] at the queries, [T, M, 1] in float64, where tasks are distributed as those of the split.

        Given group g, y_s ~ N(X c_g 1, V) with V = spread^2 X X' + noise^2 I, and E[w | y_s] = c_g 1 + spread^2 X' V^-1
        (y_s - X c_g 1). The groups are weighted by p(X, y_s | g), or vectors by p(X, y_s | g_i, w_i).
        """
        x, y, queries = (v.double().cpu().numpy() for v in (tasks.support.x, tasks.support.y[..., 0], tasks.query.x))
        if split == "train" and self.train_vectors is not None:
            mean = normalise(self._log_vectors(x, y)).T @ self._vectors[1]
        else:
            found = (self._posterior(g, x, y) for g in range(len(self.centres)))
            logs, means = (np.array(values) for values in zip(*found, strict=True))
            mean = np.einsum("gt,gtd->td", normalise(logs), means)
        return torch.from_numpy(queries @ mean[..., None])

    def _log_vectors(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """log p(X, y | g_i, w_i) [N, T] but for a constant."""
        group, w = self._vectors
        log_x = np.array([self._log_inputs(g, x) for g in range(len(self.centres))])[group]
        log_x[:, np.isneginf(log_x).all(0)] = 0  # inputs of a group without vectors: y alone tells
        # Row by row: [N, T] numbers at a time, and no difference of large squares where the noise is small.
        squares = sum((y[:, s] - w @ x[:, s].T) ** 2 for s in range(x.shape[1]))
        return log_x - squares / (2 * max(self.noise, LEAST_NOISE) ** 2)

    def _posterior(self, group: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log p(X, y | group) [T] but for a constant, and E[w | X, y, group] [T, D]."""
        start = np.full(self.features, self.centres[group])
        residual = (y - x @ start)[..., None]
        covariance = self.spread**2 * x @ x.swapaxes(1, 2) + max(self.noise, LEAST_NOISE) ** 2 * np.eye(x.shape[1])
        solved = np.linalg.solve(covariance, residual)
        log_y = -0.5 * ((residual * solved).sum((1, 2)) + np.linalg.slogdet(covariance)[1])
        mean = start + self.spread**2 * (x.swapaxes(1, 2) @ solved)[..., 0]
        return log_y + self._log_inputs(group, x), mean

    def _log_inputs(self, group: int, x: np.ndarray) -> np.ndarray:
        """log p(X | group) [T] but for a constant."""
        scale = self.scales[group]
        squares = (x**2 / (scale * self.spectrum)).sum((1, 2))
        if self.design == "exact":  # the inputs of a group are always the same
            return np.where(np.isclose(squares, x[0].size), 0.0, -np.inf)
        return -0.5 * (squares + x[0].size * math.log(scale))

    def reference_inputs(self, count: int) -> Tensor:
        spec = EpisodeSpec(1, 2 * self.features, 2 * self.features)
        rows = self.episodes("train", 0, 0, range(-(-count // spec.shots)), spec).support.x
        return rows.flatten(0, 1)[:count]

    def facts(self) -> dict[str, Any]:
        names = ["features", "condition", "spread", "noise", "design"]
        names += ["train_vectors", "vectors_seed"] if self.train_vectors is not None else []
        groups = {"centres": list(self.centres), "scales": list(self.scales)}
        return {"split": "sampled", "split_sha256": None, **{n: getattr(self, n) for n in names}, **groups}


def normalise(logs: np.ndarray) -> np.ndarray:
    """log weights [N, T] but for a constant -> weights that sum to 1 over N."""
    weights = np.exp(logs - logs.max(0))
    return weights / weights.sum(0)
