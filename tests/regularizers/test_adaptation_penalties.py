r"""Penalties between theta and phi, in float64: values, derivatives and local forms.

Values are held against torch.distributions and Monte Carlo, derivatives against finite differences and against formulas
written with Jacobians J of the network and Hessians H of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.quadratic import LinearModel, assert_same, gradient, hessian, matrix, random_task
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.func import grad, jacrev, vmap
from torch.func import hessian as hessian_of

from metarun.algorithms.losses import MeanSquaredError, loss_for
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.errors import SettingError, UserError
from metarun.models.mlp import mlp
from metarun.models.network import Network
from metarun.regularizers.entropy import Entropy
from metarun.regularizers.gradient_difference import GradientDifference
from metarun.regularizers.kl import KL
from metarun.regularizers.predictive_kl import PredictiveKL
from metarun.regularizers.prox_l2 import ProxL2
from metarun.types import Batch, Params, PenaltyOptions, optional

WAYS = 3
NETWORKS = {"classification": mlp((2,), WAYS, (4,), "none"), "regression": mlp((2,), 2, (4,), "none")}
KINDS = pytest.mark.parametrize("kind", ["classification", "regression"])
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "reverse"])


def random_params(model: Network, seed: int, spread: float = 0.4) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {
        k: w.double() + spread * torch.randn(w.shape, generator=draw, dtype=torch.float64)
        for k, w in model.init(0).items()
    }


def random_batch(seed: int, rows: int, kind: str) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=draw, dtype=torch.float64)
    return Batch(x, torch.arange(rows) % WAYS if kind == "classification" else x.sin() + x.flip(1))


def adaptation(kind: str = "classification", own: Params | None = None, apart: float = 0.4) -> Adaptation:
    """Two points of a small ReLU network, phi apart from theta, and a task."""
    model = NETWORKS[kind]
    theta, moved = random_params(model, 1), random_params(model, 2, apart)
    phi = {k: theta[k] + moved[k] - model.init(0)[k].double() for k in theta}
    return Adaptation(theta, phi, random_batch(3, 7, kind), random_batch(4, 5, kind), model, loss_for(kind), own or {})


def flat(params: Params) -> Tensor:
    return torch.cat([w.flatten() for w in params.values()])


def unflat(vector: Tensor, like: Params) -> Params:
    parts = vector.split([w.numel() for w in like.values()])
    return {k: part.view_as(w) for (k, w), part in zip(like.items(), parts, strict=True)}


def of_vectors(penalty: Any, at: Adaptation) -> Callable[[Tensor, Tensor], Tensor]:
    """Omega as a function of the vectors theta and phi [P]."""
    return lambda theta, phi: penalty.between(at._replace(theta=unflat(theta, at.theta), phi=unflat(phi, at.phi)))


def partials(penalty: Any, at: Adaptation) -> tuple[Tensor, Tensor, Tensor]:
    """Omega_phi [P], Omega_phiphi [P, P], Omega_phitheta [P, P] (rows phi) by automatic differentiation."""
    omega, theta, phi = of_vectors(penalty, at), flat(at.theta), flat(at.phi)
    by_phi = grad(omega, argnums=1)
    return by_phi(theta, phi), jacrev(by_phi, argnums=1)(theta, phi), jacrev(by_phi, argnums=0)(theta, phi)


def slopes(value: Callable[[Tensor], Tensor], at: Tensor, eps: float = 1e-6) -> Tensor:
    """Central differences along every coordinate."""
    moved = eps * torch.eye(len(at), dtype=at.dtype)
    return vmap(lambda e: (value(at + e) - value(at - e)) / (2 * eps))(moved)


def outputs(at: Adaptation, vector: Tensor) -> Tensor:
    """z [S, d] of the support rows."""
    return at.model.apply(unflat(vector, at.phi), at.support.x)


def jacobian(at: Adaptation, vector: Tensor) -> Tensor:
    """J [S, d, P]."""
    return jacrev(lambda v: outputs(at, v))(vector)


def spread_of(p: Tensor) -> Tensor:
    """D = diag(p) - p p^T of each row, [S, d, d]."""
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


PENALTIES = {
    "kl": KL(0.3, 0.7),
    "forward": PredictiveKL("classification", "forward"),
    "reverse": PredictiveKL("classification", "reverse"),
    "forward on queries": PredictiveKL("classification", "forward", "query"),
    "gaussian": PredictiveKL("regression", std=0.6),
    "gaussian on queries": PredictiveKL("regression", rows="query"),
    "gradient difference": GradientDifference(),
    "gradient difference on queries": GradientDifference("query"),
    "gradient difference of the head": GradientDifference(targets=("head",)),
    "entropy": Entropy(),
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())
def test_gradients_by_theta_and_by_phi_are_those_of_the_value(penalty: Any) -> None:
    at = adaptation("regression" if getattr(penalty, "kind", "") == "regression" else "classification")
    omega, theta, phi = of_vectors(penalty, at), flat(at.theta), flat(at.phi)
    by_theta, by_phi = grad(omega, argnums=(0, 1))(theta, phi)
    torch.testing.assert_close(by_theta, slopes(lambda v: omega(v, phi), theta), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(by_phi, slopes(lambda v: omega(theta, v), phi), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())
def test_before_adaptation_all_derivatives_up_to_the_second_are_finite(penalty: Any) -> None:
    at = adaptation("regression" if getattr(penalty, "kind", "") == "regression" else "classification")
    by_phi, by_phi_twice, crossed = partials(penalty, at._replace(phi=at.theta))
    assert all(part.isfinite().all() for part in (by_phi, by_phi_twice, crossed))
    if not isinstance(penalty, Entropy):
        assert float(by_phi.abs().max()) < 1e-14  # theta is the minimiser
        torch.testing.assert_close(crossed, -by_phi_twice, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- KL of Gaussians over weights


def gaussians(at: Adaptation, s: Params, t: Params) -> tuple[Independent, Independent]:
    """N(phi, s^2) and N(theta, t^2) over all weights."""
    return Independent(Normal(flat(at.phi), flat(s)), 1), Independent(Normal(flat(at.theta), flat(t)), 1)


def filled(at: Adaptation, value: float, **by_prefix: float) -> Params:
    """One number for every weight, or that of a prefix."""
    named = {k: next((v for p, v in by_prefix.items() if k.startswith(p)), value) for k in at.phi}
    return {k: torch.full_like(w, named[k]) for k, w in at.phi.items()}


def test_kl_of_isotropic_gaussians_is_that_of_torch_distributions() -> None:
    at = adaptation()
    expected = kl_divergence(*gaussians(at, filled(at, 0.3), filled(at, 0.7)))
    assert_same(KL(0.3, 0.7).between(at), expected)


def test_kl_of_diagonal_gaussians_is_that_of_torch_distributions() -> None:
    at = adaptation()
    penalty = KL(0.3, 0.7, posterior_stds={"block0": 0.2}, prior_stds={"head": 1.5})
    expected = kl_divergence(*gaussians(at, filled(at, 0.3, block0=0.2), filled(at, 0.7, head=1.5)))
    assert_same(penalty.between(at), expected)


def test_the_longest_prefix_decides_on_a_std() -> None:
    at = adaptation()
    penalty = KL(prior_stds={"head.bias": 0.5, "head": 2.0})
    t = filled(at, 1.0, head=2.0) | {"head.bias": torch.full_like(at.phi["head.bias"], 0.5)}
    assert_same(penalty.between(at), kl_divergence(*gaussians(at, filled(at, 1.0), t)))


@pytest.mark.parametrize("learn", ["scalar", "layer", "diagonal"])
def test_kl_with_learned_stds_is_that_of_torch_distributions(learn: str) -> None:
    at = adaptation()
    penalty = KL(0.3, 0.7, learned=True, learn=learn)
    draw = torch.Generator().manual_seed(5)
    own = {k: v.double() + 0.3 * torch.randn(v.shape, generator=draw) for k, v in penalty.init(at.phi).items()}
    t = {k: own.get("log_std", own.get(f"log_std.{k}")).exp().expand(w.shape) for k, w in at.phi.items()}
    assert_same(penalty.between(at._replace(own=own)), kl_divergence(*gaussians(at, filled(at, 0.3), t)))


@pytest.mark.parametrize("learn", ["scalar", "layer", "diagonal"])
def test_learned_stds_start_from_the_given_ones(learn: str) -> None:
    at = adaptation()
    by_layer = {} if learn == "scalar" else {"head": 1.5}
    fixed, learned = (KL(0.3, 0.7, prior_stds=by_layer, learned=flag, learn=learn) for flag in (False, True))
    assert fixed.init(at.phi) == {}
    torch.testing.assert_close(learned.between(at._replace(own=learned.init(at.phi))), fixed.between(at))


def test_kl_is_the_mean_of_log_q_minus_log_p_under_q() -> None:
    at = adaptation()
    q, p = gaussians(at, filled(at, 0.3), filled(at, 0.7))
    torch.manual_seed(0)
    draws = q.sample((40_000,))
    differences = q.log_prob(draws) - p.log_prob(draws)
    error = float(differences.std()) / math.sqrt(len(draws))
    value = float(KL(0.3, 0.7).between(at))
    assert error < 0.01 * value
    assert abs(float(differences.mean()) - value) < 4 * error


def test_kl_with_equal_fixed_stds_is_the_proximal_term_over_their_square() -> None:
    at, t = adaptation(), 0.7
    assert_same(KL(t, t).between(at), ProxL2().between(at) / t**2)
    for found, expected in zip(partials(KL(t, t), at), partials(ProxL2(), at), strict=True):
        assert_same(found, expected / t**2)


def test_kl_with_unequal_fixed_stds_only_adds_a_constant() -> None:
    at, t = adaptation(), 0.7
    by_phi, by_phi_twice, crossed = partials(KL(0.2, t), at)
    eye = torch.eye(len(by_phi), dtype=by_phi.dtype)
    assert_same(by_phi, (flat(at.phi) - flat(at.theta)) / t**2)
    assert_same(by_phi_twice, eye / t**2)
    assert_same(crossed, -eye / t**2)


def test_the_best_prior_variance_is_that_of_the_posterior_plus_the_squared_distance() -> None:
    at, s = adaptation(), 0.3
    penalty = KL(s, learned=True, learn="diagonal")
    best = {f"log_std.{k}": (s**2 + (at.phi[k] - at.theta[k]).square()).log() / 2 for k in at.phi}
    slope = grad(lambda own: penalty.between(at._replace(own=own)))
    assert all(float(g.abs().max()) < 1e-13 for g in slope(best).values())
    wider = slope({k: v + 0.5 for k, v in best.items()})
    assert_same(wider, {k: torch.full_like(v, 1 - math.exp(-1)) for k, v in wider.items()})


def test_the_best_common_prior_variance_is_a_mean_over_weights() -> None:
    at, s = adaptation(), 0.3
    best = (s**2 + (flat(at.phi) - flat(at.theta)).square().mean()).log() / 2
    slope = grad(lambda own: KL(s, learned=True).between(at._replace(own=own)))({"log_std": best})
    assert abs(float(slope["log_std"])) < 1e-11


def test_targets_limit_a_kl_to_some_tensors() -> None:
    at = adaptation()
    penalty = KL(0.3, 0.7, learned=True, learn="layer", targets=("head",))
    assert set(penalty.init(at.phi)) == {"log_std.head.weight", "log_std.head.bias"}
    by_phi = grad(lambda phi: penalty.between(at._replace(phi=phi, own=penalty.init(phi))))(at.phi)
    assert {k for k, g in by_phi.items() if g.any()} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"posterior_std": 0.0}, "posterior_std"),
        ({"prior_std": float("inf")}, "prior_std"),
        ({"prior_stds": {"head": -1.0}}, "prior_stds"),
        ({"learn": "matrix"}, "learn"),
        ({"learned": True, "prior_stds": {"head": 0.1}}, "learn"),
    ],
)
def test_kl_refuses_stds_that_cannot_be(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingError) as caught:
        KL(**settings)
    assert caught.value.key == key


# ---------------------------------------------------------------- KL of predictions


def log_probabilities(at: Adaptation, rows: str = "support") -> tuple[Tensor, Tensor]:
    """Logits of theta and of phi."""
    x = at.support.x if rows == "support" else at.query.x
    return at.model.apply(at.theta, x), at.model.apply(at.phi, x)


@DIRECTIONS
@pytest.mark.parametrize("rows", ["support", "query"])
def test_predictive_kl_is_that_of_categorical_distributions(direction: str, rows: str) -> None:
    at = adaptation()
    before, after = (Categorical(logits=z) for z in log_probabilities(at, rows))
    expected = kl_divergence(before, after) if direction == "forward" else kl_divergence(after, before)
    assert_same(PredictiveKL("classification", direction, rows).between(at), expected.mean())


def test_the_two_directions_differ() -> None:
    at = adaptation()
    forward, reverse = (PredictiveKL("classification", d).between(at) for d in ("forward", "reverse"))
    assert abs(float(forward - reverse)) > 0.01 * float(forward)


@DIRECTIONS
def test_predictive_kl_of_regression_is_that_of_normal_distributions(direction: str) -> None:
    at, std = adaptation("regression"), 0.6
    before, after = (Independent(Normal(f, std), 1) for f in log_probabilities(at))
    expected = kl_divergence(before, after).mean()
    assert_same(PredictiveKL("regression", direction, std=std).between(at), expected)


@DIRECTIONS
def test_predictive_kl_is_a_mean_of_log_ratios_over_drawn_classes(direction: str) -> None:
    at = adaptation()
    before, after = (Categorical(logits=z) for z in log_probabilities(at))
    p, q = (before, after) if direction == "forward" else (after, before)
    torch.manual_seed(0)
    drawn = p.sample((50_000,))
    ratios = (p.log_prob(drawn) - q.log_prob(drawn)).mean(1)
    error = float(ratios.std()) / math.sqrt(len(ratios))
    value = float(PredictiveKL("classification", direction).between(at))
    assert error < 0.05 * value
    assert abs(float(ratios.mean()) - value) < 4 * error


def test_forward_kl_has_the_derivatives_of_its_table_row() -> None:
    """Omega_phi = J^T (p_phi - p_theta), Omega_pp = J^T D_phi J + (p_phi - p_theta) . d2z,
    Omega_pt = -J_phi^T D_theta J_theta; means over rows."""
    at = adaptation()
    theta, phi, rows = flat(at.theta), flat(at.phi), len(at.support.x)
    p_theta, p_phi = (outputs(at, v).softmax(-1) for v in (theta, phi))
    j_theta, j_phi = jacobian(at, theta), jacobian(at, phi)
    bent = torch.einsum("mi,mipq->pq", p_phi - p_theta, hessian_of(lambda v: outputs(at, v))(phi))
    by_phi, by_phi_twice, crossed = partials(PredictiveKL("classification", "forward"), at)
    assert_same(by_phi, torch.einsum("mip,mi->p", j_phi, p_phi - p_theta) / rows)
    assert_same(by_phi_twice, (torch.einsum("mip,mij,mjq->pq", j_phi, spread_of(p_phi), j_phi) + bent) / rows)
    assert_same(crossed, -torch.einsum("mip,mij,mjq->pq", j_phi, spread_of(p_theta), j_theta) / rows)


def test_reverse_kl_has_the_derivatives_of_its_table_row() -> None:
    """Omega_phi = J^T D_phi (z_phi - z_theta), Omega_pt = -J_phi^T D_phi J_theta; means over rows."""
    at = adaptation()
    theta, phi, rows = flat(at.theta), flat(at.phi), len(at.support.x)
    d_phi = spread_of(outputs(at, phi).softmax(-1))
    j_theta, j_phi = jacobian(at, theta), jacobian(at, phi)
    by_phi, _, crossed = partials(PredictiveKL("classification", "reverse"), at)
    away = outputs(at, phi) - outputs(at, theta)
    assert_same(by_phi, torch.einsum("mip,mij,mj->p", j_phi, d_phi, away) / rows)
    assert_same(crossed, -torch.einsum("mip,mij,mjq->pq", j_phi, d_phi, j_theta) / rows)


def test_gaussian_predictive_kl_has_the_derivatives_of_its_table_row() -> None:
    """Omega_phi = J^T (f_phi - f_theta) / s^2, Omega_pp = (J^T J + (f_phi - f_theta) . d2f) / s^2,
    Omega_pt = -J_phi^T J_theta / s^2; means over rows."""
    at, std = adaptation("regression"), 0.6
    theta, phi, scale = flat(at.theta), flat(at.phi), len(at.support.x) * 0.6**2
    j_theta, j_phi = jacobian(at, theta), jacobian(at, phi)
    away = outputs(at, phi) - outputs(at, theta)
    bent = torch.einsum("mi,mipq->pq", away, hessian_of(lambda v: outputs(at, v))(phi))
    by_phi, by_phi_twice, crossed = partials(PredictiveKL("regression", std=std), at)
    assert_same(by_phi, torch.einsum("mip,mi->p", j_phi, away) / scale)
    assert_same(by_phi_twice, (torch.einsum("mip,miq->pq", j_phi, j_phi) + bent) / scale)
    assert_same(crossed, -torch.einsum("mip,miq->pq", j_phi, j_theta) / scale)


def fisher(at: Adaptation, std: float) -> Tensor:
    """F(theta), a mean over rows."""
    theta = flat(at.theta)
    j = jacobian(at, theta)
    if at.model is NETWORKS["regression"]:
        return torch.einsum("mip,miq->pq", j, j) / std**2 / len(j)
    return torch.einsum("mip,mij,mjq->pq", j, spread_of(outputs(at, theta).softmax(-1)), j) / len(j)


@KINDS
@DIRECTIONS
def test_near_theta_predictive_kl_is_half_the_fisher_form(kind: str, direction: str) -> None:
    """The relative error of (1/2) d^T F d is of the order |d|."""
    at = adaptation(kind)
    penalty, information = PredictiveKL(kind, direction, std=0.6), fisher(at, 0.6)
    errors = [relative_error_at(penalty, at, eps, lambda d: d @ information @ d / 2) for eps in (1e-3, 1e-4)]
    assert errors[0] < 1e-2
    assert errors[1] < 0.11 * errors[0]


def relative_error_at(penalty: Any, at: Adaptation, eps: float, form: Callable[[Tensor], Tensor]) -> float:
    """Of a quadratic form of d = phi - theta, for d = eps times a direction."""
    d = eps * (flat(at.phi) - flat(at.theta))
    found = of_vectors(penalty, at)(flat(at.theta), flat(at.theta) + d)
    return float((found / form(d) - 1).abs())


@DIRECTIONS
def test_certain_predictions_leave_value_and_gradient_finite(direction: str) -> None:
    at = adaptation()
    sure = {k: 1e4 * w for k, w in at.theta.items()}
    penalty = PredictiveKL("classification", direction)
    value = penalty.between(at._replace(phi=sure))
    by_phi = grad(lambda phi: penalty.between(at._replace(phi=phi)))(sure)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in by_phi.values())


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"direction": "both"}, "direction"), ({"rows": "test"}, "rows"), ({"std": 0.0}, "std")],
)
def test_predictive_kl_refuses_settings_that_cannot_be(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingError) as caught:
        PredictiveKL(**settings)
    assert caught.value.key == key


# ---------------------------------------------------------------- gradient difference


def loss_of(at: Adaptation) -> Callable[[Tensor], Tensor]:
    """The support loss of a vector of weights."""
    return lambda v: at.loss(outputs(at, v), at.support.y)


@KINDS
def test_gradient_difference_has_the_derivatives_of_its_table_row(kind: str) -> None:
    """Omega = |d|^2, Omega_phi = 2 H d, Omega_pp = 2 H^2 + 2 D^3 L [d], Omega_pt = -2 H(phi) H(theta)."""
    at = adaptation(kind)
    loss, theta, phi = loss_of(at), flat(at.theta), flat(at.phi)
    d = grad(loss)(phi) - grad(loss)(theta)
    h_theta, h_phi = hessian_of(loss)(theta), hessian_of(loss)(phi)
    third = jacrev(hessian_of(loss))(phi) @ d
    by_phi, by_phi_twice, crossed = partials(GradientDifference(), at)
    assert_same(GradientDifference().between(at), d @ d)
    assert_same(by_phi, 2 * h_phi @ d)
    assert_same(by_phi_twice, 2 * h_phi @ h_phi + 2 * third)
    assert_same(crossed, -2 * h_phi @ h_theta)
    assert float(third.abs().max()) > 1e-3  # otherwise the term would not be tested


@KINDS
def test_near_theta_gradient_difference_is_the_squared_hessian_form(kind: str) -> None:
    at = adaptation(kind)
    h = hessian_of(loss_of(at))(flat(at.theta))
    errors = [relative_error_at(GradientDifference(), at, eps, lambda d: d @ h @ h @ d) for eps in (1e-3, 1e-4)]
    assert errors[0] < 2e-2
    assert errors[1] < 0.11 * errors[0]


def quadratic_adaptation(model: LinearModel, seed: int = 0) -> Adaptation:
    task = random_task(model, seed)
    return Adaptation(model.init(1), model.init(2), *task, model, MeanSquaredError(), {})


def test_gradient_difference_of_a_quadratic_loss_is_exact_and_below_its_bound() -> None:
    """|H d|^2 <= beta^2 |d|^2 with beta the largest eigenvalue of H."""
    at = quadratic_adaptation(LinearModel(4, 1))
    h, d = hessian(at.support, False), matrix(at.phi) - matrix(at.theta)
    found = GradientDifference().between(at)
    assert_same(found, (h @ d).square().sum())
    assert float(found) <= float(torch.linalg.eigvalsh(h)[-1] ** 2 * d.square().sum())


def test_gradient_difference_does_not_see_flat_directions() -> None:
    """Weights of an input that is always 0 move without a penalty."""
    at = quadratic_adaptation(LinearModel(4, 1))
    x = at.support.x * torch.tensor([1.0, 1.0, 1.0, 0.0])
    phi = {"w": at.theta["w"] + torch.tensor([0.0, 0.0, 0.0, 5.0])[:, None]}
    at = at._replace(support=Batch(x, at.support.y), phi=phi)
    assert float(GradientDifference().between(at)) == 0.0
    assert float(ProxL2().between(at)) == 12.5


def test_gradient_difference_of_queries_takes_their_loss() -> None:
    at = quadratic_adaptation(LinearModel(4, 2))
    apart = gradient(at.query, matrix(at.phi), False) - gradient(at.query, matrix(at.theta), False)
    assert_same(GradientDifference("query").between(at), apart.square().sum())


def test_targets_limit_the_gradients_that_are_compared() -> None:
    at = adaptation()
    apart = [grad(lambda w: at.loss(at.model.apply(w, at.support.x), at.support.y))(w) for w in (at.phi, at.theta)]
    expected = sum((apart[0][k] - apart[1][k]).square().sum() for k in ("head.weight", "head.bias"))
    assert_same(GradientDifference(targets=("head",)).between(at), expected)


# ---------------------------------------------------------------- entropy


def test_entropy_is_that_of_categorical_distributions_on_the_queries() -> None:
    at = adaptation()
    before, after = (Categorical(logits=z).entropy().mean() for z in log_probabilities(at, "query"))
    assert_same(Entropy().between(at), after - before)


def test_entropy_has_its_written_gradient_by_the_logits() -> None:
    """dH/dz = -p (ln p + H), here with H of the rows' mean over M."""
    at = adaptation()
    z = log_probabilities(at, "query")[1]
    p = z.softmax(-1)
    h = -(p * p.log()).sum(-1, keepdim=True)
    by_logits = grad(lambda z: Categorical(logits=z, validate_args=False).entropy().mean())(z)
    assert_same(by_logits, -p * (p.log() + h) / len(z))
    pulled = torch.einsum(
        "mip,mi->p", jacrev(lambda v: at.model.apply(unflat(v, at.phi), at.query.x))(flat(at.phi)), by_logits
    )
    assert_same(flat(grad(lambda phi: Entropy().between(at._replace(phi=phi)))(at.phi)), pulled)


def test_entropy_falls_from_ln_n_to_0_when_a_blank_classifier_becomes_certain() -> None:
    at = adaptation()
    blank = {k: 0 * w for k, w in at.theta.items()}
    sure = blank | {"head.bias": torch.tensor([1e3, 0.0, 0.0], dtype=torch.float64)}
    value = Entropy().between(at._replace(theta=blank, phi=sure))
    torch.testing.assert_close(value, torch.tensor(-math.log(WAYS), dtype=torch.float64))
    assert float(Entropy().between(at._replace(theta=sure, phi=blank))) == pytest.approx(math.log(WAYS))
    by_phi = grad(lambda phi: Entropy().between(at._replace(phi=phi)))(sure)
    assert all(g.isfinite().all() for g in by_phi.values())


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("penalty", [PredictiveKL("regression", rows="query"), GradientDifference("query")])
def test_queries_are_refused_inside_of_the_inner_loop(penalty: Any) -> None:
    assert penalty.allowed_where == ("outer",)
    with pytest.raises(UserError, match="rows=query"):
        penalty.between(adaptation("regression")._replace(query=None))


@pytest.mark.parametrize("penalty", [PredictiveKL("regression"), GradientDifference(), KL()])
def test_the_support_set_serves_inner_and_outer(penalty: Any) -> None:
    at = adaptation("regression")
    assert set(optional(penalty, PenaltyOptions, "allowed_where")) == {"inner", "outer", "both"}
    assert_same(penalty.between(at._replace(query=None)), penalty.between(at))


def test_queries_are_normalised_with_each_networks_own_support_statistics() -> None:
    model = mlp((2,), WAYS, (4,), "support")
    at = adaptation()._replace(model=model, theta=random_params(model, 1), phi=random_params(model, 2))
    z = [model.apply(w, at.query.x, model.measure(w, at.support.x)) for w in (at.theta, at.phi)]
    before, after = (Categorical(logits=logits) for logits in z)
    expected = kl_divergence(before, after).mean()
    assert_same(PredictiveKL("classification", rows="query").between(at), expected)
    assert_same(Entropy().between(at), (after.entropy() - before.entropy()).mean())
    without = Categorical(logits=model.apply(at.phi, at.query.x))
    assert float((kl_divergence(before, without).mean() - expected).abs()) > 1e-3
