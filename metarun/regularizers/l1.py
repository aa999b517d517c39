r"""L1: Omega(w) = sum_j |w_j|, by its subgradient or by its proximal operator.

    subgradient   sign(w_j), 0 at 0: pulls towards zero and never stays there; sparsity is then a matter of a threshold
    prox          w_j <- S_tau(w_j) = sign(w_j) max(|w_j| - tau_j, 0) after each step: exact zeros

tau_j = weight * rate_j with `metric=adaptive`, rate_j the step size that the weight's own coordinate had (the
optimizer's rate; under Adam rate / (sqrt(v_hat_j) + eps)): a proximal gradient step in the optimizer's own metric,
which minimises the same objective. `metric=plain` takes the rate itself for all, a decoupled threshold in the manner
of AdamW. Under Reptile's interpolation tau = eps * weight: the weight is in units of parameter distance, not of loss.

In the inner loop the proximal step multiplies each factor of d phi / d theta by the mask 1[|x_j| > tau_j]: coordinates
at zero pass no meta-gradient through that step.

Vectors (biases, shifts and gains of normalisations) are exempt; `targets` names tensors by how their names begin and
then decides alone. Sources: Tibshirani 1996; Beck, Teboulle 2009 (ISTA).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metarun.errors import require
from metarun.regularizers.selection import chosen, linear_map, total
from metarun.types import Params, Rates

METHODS = ("subgradient", "prox")
METRICS = ("adaptive", "plain")


@dataclass(frozen=True)
class L1:
    method: str = "prox"
    metric: str = "adaptive"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_method(self.method, self.metric)

    def of(self, weights: Params) -> Tensor:
        return total([w.abs().sum() for w in chosen(weights, self.targets, linear_map).values()])

    def targeted(self, weights: Params) -> list[str]:
        return list(chosen(weights, self.targets, linear_map))

    def shrink(self, weights: Params, thresholds: Rates) -> Params:
        return weights | {
            name: soft_threshold(weights[name], threshold_of(name, thresholds)) for name in self.targeted(weights)
        }


def check_method(method: str, metric: str) -> None:
    require(method in METHODS, "method", method, "choices: " + ", ".join(METHODS))
    require(metric in METRICS, "metric", metric, "choices: " + ", ".join(METRICS))


def threshold_of(name: str, thresholds: Rates) -> Tensor | float:
    return thresholds[name] if isinstance(thresholds, dict) else thresholds


def soft_threshold(w: Tensor, tau: Tensor | float) -> Tensor:
    """sign(w) max(|w| - tau, 0)."""
    return w.sign() * (w.abs() - tau).clamp_min(0)
