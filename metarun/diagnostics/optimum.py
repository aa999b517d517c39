r"""How far theta is from the best one, where that is known: linear regression by a linear network.

F(theta) is the expected query loss of new training tasks after `inner_steps` of adaptation. Where the network is linear
in theta and adaptation is made of plain gradient steps, F is a quadratic, and a data set that knows its moments
(`DatasetOptions.population`) gives it without noise:

    F(theta) = F* + (theta - theta*)' A (theta - theta*) / 2,    grad F = A theta - b,    theta* = A^-1 b
    excess_risk = F(theta) - F*,    distance_to_optimum = |theta - theta*|

A and b are read off grad F at 0 and at each unit vector, once, on the CPU in float64. The learner's own mean
meta-gradient is g(theta) = G theta - c; it is grad F for MAML, and another for first-order learners and Reptile. Then

    floor       the excess risk at its fixed point G^-1 c: what its bias costs, however long it trains
    predicted   the excess risk of descent along g at the rates eta_t of the run and without noise of the tasks:
                theta_t+1 - G^-1 c = (I - eta_t G) (theta_t - G^-1 c)
    contraction the factor of the distance per step, exp(slope / 2) of the least-squares line of log(excess - floor) on
                steps, over the first records whose excess is above twice the median of the last half and twice the
                floor; measured, and of `predicted` at the same steps
    slowest     max |1 - eta lambda(G)|: the factor that is left in the end, of a constant rate
    plateau     the mean excess of the last half of the records
    noise       eta tr Cov / (4 T): the excess around which descent with g = grad F stays at a small constant rate, with
                tr Cov the variance of one task's meta-gradient (`grad_variance`, mean of the same records) and T tasks
                a step. It follows from the stationary covariance S of theta, A S + S A = eta Cov / T

`predicted`, `slowest` and `noise` are for plain gradient descent (optim=sgd or interpolate, without momentum, weight
decay and clipping): Adam has no such theorem. Symbols: d numbers in theta, A, G [d, d], b, c [d].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from metarun.diagnostics.meta_gradients import true_gradients
from metarun.diagnostics.task_sample import TaskSample, mean_gradient
from metarun.report.statistics.rate import fit_line
from metarun.types import NOT_WEIGHTS, Algorithm, Batch, Dataset, DatasetOptions, EpisodeSpec, Params, Task, optional

TASKS = 2000  # that an expectation over random inputs is taken on
MOST = 64  # numbers in theta: grad F is taken at as many points
NUMBERS = 2**22  # of inputs that vmap handles at once
EXACT = 1e-8
LEAST_RECORDS = 4  # of a slope

Array = np.ndarray


class Affine(NamedTuple):
    """x -> matrix x - shift."""

    matrix: Array  # [d, d]
    shift: Array  # [d]

    @property
    def root(self) -> Array:
        return solve(self.matrix, self.shift)


@dataclass(frozen=True)
class Optimum:
    """theta -> `excess_risk` and `distance_to_optimum`; empty where they are not known."""

    algorithm: Algorithm  # sized for training episodes
    dataset: Dataset
    spec: EpisodeSpec  # of training episodes

    def __call__(self, params: Params) -> dict[str, float]:
        if self.gradient is None:
            return {}
        at = flatten(params)
        return {
            "excess_risk": self.excess(at),
            "distance_to_optimum": float(np.linalg.norm(at - self.gradient.root)),
        }

    def excess(self, at: Array) -> float:
        """F(theta) - F*."""
        assert self.gradient is not None
        away = at - self.gradient.root
        return float(away @ self.gradient.matrix @ away) / 2

    @functools.cached_property
    def gradient(self) -> Affine | None:
        """grad F; None where F is not known or no quadratic."""
        like = self.algorithm.init(0)
        population = optional(self.dataset, DatasetOptions, "population")
        small = sum(p.numel() for p in like.values()) <= MOST
        if population is None or not small or any(name.startswith(NOT_WEIGHTS) for name in like):
            return None
        return self._read(lambda at, sample: mean_gradient(true_gradients(self.algorithm, at, sample)[0]))

    @functools.cached_property
    def own_gradient(self) -> Affine | None:
        """g, the learner's mean meta-gradient; None where it is not affine in theta."""
        return self._read(lambda at, sample: mean_gradient(sample.each(self.algorithm.meta_grad, at)[0]))

    def _read(self, gradient: Callable[[Params, TaskSample], Params]) -> Affine | None:
        tasks: Task = optional(self.dataset, DatasetOptions, "population")(self.spec, TASKS)  # type: ignore[misc]
        numbers = sum(batch.x[0].numel() for batch in tasks)
        sample = TaskSample(in_double(tasks), max(2, NUMBERS // numbers))
        return read_affine(lambda at: gradient(at, sample), self.algorithm.init(0))

    def describe(
        self,
        records: Sequence[Mapping[str, Any]],
        tasks: int,
        start: Params | None = None,
        rates: Sequence[float] | None = None,
    ) -> dict[str, Any] | None:
        """Summarise the training records: the first and last excess, and the rate beside that of the theorem.

        `tasks` of a step; `start`: the first theta; `rates` those of each step; None where the outer loop is no plain
        gradient descent.
        """
        known = {r["step"]: r for r in records if r.get("kind") == "train" and r.get("excess_risk") is not None}
        if not known or self.gradient is None:
            return None
        steps = np.array(sorted(known))
        excess = np.array([known[s]["excess_risk"] for s in steps])
        own, last = self.own_gradient, [known[step] for step in steps[len(steps) // 2 :]]
        floor = None if own is None else self.excess(own.root)
        window = falling_part(excess, floor or 0.0)
        found = {
            "first": float(excess[0]),
            "last": float(excess[-1]),
            "distance": known[steps[-1]]["distance_to_optimum"],
            "floor": floor,
            "plateau": float(np.mean(excess[len(excess) // 2 :])),
            "until_step": int(steps[window][-1]) if window.any() else None,
            "contraction": fit_contraction(steps[window], excess[window] - (floor or 0.0)),
        }
        if own is None or start is None or not rates:
            return found
        path = descend(own, flatten(start), rates)
        predicted = np.array([self.excess(path[min(step, len(path) - 1)]) for step in steps])
        found["predicted_contraction"] = fit_contraction(steps[window], predicted[window] - (floor or 0.0))
        if min(rates) == max(rates):
            found["slowest_contraction"] = slowest(own, rates[0])
            noises = [r["grad_variance"] for r in last if "grad_variance" in r]
            if noises and _near(own.matrix, self.gradient.matrix):
                found["noise"] = rates[0] * float(np.mean(noises)) / (4 * tasks)
        return found


def read_affine(gradient: Callable[[Params], Params], like: Params) -> Affine | None:
    """The affine map g(theta) = G theta - b, from its values; None if those at other points show that it is not affine.

    Only `size + 3` points are needed, and three where it is not affine.
    """
    size = sum(p.numel() for p in like.values())

    def value(at: Array) -> Array:
        return flatten(gradient(unflatten(at, like)))

    zero, elsewhere = value(np.zeros(size)), np.random.default_rng(0).standard_normal(size)
    once, twice = value(elsewhere), value(2 * elsewhere)
    if not _near(twice - once, once - zero):
        return None
    matrix = np.array([value(at) for at in np.eye(size)]).T - zero[:, None]
    return Affine(matrix, -zero) if _near(matrix @ elsewhere + zero, once) else None


def _near(x: Array, y: Array) -> bool:
    return bool(np.linalg.norm(x - y) < EXACT * (np.linalg.norm(y) or 1.0))


def solve(matrix: Array, shift: Array) -> Array:
    """theta* = G^-1 b; the least one where G is singular."""
    return np.linalg.lstsq(matrix, shift, rcond=None)[0]


def descend(gradient: Affine, start: Array, rates: Sequence[float]) -> list[Array]:
    """theta_0, theta_1, ... of gradient descent at these rates."""
    path = [start]
    for rate in rates:
        path.append(path[-1] - rate * (gradient.matrix @ path[-1] - gradient.shift))
    return path


def falling_part(excess: Array, floor: float) -> Array:
    """The records [R] before the excess first comes down to twice the median of the last half, or twice the floor."""
    level = max(2 * float(np.median(excess[len(excess) // 2 :])), 2 * floor)
    below = np.flatnonzero(~(excess > level))
    return np.arange(len(excess)) < (below[0] if len(below) else len(excess))


def fit_contraction(steps: Array, excess: Array) -> float | None:
    """exp(slope / 2) of log excess on steps; None for too few records, or an excess that is not above 0."""
    if len(steps) < LEAST_RECORDS or not (excess > 0).all():
        return None
    line = fit_line(steps, np.log(excess))
    return math.exp(line.slope / 2) if line else None


def slowest(gradient: Affine, rate: float) -> float:
    """max |1 - rate lambda| over the eigenvalues lambda."""
    return float(np.abs(1 - rate * np.linalg.eigvals(gradient.matrix)).max())


def in_double(task: Task) -> Task:
    return Task(*(Batch(b.x.double(), b.y.double() if b.y.is_floating_point() else b.y) for b in task))


def flatten(params: Params) -> Array:
    return torch.cat([p.detach().cpu().double().flatten() for p in params.values()]).numpy()


def unflatten(values: Array, like: Params) -> Params:
    parts = torch.from_numpy(values).split([p.numel() for p in like.values()])
    return {name: part.view(p.shape).to(p.device) for part, (name, p) in zip(parts, like.items(), strict=True)}
