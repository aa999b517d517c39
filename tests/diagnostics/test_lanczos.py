"""Ends of spectra against dense eigenvalues of matrices."""

from __future__ import annotations

import pytest
import torch
from helpers.quadratic import assert_same
from torch import Tensor
from torch.func import vmap

from metarun.compute.linalg import flatten, unflatten
from metarun.diagnostics.lanczos import Ritz, directions, lanczos


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=draw, dtype=torch.float64)).Q
    return basis @ torch.diag(eigenvalues.double()) @ basis.T


def start(size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_matrix(a: Tensor, steps: int, q: Tensor | None = None) -> Ritz:
    return lanczos(lambda v: a @ v, start(len(a)).to(a) if q is None else q, steps)


def by_projection(a: Tensor, steps: int) -> Ritz:
    """Rayleigh and Ritz on an orthonormal basis of the Krylov space, the residuals computed as |A v - h v|."""
    columns = [start(len(a))]
    for _ in range(steps - 1):
        columns.append(a @ columns[-1] / columns[-1].norm())
    basis = torch.linalg.qr(torch.stack(columns, 1)).Q
    values, vectors = torch.linalg.eigh(basis.T @ a @ basis)
    ritz = [basis @ vectors[:, i] for i in (-1, 0)]
    residuals = [(a @ v - h * v).norm() for v, h in zip(ritz, (values[-1], values[0]), strict=True)]
    return Ritz(values[-1], values[0], *residuals)


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_as_many_steps_as_dimensions_give_the_eigenvalues(size: int) -> None:
    eigenvalues = torch.linspace(-3, 5, size) ** 3
    found = of_matrix(symmetric(eigenvalues), 40)
    assert_same(found.largest, eigenvalues.max().double())
    assert_same(found.smallest, eigenvalues.min().double())
    assert float(found.residual_largest + found.residual_smallest) < 1e-9 * float(found.size)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_fewer_steps_give_the_ritz_values_of_the_krylov_space_and_their_true_residuals(steps: int) -> None:
    eigenvalues = torch.linspace(-1, 1, 40) + 4 * (torch.arange(40) == 39)
    a = symmetric(eigenvalues)
    found, expected = of_matrix(a, steps), by_projection(a, steps)
    for actual, known in zip(found, expected, strict=True):
        assert float(actual) == pytest.approx(float(known), rel=1e-6, abs=1e-9)
    assert float(found.residual_smallest) > 1e-3  # honest: far from converged
    assert float(found.largest) <= 5 + 1e-12
    assert float(found.smallest) >= -1 - 1e-12
    for h, residual in ((found.largest, found.residual_largest), (found.smallest, found.residual_smallest)):
        assert float((eigenvalues - h).abs().min()) <= float(residual) + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_invariant_subspace_gives_its_eigenvalues_and_no_others(dtype: torch.dtype) -> None:
    """All eigenvalues are at least 2: a spurious 0 from steps after the breakdown would show as the smallest."""
    a = torch.diag(torch.arange(2, 14)).to(dtype)
    q = torch.zeros(12, dtype=dtype)
    q[[3, 5, 8]] = torch.tensor([1.0, 2.0, 0.5], dtype=dtype)
    found = of_matrix(a, 10, q)
    precision = 100 * torch.finfo(dtype).eps
    assert [float(v) for v in found[:2]] == pytest.approx([10, 5], rel=precision)
    assert [float(v) for v in found[2:]] == pytest.approx([0, 0], abs=10 * precision)


def test_a_start_within_rounding_of_an_invariant_subspace_leaves_the_ends_within_the_spectrum() -> None:
    a = symmetric(torch.linspace(2, 9, 12))
    found = of_matrix(a, 10, torch.linalg.eigh(a).eigenvectors[:, [3, 5, 8]].sum(1))
    assert 2 - 1e-12 <= float(found.smallest) <= float(found.largest) <= 9 + 1e-12


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_multiple_of_the_identity_breaks_down_at_once(value: float) -> None:
    found = of_matrix(value * torch.eye(6, dtype=torch.float64), 5)
    assert [float(v) for v in found] == pytest.approx([value, value, 0, 0], abs=1e-12)


def test_repeated_eigenvalues_are_found_once_the_distinct_ones_are_exhausted() -> None:
    found = of_matrix(symmetric(torch.tensor([1.0, 1, 1, 4, 4, 7, 7, 7, 7, 7])), 10)
    assert [float(v) for v in found] == pytest.approx([7, 1, 0, 0], abs=1e-9)


def test_full_reorthogonalisation_keeps_the_small_end_of_a_wide_spectrum() -> None:
    """Once an end has converged, plain Lanczos loses orthogonality and finds it again instead of the other."""
    eigenvalues = 10.0 ** torch.linspace(-4, 3, 60, dtype=torch.float64)
    found = of_matrix(symmetric(eigenvalues), 60)
    assert float(found.smallest) == pytest.approx(1e-4, abs=1e-10)
    assert float(found.residual_smallest) < 1e-9


def test_a_map_that_is_not_finite_gives_nan_and_no_error() -> None:
    for bad in (float("nan"), float("inf")):
        assert all(torch.isnan(v) for v in of_matrix(torch.full((4, 4), bad), 3))


def test_spectra_of_many_maps_at_once_are_those_one_by_one() -> None:
    matrices = torch.stack([symmetric(torch.linspace(-k, 2 * k, 9), k) for k in (1, 2, 3)])
    q = start(9)
    together = vmap(lambda a: of_matrix(a, 5, q)._asdict())(matrices)
    for i, a in enumerate(matrices):
        assert_same({k: v[i] for k, v in together.items()}, of_matrix(a, 5)._asdict())


def test_flat_vectors_and_dictionaries_are_the_same_and_directions_are_unit_and_seeded() -> None:
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    first, second = directions(like, 2, seed=3)
    assert {k: (v.shape, v.dtype) for k, v in first.items()} == {k: (v.shape, v.dtype) for k, v in like.items()}
    assert float(flatten(first).norm()) == pytest.approx(1, abs=1e-6)
    assert abs(float(flatten(first) @ flatten(second))) < 0.9
    assert all(torch.equal(v, first[k]) for k, v in unflatten(flatten(first), like).items())
    again = directions(like, 1, seed=3)[0]
    assert all(torch.equal(first[k], again[k]) for k in like)
