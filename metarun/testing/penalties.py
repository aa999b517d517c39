"""`check_penalty`: whether a penalty does what inner loops and the trainer count on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from metarun.algorithms.losses import loss_for
from metarun.algorithms.maml import MAML
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.models.mlp import mlp
from metarun.testing.algorithm_checks import place
from metarun.testing.episodes import DATASETS, SPECS, select_task
from metarun.testing.failure import Checks, expect, refuse_unknown_steps, run_checks
from metarun.testing.gradients import are_equal, copy_tensors, draw_direction, expect_close_tensors, expect_slope
from metarun.types import Kind, Params, PenaltyOptions, Task, optional

METHODS = ("of", "between", "across")
TASKS = 3


@dataclass(frozen=True)
class PenaltyCase:
    """A penalty with MAML on a small MLP, in float64."""

    penalty: Any
    learner: MAML
    theta: Params  # a little away from the initial weights
    shift: Params  # of phi
    tasks: Task

    @property
    def params(self) -> Params:
        """A copy of theta, which a penalty may spoil."""
        return {k: v.clone() for k, v in self.theta.items()}

    @property
    def method(self) -> str:
        """of, between or across: what it looks at."""
        return next((name for name in METHODS if hasattr(self.penalty, name)), "")

    def value(self, params: Params, task: Task) -> Tensor:
        """Omega as a function of theta, of one task or (`across`) of all."""
        if self.method == "of":
            return self.penalty.of(params)
        if self.method == "across":
            return self.penalty.across(self.learner, params, task)
        phi = {k: w + 0.3 * w * w + 0.1 * self.shift[k] for k, w in params.items()}  # another function of theta
        init = optional(self.penalty, PenaltyOptions, "init")
        own = init(self.theta) if init else {}
        return self.penalty.between(Adaptation(params, phi, *task, self.learner.model, self.learner.loss, own))

    @property
    def subject(self) -> Task:
        """The task, or the tasks, that `value` takes."""
        return self.tasks if self.method == "across" else select_task(self.tasks, 0)


def check_interface(case: PenaltyCase) -> None:
    """One of the three methods, and a finite scalar."""
    found = [name for name in METHODS if hasattr(case.penalty, name)]
    cause = "of(weights), between(adaptation) or across(learner, params, tasks) returns the unweighted Omega"
    expect(len(found) == 1, f"{type(case.penalty).__name__} has {' and '.join(found) or 'none'} of the methods", cause)
    value = case.value(case.params, case.subject)
    scalar = isinstance(value, Tensor) and value.shape == ()
    what = [*value.shape] if isinstance(value, Tensor) else type(value).__name__
    expect(scalar, f"{case.method} returns {what}, no scalar tensor", "a missing sum(), or float()")
    expect(bool(value.isfinite()), f"{case.method} is not finite", "a logarithm or a root at 0")


def check_purity(case: PenaltyCase) -> None:
    """Weights and tasks stay as they were, and a second call gives the same bits."""
    params = case.params
    before = copy_tensors((params, case.tasks))
    first, second = (case.value(params, case.subject) for _ in range(2))
    same = are_equal((params, case.tasks), before)
    expect(torch.equal(first, second) or not same, f"{case.method} gives another number when called again", "a draw")
    expect(same, f"{case.method} changes its arguments", "an operation in place")


def check_gradient(case: PenaltyCase) -> None:
    """The gradient by theta against central differences."""

    def value(params: Params) -> Tensor:
        return case.value(params, case.subject)

    found = grad(value)(case.params)
    cause = "a detach(), .data or no_grad, or numbers taken out by .item()"
    expect_slope(value, found, case.params, f"the gradient is not the slope of {case.method}", cause)


def check_task_axis(case: PenaltyCase) -> None:
    """`vmap` over tasks with weights of their own equals a loop; `across` sees the tasks together anyway."""
    if case.method == "across":
        return
    weights = [{k: (1 + 0.1 * i) * v for k, v in case.params.items()} for i in range(TASKS)]
    stacked = {k: torch.stack([w[k] for w in weights]) for k in case.params}
    found = vmap(case.value)(stacked, case.tasks)
    for i, own in enumerate(weights):
        expected = case.value(own, select_task(case.tasks, i))
        expect_close_tensors(found[i], expected, f"task {i} under vmap", "a shape that counts on one task")


PENALTY_CHECKS: Checks = {
    "interface": check_interface,
    "purity": check_purity,
    "gradient": check_gradient,
    "task axis": check_task_axis,
}
"""The steps of `check_penalty` by name, in their order."""


def check_penalty(penalty: Any, *, skip: Collection[str] = ()) -> None:
    """Raise AssertionError if a penalty does not do what metarun counts on.

        check_penalty(Spread())

    Args:
        penalty: with one of the methods of `metarun.algorithms.penalty_protocols`.
        skip: names of steps to leave out, of `metarun.testing.penalties.PENALTY_CHECKS`.
    """
    refuse_unknown_steps(skip, PENALTY_CHECKS)
    kinds: tuple[Kind, ...] = optional(penalty, PenaltyOptions, "kinds") or ("regression",)
    kind = kinds[0]
    dataset, spec, placement = DATASETS[kind], SPECS[kind], place()
    network = mlp(dataset.input_shape(), dataset.outputs(spec.ways), (8, 6), "none")
    learner = MAML(network, loss_for(kind), 0.01, inner_steps=2, test_inner_steps=2, first_order=False)
    weights = placement.move_params(network.init(0))
    moved = draw_direction(weights)
    params = {k: w + 0.3 * moved[k] for k, w in weights.items()}  # biases begin at 0, where penalties may have kinks
    tasks = placement.move_task(dataset.episodes("train", 0, 0, range(TASKS), spec))
    case = PenaltyCase(penalty, learner, params, draw_direction(params, 2), tasks)
    run_checks(type(penalty).__name__, PENALTY_CHECKS, case, skip)
