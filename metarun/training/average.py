r"""The exponential moving average of the meta-parameters (`train.average=ema`): what validation and the test take.

    m_t = d m_{t-1} + (1 - d) theta_t,   m_0 = 0,   a_t = m_t / (1 - d^t)
    a_t = a_{t-1} + (theta_t - a_{t-1}) (1 - d) / (1 - d^t),   which is the same without m

Symbols: theta_t the meta-parameters after the t-th update, d `train.average_decay`, a_t their average. The weights of
theta_1 ... theta_t in a_t are (1 - d) d^{t-s} / (1 - d^t), and add up to 1: there is no warm-up to choose. Steps that
are left out, since they are not finite, are no updates.

Source: Kingma and Ba 2015, Adam (arXiv 1412.6980), section 7.2, after Polyak and Juditsky 1992.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from metarun.training.evaluation import Evaluation
from metarun.types import Params


@dataclass(frozen=True)
class Average:
    """a_t, of what the outer loop moves, and t."""

    params: Params = field(default_factory=dict)
    updates: int = 0


def update_average(average: Average, moved: Params, decay: float) -> Average:
    """The average with the meta-parameters of one more update."""
    updates = average.updates + 1
    if updates == 1:
        return Average({name: value.clone() for name, value in moved.items()}, 1)
    weight = (1 - decay) / (1 - decay**updates)
    return Average({name: torch.lerp(average.params[name], value, weight) for name, value in moved.items()}, updates)


def average_of(params: Params, average: Average | None) -> Params:
    """The meta-parameters to test: the average of those that have one, the others as they are."""
    return params | average.params if average else params


def evaluate_average(evaluate: Callable[[Params], Evaluation], params: Params, average: Average | None) -> Evaluation:
    """Score the average, and beside it on the same tasks the meta-parameters themselves; these alone without one."""
    found = evaluate(average_of(params, average))
    if average is None:
        return found
    return found._replace(unaveraged=evaluate(params).scores[found.headline])
