r"""The ends of the spectrum of a symmetric map of parameter space, by Lanczos with full reorthogonalisation.

    q_1 = start / |start|;   b_j q_{j+1} = A q_j - a_j q_j - b_{j-1} q_{j-1},   a_j = <q_j, A q_j>
    T_m = tridiag(b, a, b),  T_m s = h s   ->   Ritz value h, unit Ritz vector v = [q_1 .. q_m] s
    residual  |A v - h v| = b_m |s_m|: an eigenvalue of A lies within that distance of h

Both ends are found from inside: the largest Ritz value never exceeds the largest eigenvalue, the smallest is never
below the smallest one. The number of steps m is fixed, because `vmap` allows no data-dependent stop. Where A q_j lies
within the span of what came before (b_j is 0 up to rounding), that span is invariant and its Ritz values are
eigenvalues. The rows that the remaining steps add to T are then cut off from the others and hold a_1, which lies
between the extreme Ritz values and so changes neither.

Source: Lanczos 1950; for networks PyHessian (Yao et al. 2020, arXiv 1912.07145). Vectors here are flat, [D], with D the
number of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.compute.linalg import flatten, unflatten
from metarun.types import Params

ROUNDING = 10.0
"""Multiples of the machine's precision, relative to the map's norm, below which a new direction is rounding error."""


class Ritz(NamedTuple):
    """Both ends of a spectrum, each with |A v - h v| of its unit Ritz vector v."""

    largest: Tensor
    smallest: Tensor
    residual_largest: Tensor
    residual_smallest: Tensor

    @property
    def size(self) -> Tensor:
        """The larger modulus: an estimate of |A|_2, from below."""
        return torch.maximum(self.largest.abs(), self.smallest.abs())


def extremes(product: Callable[[Params], Params], start: Params, steps: int) -> Ritz:
    """Return both ends of the spectrum of v -> A v on dictionaries, from `start` (not 0) and min(steps, D) products."""
    return lanczos(lambda q: flatten(product(unflatten(q, start))), flatten(start), steps)


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Ritz:
    """Return the same of a map of flat vectors [D]."""
    basis = (start / start.norm())[None]  # rows
    a: list[Tensor] = []
    b: list[Tensor] = []
    dropped: list[Tensor] = []
    size, intact = torch.zeros_like(basis[0, 0]), torch.ones_like(basis[0, 0])  # |A| so far; 0 after a breakdown
    count = min(steps, len(start))
    for j in range(count):
        q = basis[-1]
        w = product(q)
        size = torch.maximum(size, w.norm())
        a.append(torch.where(intact > 0, q @ w, a[0]) if j else q @ w)
        w = orthogonalize(orthogonalize(w, basis), basis)  # twice, against rounding errors (Giraud et al. 2005)
        length = w.norm()
        kept = intact * (length > ROUNDING * torch.finfo(w.dtype).eps * size) * (j < count - 1)
        dropped.append((intact - kept) * length)
        intact = kept
        b.append(intact * length)
        if j < count - 1:
            basis = torch.cat([basis, (intact / torch.where(length > 0, length, 1.0) * w)[None]])
    return ends(torch.stack(a), torch.stack(b)[:-1], torch.stack(dropped))


def ends(a: Tensor, b: Tensor, dropped: Tensor) -> Ritz:
    """Return both ends of T, with diagonal a [m] and off-diagonal b [m - 1]; NaN if T is not finite. `dropped` [m] is
    the length of the part of each A q_j that lies outside the basis."""
    t = torch.diag(a) + torch.diag(b, 1) + torch.diag(b, -1)
    finite = t.isfinite().all()
    values, vectors = torch.linalg.eigh(torch.where(finite, t, 0.0))  # raises at a NaN
    residuals = (dropped[:, None] * vectors).norm(dim=0)
    ritz = (values[-1], values[0], residuals[-1], residuals[0])
    return Ritz(*(torch.where(finite, v, torch.nan) for v in ritz))


def orthogonalize(w: Tensor, basis: Tensor) -> Tensor:
    """Return w without its part in the span of the orthonormal rows of a basis."""
    return w - (basis @ w) @ basis


def directions(like: Params, count: int, seed: int) -> list[Params]:
    """Draw random unit vectors, the same for the same seed on every device and in every precision."""
    generator = torch.Generator().manual_seed(seed)
    vectors = []
    for _ in range(count):
        normal = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in like.items()}
        length = flatten(normal).norm()
        vectors.append({k: (v / length).to(like[k]) for k, v in normal.items()})
    return vectors
