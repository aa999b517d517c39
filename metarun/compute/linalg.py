"""Linear algebra on dictionaries of tensors, the vectors of parameter space, and iMAML's linear solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from metarun.types import Metrics, Params


def axpy(a: float | Tensor, x: Params, y: Params) -> Params:
    """a x + y."""
    return {k: y[k] + a * x[k] for k in y}


def sub(x: Params, y: Params) -> Params:
    """x - y."""
    return {k: x[k] - y[k] for k in x}


def scale(a: float | Tensor, x: Params) -> Params:
    """a x."""
    return {k: a * v for k, v in x.items()}


def dot(x: Params, y: Params) -> Tensor:
    """<x, y>, a scalar."""
    return sum_scalars([(x[k] * y[k]).sum() for k in x])


def sum_scalars(values: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, 0 of none."""
    values = list(values)
    return torch.stack(values).sum() if values else torch.zeros(())


def norm(x: Params) -> Tensor:
    """|x|, a scalar."""
    return sqrt(dot(x, x))


def sqrt(x: Tensor) -> Tensor:
    """The square root by operations that round alike on every processor (device.deterministic=portable): torch's own is
    MKL's, whose last bit depends on the maker's name. A step of Heron's corrects the last bit of 1 / rsqrt(x)."""
    root = 1 / x.rsqrt()
    return torch.where((x > 0) & (x < math.inf), (root + x / root) / 2, root)


def flatten(x: Params) -> Tensor:
    """Concatenate all entries to one vector."""
    return torch.cat([v.reshape(-1) for v in x.values()])


def unflatten(vector: Tensor, like: Params) -> Params:
    """Split a vector into the shapes of `like`; the inverse of `flatten`."""
    parts = vector.split([v.numel() for v in like.values()])
    return {k: part.view(v.shape) for (k, v), part in zip(like.items(), parts, strict=True)}


def split_layers(x: Params) -> dict[str, Params]:
    """The tensors of each layer by their last names: block0 -> weight, shift, gain."""
    layers: dict[str, Params] = {}
    for name, value in x.items():
        layer, _, last = name.rpartition(".")
        layers.setdefault(layer or name, {})[last] = value
    return layers


def layer_norms(x: Params) -> dict[str, float]:
    """|x| of each layer, of all its tensors together, by the layer's name."""
    return {layer: float(norm(tensors)) for layer, tensors in split_layers(x).items()}


def select(mask: Tensor, x: Params, y: Params) -> Params:
    """x where the scalar boolean holds, else y; `vmap` knows no `if`."""
    return {k: torch.where(mask, x[k], y[k]) for k in x}


def gradient(objective: Callable[[Params], Tensor], at: Params) -> Params:
    """The gradient of a scalar."""
    return gradients(lambda at: (objective(at), {}), at)[0][0]


def gradients(objective: Callable[..., tuple[Tensor, Any]], *at: Params) -> tuple[tuple[Params, ...], Any]:
    """The gradient of a scalar by each argument, and the auxiliary tensors that the objective returns.

    It is a pull-back after the objective has returned: `torch.func.grad` differentiates while its own level is still
    open, and so records how the gradient itself could be differentiated at that level. That graph is never used, and
    for MAML it takes as much memory as all the rest. Levels further out record what they need either way.
    """
    output: Any = vjp(objective, *at, has_aux=True)
    value, pullback, aux = output
    return pullback(torch.ones_like(value), retain_graph=False), aux


def differentiate(outer: Callable[[Params], tuple[Tensor, Metrics]], at: Params) -> tuple[Params, Metrics]:
    """Gradient and metrics of theta -> (loss, metrics)."""
    (grads,), metrics = gradients(outer, at)
    return grads, metrics


def hessian_product(objective: Callable[[Params], Tensor], at: Params) -> Callable[[Params], Params]:
    """v -> H v, where H is the Hessian of `objective` at `at`.

    H is symmetric, so the vector-Jacobian product of the gradient is H v. Its graph is recorded once
    and each product costs one backward pass through it.
    """
    return gradient_and_hvp(objective, at)[1]


def gradient_and_hvp(objective: Callable[[Params], Tensor], at: Params) -> tuple[Params, Callable[[Params], Params]]:
    """The gradient of `objective` at `at`, and `hessian_product`, which computes it anyway."""
    slope, pullback = vjp(lambda at: gradient(objective, at), at)[:2]
    return slope, lambda v: pullback(v)[0]


def gauss_newton(
    outputs: Callable[[Params], Tensor], loss: Callable[[Tensor], Tensor], at: Params
) -> tuple[Params, Callable[[Params], Params]]:
    """The gradient of loss(outputs(.)) at `at`, and v -> G v with G = J' L J (Schraudolph 2002).

    J is the Jacobian of the outputs and L the Hessian of the loss by them. G is the Hessian without the curvature of
    the outputs: for a loss that is convex in the outputs it has no negative eigenvalue.
    """
    z, transposed = vjp(outputs, at)[:2]  # u -> J' u, a linear map whose own transpose is v -> J v
    forth = vjp(lambda u: transposed(u)[0], torch.zeros_like(z))[1]
    slope, curvature = vjp(lambda z: vjp(loss, z)[1](torch.ones_like(loss(z)))[0], z)[:2]
    return transposed(slope)[0], lambda v: transposed(curvature(forth(v)[0])[0])[0]


class Solution(NamedTuple):
    x: Params
    residual: Tensor  # |A x - b| / |b|
    min_curvature: Tensor  # least p'Ap / p'p met on the way; negative: A is not positive definite


def conjugate_gradient(product: Callable[[Params], Params], b: Params, steps: int) -> Solution:
    """Solve A x = b with a fixed number of conjugate-gradient steps from x = 0.

    `product` is v -> A v with A symmetric. The count is fixed because `vmap` allows no data-dependent stop. A direction
    p with p'Ap <= 0 shows that A is not positive definite, where a further step would leave the minimiser for a saddle:
    the iterate is frozen there, and `min_curvature` is not positive. If that is the very first direction, x = b is
    returned (for iMAML the first-order meta-gradient) and not 0. A product that is not finite makes x NaN, which the
    caller can detect.
    """
    x = scale(0.0, b)
    r = p = b
    rr = dot(r, r)
    tiny = torch.finfo(rr.dtype).tiny
    active = rr > tiny  # r = 0 means solved: dividing by it would give NaN
    curvature = torch.full_like(rr, torch.inf)
    for k in range(steps):
        ap = product(p)
        pap, pp = dot(p, ap), dot(p, p)
        curvature = torch.where(active, torch.minimum(curvature, pap / pp.clamp_min(tiny)), curvature)
        if k == 0:
            x, r = select(pap > 0, x, b), select(pap > 0, r, sub(b, ap))
        active = active & (pap > 0)
        step = torch.where(active, rr / torch.where(active, pap, 1.0), 0.0)
        x, r = axpy(step, p, x), axpy(-step, ap, r)
        rr_next = dot(r, r)
        p = axpy(rr_next / rr.clamp_min(tiny), p, r)
        rr, active = rr_next, active & (rr_next > tiny)
    # A product that was not finite leaves its trace in r, but not always in x, which may be b or an earlier iterate.
    residual = norm(r) / norm(b).clamp_min(tiny)
    x = select(residual.isfinite(), x, scale(torch.nan, x))
    return Solution(x, residual, curvature)


def neumann_series(product: Callable[[Params], Params], b: Params, steps: int, rate: float | Tensor) -> Solution:
    """The first terms of a Neumann series for A x = b:  x = rate sum_{j < steps} (I - rate A)^j b.

    It converges for 0 < A < 2 / rate, to b / A. `product` is v -> A v. The residual is |(I - rate A)^steps b| / |b|, so
    `steps` terms take `steps` products, as in `conjugate_gradient`.
    """
    tiny = torch.finfo(dot(b, b).dtype).tiny
    term, total, curvature = b, scale(0.0, b), torch.full_like(dot(b, b), torch.inf)
    for _ in range(steps):
        total = axpy(1.0, term, total)
        image = product(term)
        curvature = torch.minimum(curvature, dot(term, image) / dot(term, term).clamp_min(tiny))
        term = axpy(-rate, image, term)
    return Solution(scale(rate, total), norm(term) / norm(b).clamp_min(tiny), curvature)
