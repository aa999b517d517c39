"""Warnings that a training record gives rise to, each with its rule and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Rule(NamedTuple):
    metric: str
    holds: Callable[[float], bool]
    message: str  # with {value}


RULES = (
    Rule(
        "cg_negative",
        lambda share: share > 0,
        "warning: negative curvature in the conjugate gradient of {value:.0%} of this step's tasks: "
        "I + H/lambda is not positive definite there, so the adapted weights are no minimiser; "
        "raise algo.prox or algo.inner_steps",
    ),
    Rule(
        "cg_residual",
        lambda residual: residual > 1,
        "warning: the conjugate gradient's residual is {value:.2g} of the right-hand side: "
        "the meta-gradient is a rough one; raise algo.cg_steps, algo.prox or algo.cg_damping",
    ),
)


def doubts(values: Mapping[str, float]) -> dict[str, str]:
    """The warnings for one record, by the metric they rest on."""
    met = [rule for rule in RULES if rule.metric in values and rule.holds(values[rule.metric])]
    return {rule.metric: rule.message.format(value=values[rule.metric]) for rule in met}
