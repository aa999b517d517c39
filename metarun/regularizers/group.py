r"""Group lasso over filters: Omega(w) = sum_g sqrt(n_g) |w_g|_2, by its subgradient or by its proximal operator.

A group g is one output channel of a layer: its row of LAYER.weight together with its entry of every other tensor of the
layer with as many rows (shift, gain, bias); n_g counts its weights. A group of zeros is a dead unit: it puts out 0
through normalisation and ReLU, no gradient reaches it, no inner loop wakes it, and it can be cut out of the network
without changing it. Only with norm=group or layer, whose statistics mix channels, the zeros count in those of the
others: such a unit puts out 0 and is yet not without effect or gradient. Heads, whose rows are classes, and the gates
of FCE are no filters: they are left alone unless `targets` names them. Groups are made of what a step is given: an
inner loop that moves part of a layer (`algo.adapted`) shrinks that part.

    subgradient   sqrt(n_g) w_g / |w_g|, 0 at 0
    prox          one threshold: w_g <- max(1 - s/|w_g|, 0) w_g,   s = sqrt(n_g) tau
                  one for each weight, s_j = sqrt(n_g) tau_j: the minimiser of |x| + sum_j (x_j - w_j)^2 / (2 s_j) is
                  x_j = nu w_j / (nu + s_j) with nu = |x| from sum_j w_j^2 / (nu + s_j)^2 = 1,
                  and 0 if sum_j w_j^2 / s_j^2 < 1

tau = weight * rate as for L1 (metric=adaptive: each weight's own rate, under Adam a different one for each, which is
why there is an equation to solve). With p(nu)^2 its left side, 1/p rises and is concave, so that Newton's steps on
1/p = 1 from below, nu + (p - 1) p^2 / sum_j w_j^2/(nu + s_j)^3, rise to the root without passing it. One threshold for
all makes 1/p a line and the first step exact. The last two steps are differentiated: Newton's error being squared by
each, first and second derivatives are those of the root.

Sources: Yuan, Lin 2006 (group lasso, sqrt(n_g)); Wen et al. 2016, arXiv 1608.03665 (filters of networks); Yun, Lozano,
Yang 2021, arXiv 2006.07484 (proximal steps in an optimizer's own metric).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.compute.linalg import sqrt, sum_scalars
from metarun.regularizers.l1 import check_method
from metarun.regularizers.selection import select_tensors
from metarun.types import Params, Rates

NO_FILTERS = ("head", "fce")
"""Name prefixes of the layers whose rows are not channels followed by a ReLU."""

STEPS = 16
"""Steps of Newton's method. Groups of up to 577 weights, spread over ten decades, took at most 12 to reach 1e-12."""


@dataclass(frozen=True)
class Group:
    """sum_g sqrt(n_g) |w_g|_2 over the filters."""

    method: str = "prox"
    metric: str = "adaptive"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_method(self.method, self.metric)

    def of(self, weights: Params) -> Tensor:
        rows = [stack_rows(weights, names) for names in self.layers(weights)]
        return sum_scalars([r.shape[1] ** 0.5 * row_norms(r).sum() for r in rows])

    def layers(self, weights: Params) -> list[list[str]]:
        """The names of each layer's tensors that make up its groups, the weight first."""
        names = select_tensors(weights, self.targets)
        layers = [n.removesuffix(".weight") for n, w in names.items() if n.endswith(".weight") and w.ndim > 1]
        if self.targets is None:
            layers = [layer for layer in layers if not layer.startswith(NO_FILTERS)]
        parts = [(f"{layer}.weight", [n for n in names if n.rpartition(".")[0] == layer]) for layer in layers]
        # Those with one row for each row of the layer's weight.
        return [
            [weight, *(n for n in own if n != weight and names[n].shape[:1] == names[weight].shape[:1])]
            for weight, own in parts
        ]

    def target_names(self, weights: Params) -> list[str]:
        return [name for names in self.layers(weights) for name in names]

    def mask_zeros(self, weights: Params) -> Params:
        masks: Params = {}
        for names in self.layers(weights):
            rows = stack_rows(weights, names)
            gone = (rows == 0).all(1, keepdim=True).expand_as(rows)
            masks |= unstack_rows(gone, weights, names)
        return masks

    def shrink(self, weights: Params, thresholds: Rates, limit: float = math.inf) -> Params:
        shrunk: Params = {}
        for names in self.layers(weights):
            rows = stack_rows(weights, names)
            root = rows.shape[1] ** 0.5
            if isinstance(thresholds, dict):
                taus = {n: torch.as_tensor(thresholds[n]).expand_as(weights[n]) for n in names}
                factors = factors_in_metric(rows, root * limit_thresholds(stack_rows(taus, names), limit))
            else:
                factors = factors_of_one_threshold(rows, root * thresholds).expand_as(rows)
            shrunk |= {n: weights[n] * part for n, part in unstack_rows(factors, weights, names).items()}
        return weights | shrunk


def stack_rows(weights: Params, names: list[str]) -> Tensor:
    """The groups of a layer as rows [G, n]."""
    return torch.cat([weights[n].flatten(1) if weights[n].ndim > 1 else weights[n][:, None] for n in names], 1)


def unstack_rows(rows: Tensor, like: Params, names: list[str]) -> Params:
    """The inverse of `stack_rows`."""
    parts = rows.split([like[n][0].numel() for n in names], 1)
    return {n: part.reshape(like[n].shape) for n, part in zip(names, parts, strict=True)}


def limit_thresholds(tau: Tensor, limit: float) -> Tensor:
    """The thresholds of each row [G, n], scaled down together until the root mean square of limit / tau is 1.

    At a minimum |gradient_g| = weight sqrt(n) <= |sqrt(v)| for each group that is not 0, and nothing is scaled.
    """
    if limit == math.inf:
        return tau
    return tau * sqrt((limit / positive_part(tau)).square().mean(1, keepdim=True)).clamp_max(1.0)


def row_norms(rows: Tensor) -> Tensor:
    """|w_g| of each row [G], with the derivative 0 where it is 0. The squares are in units of the row's largest weight,
    so that neither they nor the denominators of their derivatives underflow."""
    largest = rows.detach().abs().amax(1)
    some = largest > 0
    unit = torch.where(some, largest, 1.0)
    square = (rows / unit[:, None]).square().sum(1)
    return torch.where(some, unit * sqrt(torch.where(some, square, 1.0)), 0.0)


def factors_of_one_threshold(rows: Tensor, tau: Tensor | float) -> Tensor:
    """max(1 - tau/|w|, 0) of each row, [G, 1]. A threshold of 0 changes no bit, nor those of the derivatives."""
    length = row_norms(rows)
    some = length > 0
    left = 1 - torch.where(some, tau / torch.where(some, length, 1.0), 0.0)
    return torch.where(length < tau, 0.0, left)[:, None]


def factors_in_metric(rows: Tensor, tau: Tensor) -> Tensor:
    """x_j / w_j of x = argmin |x| + sum_j (x_j - w_j)^2 / (2 tau_j) of each row, all [G, n]."""
    still = (tau == 0).all(1, keepdim=True)
    gone = ((rows / positive_part(tau)).square().sum(1, keepdim=True) < 1) & ~still
    # Rows without a root get one, since derivatives have to be finite there too.
    rows, tau = torch.where(still | gone, 1.0, rows), torch.where(gone, 0.0, tau)
    # nu [G, 1] with p(nu)^2 = sum_j w_j^2 / (nu + tau_j)^2 = 1. It starts at max_j |w_j| - tau_j, which is never above
    # the root; from there on no term of the sum exceeds 1, and p is at least 1 except for rounding.
    fixed_rows, fixed_tau = rows.detach(), tau.detach()
    nu = (fixed_rows.abs() - fixed_tau).amax(1, keepdim=True).clamp_min(0)
    for _ in range(STEPS - 2):
        nu = newton_step(nu, fixed_rows, fixed_tau)
    for _ in range(2):
        nu = newton_step(nu, rows, tau)
    return torch.where(gone, 0.0, nu / positive_part(nu + tau))


def newton_step(nu: Tensor, rows: Tensor, tau: Tensor) -> Tensor:
    """One step of Newton's method on 1/p(nu) = 1."""
    denominator = positive_part(nu + tau)
    terms = (rows / denominator).square()
    square = terms.sum(1, keepdim=True)
    return (nu + (sqrt(square) - 1) * square / (terms / denominator).sum(1, keepdim=True)).clamp_min(0)


def positive_part(x: Tensor) -> Tensor:
    """x as a denominator, at least the smallest normal number: where x is 0, the numerator is 0 too."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)
