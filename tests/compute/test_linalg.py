"""Hessian products against dense Hessians, and conjugate gradient against its textbook properties."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.quadratic import EXACT, LinearModel, assert_same
from helpers.quadratic import hessian as linear_hessian
from helpers.quadratic import random_task as linear_task
from torch import Tensor
from torch.func import vmap

from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.compute.linalg import (
    Solution,
    axpy,
    conjugate_gradient,
    dot,
    gauss_newton,
    gradient_and_hvp,
    hessian_product,
    neumann_series,
    norm,
    scale,
    select,
    sqrt,
    sub,
    sum_scalars,
)
from metarun.models.mlp import mlp
from metarun.types import Params

SIZE = 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(params: Params) -> Tensor:
    return torch.cat([p.flatten() for p in params.values()])


def unflat(vector: Tensor, like: Params) -> Params:
    parts = vector.split([p.numel() for p in like.values()])
    return {k: part.view_as(p) for part, (k, p) in zip(parts, like.items(), strict=True)}


def with_eigenvalues(values: list[float], seed: int = 0) -> Tensor:
    """A symmetric matrix Q diag(values) Q^T with a random orthogonal Q."""
    q, _ = torch.linalg.qr(random(len(values), len(values), seed=seed))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


def solve(a: Tensor, b: Tensor, steps: int) -> Solution:
    """conjugate_gradient on a plain matrix; the vector is cut in two tensors to exercise the dictionary algebra."""
    cut = len(b) // 2

    def product(v: Params) -> Params:
        av = a @ torch.cat([v["head"], v["tail"]])
        return {"head": av[:cut], "tail": av[cut:]}

    found = conjugate_gradient(product, {"head": b[:cut], "tail": b[cut:]}, steps)
    return Solution(flat(found.x), found.residual, found.min_curvature)


def textbook(a: Tensor, b: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """The algorithm of Hestenes and Stiefel with a plain `break`: the iterate, and the Rayleigh quotients met.

    It stops before a step along a direction of curvature <= 0, or at once with x = b if that is the first one.
    """
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    quotients: list[float] = []
    for k in range(steps):
        if float(r @ r) == 0:
            break
        curvature = float(p @ a @ p)
        quotients.append(curvature / float(p @ p))
        if curvature <= 0:
            return (b if k == 0 else x), quotients
        alpha = float(r @ r) / curvature
        x = x + alpha * p
        r_next = r - alpha * a @ p
        p = r_next + float(r_next @ r_next) / float(r @ r) * p
        r = r_next
    return x, quotients


def relative_residual(a: Tensor, x: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a @ x - b) / torch.linalg.vector_norm(b)


def test_dictionary_algebra_equals_algebra_on_the_concatenated_vector() -> None:
    """A dictionary of tensors is one vector of parameter space: every operation commutes with concatenation."""
    x = {"w": random(2, 3, seed=1), "b": random(3, seed=2)}
    y = {"w": random(2, 3, seed=3), "b": random(3, seed=4)}
    assert_same(flat(axpy(0.7, x, y)), 0.7 * flat(x) + flat(y))
    assert_same(flat(sub(x, y)), flat(x) - flat(y))
    assert_same(flat(scale(-3.0, x)), -3 * flat(x))
    assert_same(dot(x, y), flat(x) @ flat(y))
    assert_same(norm(x), torch.linalg.vector_norm(flat(x)))
    assert_same(select(torch.tensor(True), x, y), x)
    assert_same(select(torch.tensor(False), x, y), y)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_hessian_product_equals_the_dense_hessian_times_the_vector(kind: str) -> None:
    """H v with H from torch.func.hessian (forward over reverse) on the flattened parameters of a small network."""
    model = mlp((3,), 2, (4,), "none")
    at = {k: p.double() for k, p in model.init(0).items()}
    x = random(8, 3, seed=1)
    y = torch.arange(8) % 2 if kind == "classification" else random(8, 2, seed=2)
    loss = CrossEntropy() if kind == "classification" else MeanSquaredError()

    def objective(params: Params) -> Tensor:
        return loss(model.apply(params, x), y)

    dense = torch.func.hessian(lambda vector: objective(unflat(vector, at)))(flat(at))
    product = hessian_product(objective, at)
    assert_same(gradient_and_hvp(objective, at)[0], torch.func.grad(objective)(at))
    for seed in range(3):
        v = random(len(dense), seed=10 + seed)
        assert_same(flat(product(unflat(v, at))), dense @ v)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_gauss_newton_equals_the_dense_product_of_jacobians(kind: str) -> None:
    """G v with G = J' L J, J forward over the flattened parameters, L = (diag p - p p') / n or 2 / (n d) by hand."""
    model, rows, width = mlp((3,), 2, (4,), "batch"), 8, 2
    at = {k: p.double() for k, p in model.init(0).items()}
    x = random(rows, 3, seed=1)
    y = torch.arange(rows) % 2 if kind == "classification" else random(rows, width, seed=2)
    loss = CrossEntropy() if kind == "classification" else MeanSquaredError()
    j = torch.func.jacfwd(lambda vector: model.apply(unflat(vector, at), x).flatten())(flat(at))
    by_output = torch.eye(rows * width, dtype=torch.float64) * 2 / (rows * width)
    if kind == "classification":
        p = model.apply(at, x).softmax(1)
        by_output = torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / rows
    slope, product = gauss_newton(lambda params: model.apply(params, x), lambda z: loss(z, y), at)
    assert_same(slope, torch.func.grad(lambda params: loss(model.apply(params, x), y))(at))
    for seed in range(3):
        v = random(len(flat(at)), seed=10 + seed)
        assert_same(flat(product(unflat(v, at))), j.T @ (by_output @ (j @ v)))
        assert float(v @ flat(product(unflat(v, at)))) >= 0


def test_a_total_is_the_sum_of_scalars_and_0_of_none() -> None:
    assert float(sum_scalars(torch.tensor(float(k)) for k in (1, 2, 4))) == 7
    assert float(sum_scalars([])) == 0


def test_hessian_product_of_a_mean_squared_error_is_two_over_n_times_the_gram_matrix() -> None:
    """L = |X w - y|^2 / n has H = (2 / n) X^T X, wherever it is taken."""
    model = LinearModel(4, 1)
    support = linear_task(model, 0).support
    product = hessian_product(lambda p: MeanSquaredError()(model.apply(p, support.x), support.y), model.init(0))
    v = random(4, 1, seed=5)
    assert_same(product({"w": v})["w"], linear_hessian(support, bias=False) @ v)


def test_conjugate_gradient_is_exact_after_as_many_steps_as_dimensions() -> None:
    """The Krylov space of a generic b fills all D dimensions after D steps, so x_D = A^{-1} b."""
    a = with_eigenvalues([1.0, 1.5, 2.0, 3.0, 4.0, 5.0])
    b = random(SIZE, seed=1)
    found = solve(a, b, SIZE)
    assert_same(found.x, torch.linalg.solve(a, b))
    assert float(found.residual) < EXACT


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_conjugate_gradient_is_the_best_point_of_the_krylov_space(steps: int) -> None:
    """x_k minimises (1/2) x'Ax - b'x over span(b, Ab, ..., A^{k-1} b): x_k = V (V'AV)^{-1} V'b, V a basis of it."""
    a = with_eigenvalues([0.5, 1.0, 2.0, 3.0, 4.0, 6.0])
    b = random(SIZE, seed=2)
    krylov = torch.stack([torch.linalg.matrix_power(a, j) @ b for j in range(steps)], 1)
    v, _ = torch.linalg.qr(krylov)
    assert_same(solve(a, b, steps).x, v @ torch.linalg.solve(v.T @ a @ v, v.T @ b))


@pytest.mark.parametrize("steps", [1, 2, 4, SIZE])
def test_reported_residual_is_that_of_the_returned_solution(steps: int) -> None:
    """The recursion r <- r - alpha A p must still be b - A x at the end; relative to |b| = |r_0|."""
    a = with_eigenvalues([0.5, 1.0, 2.0, 3.0, 4.0, 6.0])
    b = 17.0 * random(SIZE, seed=3)
    found = solve(a, b, steps)
    torch.testing.assert_close(found.residual, relative_residual(a, found.x, b), rtol=EXACT, atol=1e-12)


def test_more_steps_than_dimensions_keep_the_solution() -> None:
    """At the solution r is rounding noise: steps along it must neither move x nor divide 0 by 0."""
    a = with_eigenvalues([1.0, 1.5, 2.0, 3.0, 4.0, 5.0])
    b = random(SIZE, seed=1)
    found = solve(a, b, 20 * SIZE)
    assert_same(found.x, torch.linalg.solve(a, b))
    assert 1.0 - EXACT < float(found.min_curvature) < 5.0  # still a Rayleigh quotient of A


def test_an_eigenvector_is_solved_in_one_step_and_then_left_alone() -> None:
    """A b = 2 b: the first step lands on b / 2 with r = 0 exactly, and later steps would divide by |r|^2 = 0."""
    b = torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64)
    found = solve(2 * torch.eye(3, dtype=torch.float64), b, 7)
    assert torch.equal(found.x, b / 2)
    assert float(found.residual) == 0
    assert float(found.min_curvature) == 2


def test_zero_right_hand_side_gives_zero_without_nan() -> None:
    """A 0 = 0; the residual 0 / 0 is reported as 0, and the least quotient of no direction at all is infinite."""
    for values in ([1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]):
        found = solve(with_eigenvalues(values), torch.zeros(4, dtype=torch.float64), 5)
        assert torch.equal(found.x, torch.zeros(4, dtype=torch.float64))
        assert float(found.residual) == 0
        assert float(found.min_curvature) == math.inf


@pytest.mark.parametrize("steps", [1, 2, 3, SIZE])
def test_minimal_curvature_is_the_least_rayleigh_quotient_met(steps: int) -> None:
    """min_k p_k'A p_k / p_k'p_k over the directions of the first `steps` steps."""
    a = with_eigenvalues([0.3, 1.0, 2.0, 3.0, 4.0, 6.0])
    b = random(SIZE, seed=4)
    _, quotients = textbook(a, b, steps)
    assert len(quotients) == steps
    assert float(solve(a, b, steps).min_curvature) == pytest.approx(min(quotients), rel=EXACT)


def test_an_indefinite_matrix_freezes_the_iterate_where_its_curvature_shows() -> None:
    """A step along p with p'Ap < 0 would leave for a saddle: every later count of steps returns the iterate before."""
    a = with_eigenvalues([-0.4, 1.0, 2.0, 3.0, 4.0, 6.0])
    b = random(SIZE, seed=4)
    frozen, quotients = textbook(a, b, SIZE)
    assert 1 < len(quotients) <= SIZE  # negative curvature is met after the first step: the test tests something
    assert quotients[-1] < 0 < min(quotients[:-1])
    for steps in (len(quotients), SIZE, 50):
        found = solve(a, b, steps)
        assert_same(found.x, frozen)
        assert found.x.isfinite().all()
        assert float(found.min_curvature) == pytest.approx(quotients[-1], rel=EXACT)
        torch.testing.assert_close(found.residual, relative_residual(a, frozen, b), rtol=EXACT, atol=1e-12)


def test_negative_curvature_of_the_first_direction_returns_the_right_hand_side() -> None:
    """b'Ab < 0: x = b, and its own residual is reported. For A = -I that is |-b - b| / |b| = 2."""
    b = random(4, seed=6)
    minus = -torch.eye(4, dtype=torch.float64)
    found = solve(minus, b, 5)
    assert torch.equal(found.x, b)
    assert float(found.residual) == pytest.approx(2, rel=EXACT)
    assert float(found.min_curvature) == pytest.approx(-1, rel=EXACT)

    a = with_eigenvalues([-5.0, -4.0, -3.0, 0.1])
    found = solve(a, b, 5)
    assert torch.equal(found.x, b)
    torch.testing.assert_close(found.residual, relative_residual(a, b, b), rtol=EXACT, atol=0.0)


def test_zero_curvature_of_the_first_direction_returns_the_right_hand_side() -> None:
    """b in the null space: p'Ap = 0 would divide by zero. x = b leaves |A b - b| / |b| = 1."""
    a = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    found = solve(a, torch.tensor([0.0, 3.0], dtype=torch.float64), 4)
    assert_same(found.x, torch.tensor([0.0, 3.0], dtype=torch.float64))
    assert float(found.residual) == pytest.approx(1, rel=EXACT)
    assert float(found.min_curvature) == 0


def test_tasks_under_vmap_freeze_independently_and_equal_a_loop() -> None:
    """One batch holds systems that never freeze, freeze later, freeze at the first step, and are solved at once."""
    cases = [
        (with_eigenvalues([1.0, 1.5, 2.0, 3.0, 4.0, 5.0]), random(SIZE, seed=1)),
        (with_eigenvalues([-0.4, 1.0, 2.0, 3.0, 4.0, 6.0]), random(SIZE, seed=4)),
        (with_eigenvalues([-3.0, -2.0, 1.0, 2.0, 3.0, 4.0]), random(SIZE, seed=5)),
        (-torch.eye(SIZE, dtype=torch.float64), random(SIZE, seed=6)),
        (2 * torch.eye(SIZE, dtype=torch.float64), random(SIZE, seed=7)),
        (torch.eye(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64)),
    ]
    met = [len(textbook(a, b, SIZE)[1]) for a, b in cases]
    assert len(set(met)) >= 4, f"the systems should stop at different steps, stopped at {met}"
    a_T, b_T = (torch.stack(part) for part in zip(*cases, strict=True))
    batched = vmap(lambda a, b: tuple(solve(a, b, SIZE)))(a_T, b_T)
    looped = [solve(a, b, SIZE) for a, b in cases]
    for i, (got, expected) in enumerate(zip(batched, zip(*looped, strict=True), strict=True)):
        torch.testing.assert_close(got, torch.stack(expected), rtol=EXACT, atol=1e-12, msg=f"{Solution._fields[i]}")
    assert torch.equal(batched[0][3], b_T[3])


@pytest.mark.parametrize("steps", [1, 2, 5, 400])
def test_a_neumann_series_is_gradient_descent_from_zero(steps: int) -> None:
    """x_k = x_{k-1} - rate (A x_{k-1} - b) from x_0 = 0 has the same terms; many of them solve the system."""
    a, b, rate = with_eigenvalues([0.5, 1.0, 2.0, 3.0, 4.0, 6.0]), random(SIZE, seed=2), 0.3
    x = torch.zeros_like(b)
    for _ in range(steps):
        x = x - rate * (a @ x - b)
    found = neumann_series(lambda v: {"w": a @ v["w"]}, {"w": b}, steps, rate)
    assert_same(found.x["w"], x)
    torch.testing.assert_close(found.residual, relative_residual(a, x, b), rtol=EXACT, atol=1e-12)
    if steps == 400:
        assert_same(found.x["w"], torch.linalg.solve(a, b))


def test_a_square_root_is_one_up_to_rounding_with_its_derivative() -> None:
    x = torch.tensor([0.0, 1e-30, 0.3, 2.0, 1e12, math.inf], dtype=torch.float64)
    known = torch.tensor([math.sqrt(v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sqrt(x), known, rtol=4e-16, atol=0.0)
    slope = vmap(torch.func.grad(sqrt))(x[1:5])
    torch.testing.assert_close(slope, 0.5 / known[1:5], rtol=1e-14, atol=0.0)
