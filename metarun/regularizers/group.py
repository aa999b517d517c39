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

from metarun.compute.linalg import sum_scalars
from metarun.regularizers.l1 import check_method
from metarun.regularizers.selection import chosen
from metarun.types import Params, Rates

NO_FILTERS = ("head", "fce")
"""How the names of layers begin whose rows are not channels that a ReLU follows."""

STEPS = 16
"""Of Newton's method; 12 were the most that groups of up to 577 weights took to 1e-12, spread over ten decades."""


@dataclass(frozen=True)
class Group:
    """sum_g sqrt(n_g) |w_g|_2 over the filters."""

    method: str = "prox"
    metric: str = "adaptive"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_method(self.method, self.metric)

    def of(self, weights: Params) -> Tensor:
        rows = [joined(weights, names) for names in self.layers(weights)]
        return sum_scalars([r.shape[1] ** 0.5 * lengths(r).sum() for r in rows])

    def layers(self, weights: Params) -> list[list[str]]:
        """The names of each layer's tensors that make up its groups, the weight first."""
        names = chosen(weights, self.targets)
        layers = [n.removesuffix(".weight") for n, w in names.items() if n.endswith(".weight") and w.ndim > 1]
        if self.targets is None:
            layers = [layer for layer in layers if not layer.startswith(NO_FILTERS)]
        return [_members(layer, names) for layer in layers]

    def target_names(self, weights: Params) -> list[str]:
        return [name for names in self.layers(weights) for name in names]

    def mask_zeros(self, weights: Params) -> Params:
        masks: Params = {}
        for names in self.layers(weights):
            rows = joined(weights, names)
            gone = (rows == 0).all(1, keepdim=True).expand_as(rows)
            masks |= parted(gone, weights, names)
        return masks

    def shrink(self, weights: Params, thresholds: Rates, limit: float = math.inf) -> Params:
        shrunk: Params = {}
        for names in self.layers(weights):
            rows = joined(weights, names)
            left = remainder(rows, within(thresholds_of(names, thresholds, weights), limit)).expand_as(rows)
            shrunk |= {n: weights[n] * part for n, part in parted(left, weights, names).items()}
        return weights | shrunk


def _members(layer: str, names: Params) -> list[str]:
    """The tensors of the layer that have a row for each row of its weight, the weight first."""
    weight = f"{layer}.weight"
    others = [n for n in names if n.rpartition(".")[0] == layer and n != weight]
    return [weight, *(n for n in others if names[n].shape[:1] == names[weight].shape[:1])]


def joined(weights: Params, names: list[str]) -> Tensor:
    """The groups of a layer as rows [G, n]."""
    return torch.cat([weights[n].flatten(1) if weights[n].ndim > 1 else weights[n][:, None] for n in names], 1)


def parted(rows: Tensor, like: Params, names: list[str]) -> Params:
    """The inverse of `joined`."""
    parts = rows.split([like[n][0].numel() for n in names], 1)
    return {n: part.reshape(like[n].shape) for n, part in zip(names, parts, strict=True)}


def thresholds_of(names: list[str], thresholds: Rates, weights: Params) -> Tensor | float:
    """Those of a layer's weights as rows [G, n], or the one of all."""
    if not isinstance(thresholds, dict):
        return thresholds
    return joined({n: torch.as_tensor(thresholds[n]).expand_as(weights[n]) for n in names}, names)


def within(tau: Tensor | float, limit: float) -> Tensor | float:
    """The thresholds of each row [G, n], together scaled down until the root mean square of limit / tau is 1.

    At a minimum |gradient_g| = weight sqrt(n) <= |sqrt(v)| of a group that is not 0, so that nothing is scaled there.
    """
    if not isinstance(tau, Tensor) or limit == math.inf:
        return tau
    return tau * (limit / positive(tau)).square().mean(1, keepdim=True).sqrt().clamp_max(1.0)


def lengths(rows: Tensor) -> Tensor:
    """|w_g| of each row [G], with derivatives 0 where it is 0. The squares are in units of the row's largest weight, so
    that neither they nor what their derivatives divide by can underflow."""
    largest = rows.detach().abs().amax(1)
    some = largest > 0
    unit = torch.where(some, largest, 1.0)
    square = (rows / unit[:, None]).square().sum(1)
    return torch.where(some, unit * torch.where(some, square, 1.0).sqrt(), 0.0)


def remainder(rows: Tensor, tau: Tensor | float) -> Tensor:
    """What the proximal operator of sum_g sqrt(n) |w_g| multiplies the rows [G, n] with: [G, 1] for one threshold,
    [G, n] for one of each weight."""
    reach = rows.shape[1] ** 0.5 * tau
    return left_in_metric(rows, reach) if isinstance(reach, Tensor) and reach.ndim else left_alike(rows, reach)


def left_alike(rows: Tensor, tau: Tensor | float) -> Tensor:
    """max(1 - tau/|w|, 0) of each row, [G, 1]. A threshold of 0 changes no bit, of the derivatives neither."""
    length = lengths(rows)
    some = length > 0
    left = 1 - torch.where(some, tau / torch.where(some, length, 1.0), 0.0)
    return torch.where(length < tau, 0.0, left)[:, None]


def left_in_metric(rows: Tensor, tau: Tensor) -> Tensor:
    """x_j / w_j of x = argmin |x| + sum_j (x_j - w_j)^2 / (2 tau_j) of each row, all [G, n]."""
    still = (tau == 0).all(1, keepdim=True)
    gone = ((rows / positive(tau)).square().sum(1, keepdim=True) < 1) & ~still
    # What has no root gets one, since derivatives have to be finite there too.
    rows, tau = torch.where(still | gone, 1.0, rows), torch.where(gone, 0.0, tau)
    nu = solved(rows.detach(), tau.detach())
    for _ in range(2):
        nu = newton(nu, rows, tau)
    return torch.where(gone, 0.0, nu / positive(nu + tau))


def solved(rows: Tensor, tau: Tensor) -> Tensor:
    """nu [G, 1] with p(nu)^2 = sum_j w_j^2 / (nu + tau_j)^2 = 1. It starts at max_j |w_j| - tau_j, which is never above
    the root; from there on no term of the sum is above 1, and p is at least 1 but for rounding."""
    nu = (rows.abs() - tau).amax(1, keepdim=True).clamp_min(0)
    for _ in range(STEPS - 2):
        nu = newton(nu, rows, tau)
    return nu


def newton(nu: Tensor, rows: Tensor, tau: Tensor) -> Tensor:
    """One step of Newton's method on 1/p(nu) = 1."""
    reach = positive(nu + tau)
    terms = (rows / reach).square()
    square = terms.sum(1, keepdim=True)
    return (nu + (square.sqrt() - 1) * square / (terms / reach).sum(1, keepdim=True)).clamp_min(0)


def positive(x: Tensor) -> Tensor:
    """x, to divide by: where it is 0, so is what is divided."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)
