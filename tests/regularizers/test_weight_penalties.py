"""Penalties on weights alone: their values and derivatives, and their proximal operators against minimisers found
in another way. All in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers.quadratic import EXACT, assert_same
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.objective import Regularization, Schedule, Term
from metarun.errors import SettingError
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.models.network import Network
from metarun.regularizers.elastic import Elastic
from metarun.regularizers.group import Group, factors_in_metric, factors_of_one_threshold
from metarun.regularizers.l1 import L1
from metarun.regularizers.l2 import L2
from metarun.types import Batch, Params, Task


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(seed: int = 0) -> Params:
    """A block of three filters, a head, and the entry of another penalty; one filter and some weights are zero."""
    shapes = {"block0.weight": (3, 2, 2), "block0.shift": (3,), "block0.gain": (3,)}
    shapes |= {"head.weight": (2, 3), "head.bias": (2,), "reg.other.log_factor": (3, 3)}
    params = {k: random(*shape, seed=seed + i) for i, (k, shape) in enumerate(shapes.items())}
    for k in ("block0.weight", "block0.shift", "block0.gain"):
        params[k][1] = 0
    params["block0.weight"][0, 0, 0] = params["head.weight"][0, 0] = 0
    return params


def filters(params: Params) -> Tensor:
    """The groups of the example's block, [3, 6]."""
    return torch.cat(
        [params["block0.weight"].flatten(1), params["block0.shift"][:, None], params["block0.gain"][:, None]], 1
    )


# ---------------------------------------------------------------- values and derivatives


def matrices(params: Params) -> Tensor:
    """The entries of the weights of linear maps: what L1 and the elastic net look at by themselves."""
    return torch.cat([params["block0.weight"].flatten(), params["head.weight"].flatten()])


def test_the_values_are_those_of_the_formulas() -> None:
    params = example()
    w = matrices(params)
    everything = torch.cat([v.flatten() for k, v in params.items() if not k.startswith("reg.")])
    assert_same(L1().of(params), w.abs().sum())
    assert_same(L2().of(params), everything.square().sum() / 2)
    assert_same(Elastic(ratio=0.7).of(params), w.abs().sum() + 0.35 * w.square().sum())
    assert_same(Group().of(params), 6**0.5 * filters(params).norm(dim=1).sum())


def test_subgradients_are_zero_at_zero() -> None:
    """sign(0) = 0, and w / |w| of a group of zeros is 0: finite and no pull, exact elsewhere."""
    params = example()
    w, length = params["block0.weight"], filters(params).norm(dim=1)
    assert_same(grad(L1().of)(params)["block0.weight"], w.sign())
    assert_same(grad(Elastic(ratio=0.7).of)(params)["block0.weight"], w.sign() + 0.7 * w)
    found = grad(Group().of)(params)
    factor = 6**0.5 / torch.where(length > 0, length, torch.inf)
    assert_same(found["block0.weight"], factor[:, None, None] * w)
    assert_same(found["block0.shift"], factor * params["block0.shift"])
    assert_same(found["block0.gain"], factor * params["block0.gain"])


PENALTIES = {"l1": L1(), "l2": L2(), "elastic": Elastic(ratio=0.7), "group": Group()}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())
def test_what_is_exempt_has_no_gradient(penalty: Any) -> None:
    """Vectors for L1 and the elastic net, heads for groups, and the entries of penalties for all."""
    exempt = {"l1": ("shift", "gain", "bias"), "elastic": ("shift", "gain", "bias"), "group": ("head",), "l2": ()}
    name = next(k for k, p in PENALTIES.items() if p is penalty)
    for k, g in grad(penalty.of)(example()).items():
        spared = k.startswith("reg.") or any(word in k for word in exempt[name])
        assert bool((g == 0).all()) == spared, k


def test_targets_decide_alone() -> None:
    params = example()
    assert_same(
        L1(targets=("block0.shift", "head")).of(params), sum_abs(params, "block0.shift", "head.weight", "head.bias")
    )
    assert_same(Elastic(ratio=0.0, targets=("head.bias",)).of(params), sum_abs(params, "head.bias"))
    rows = torch.cat([params["head.weight"], params["head.bias"][:, None]], 1)
    assert_same(Group(targets=("head",)).of(params), 2 * rows.norm(dim=1).sum())


def sum_abs(params: Params, *names: str) -> Tensor:
    return torch.cat([params[k].flatten() for k in names]).abs().sum()


@pytest.mark.parametrize("size", [1.0, 1e-100, 1e100])
def test_second_derivatives_of_a_length_are_those_of_the_closed_form(size: float) -> None:
    """Of |w| they are (I - u u^T) / |w|, u = w / |w|, whatever its size; all 0 for a group of zeros."""
    w = size * random(2, 3, seed=5)
    w[1] = 0
    penalty = Group(targets=("a",))
    found = hessian(lambda w: penalty.of({"a.weight": w}) / 3**0.5)(w)
    length = w[0].norm()
    expected = (torch.eye(3).double() - torch.outer(w[0] / length, w[0] / length)) / length
    assert_same(found[0, :, 0], expected)
    assert torch.equal(found[1], torch.zeros(3, 2, 3).double())
    assert torch.equal(found[0, :, 1], torch.zeros(3, 3).double())
    again = jacrev(jacrev(lambda w: penalty.of({"a.weight": w}) / 3**0.5))(w)
    assert_same(again, found)


# ---------------------------------------------------------------- which weights make up a group


def test_groups_are_the_filters_of_blocks_with_shift_and_gain() -> None:
    network = mlp((4,), 3, (5, 6), "batch")
    blocks = [[f"block{i}.weight", f"block{i}.shift", f"block{i}.gain"] for i in range(2)]
    assert Group().layers(network.init(0)) == blocks
    assert Group().target_names(network.init(0)) == blocks[0] + blocks[1]
    assert Group(targets=("block1", "head")).layers(network.init(0)) == [blocks[1], ["head.weight", "head.bias"]]


def test_tensors_with_another_number_of_rows_and_layers_without_a_matrix_are_no_part_of_a_group() -> None:
    weights = {
        "a.weight": torch.ones(4, 2),
        "a.table": torch.ones(3, 4),
        "a.scale": torch.ones(()),
        "b.weight": torch.ones(4),
    }
    assert Group().layers(weights) == [["a.weight"]]
    assert Group().layers({"w": torch.ones(2, 2)}) == []
    assert float(Group().of({"w": torch.ones(2, 2)})) == 0


def test_the_gates_of_context_embeddings_are_no_filters() -> None:
    weights = {"fce.reader.weight": torch.ones(8, 3), "fce.reader.bias": torch.ones(8)}
    assert Group().layers(weights) == []
    assert Group(targets=("fce",)).layers(weights) == [["fce.reader.weight", "fce.reader.bias"]]


NETWORKS = {
    "mlp, batch": mlp((4,), 2, (5, 6), "batch"),
    "mlp, none": mlp((4,), 2, (5, 6), "none"),
    "conv4, batch, max": conv4((1, 16, 16), 2, 4, "batch", "max", "flatten"),
    "conv4, support, stride": conv4((1, 16, 16), 2, 4, "support", "stride", "mean"),
}


def with_dead_unit(network: Network, unit: int) -> Params:
    """Random weights, away from their initial values, with one filter of the second block set to zero."""
    params = {k: v.double() + 0.1 * random(*v.shape, seed=i) for i, (k, v) in enumerate(network.init(0).items())}
    for k in Group(targets=("block1",)).target_names(params):
        params[k][unit] = 0
    return params


def batch_for(network: Network) -> Batch:
    x = random(7, 4, seed=3) if len(network.shapes[0]) == 2 else random(7, 1, 16, 16, seed=3)
    return Batch(x, random(7, 2, seed=4))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_group_of_zeros_is_dead_and_no_inner_loop_wakes_it(network: Network) -> None:
    params, batch = with_dead_unit(network, 2), batch_for(network)
    out = network.activations(params, batch.x)["block1"].view(7, len(params["block1.weight"]), -1)
    assert bool((out[:, 2] == 0).all())
    assert not bool((out == 0).all())
    learner = MAML(network, MeanSquaredError(), 0.05, 3, 3, False)
    phi = learner.adapt(params, batch).params
    for k in Group(targets=("block1",)).target_names(params):
        assert bool((phi[k][2] == 0).all())
        assert not torch.equal(phi[k], params[k])


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_group_of_zeros_can_be_cut_out_of_the_network(network: Network) -> None:
    """Without its row in the second block, and its column in the third layer, the outputs are the same."""
    params, batch = with_dead_unit(network, 2), batch_for(network)
    rows = len(params["block1.weight"])
    kept = [i for i in range(rows) if i != 2]
    cut = {k: v[kept] if k.startswith("block1.") else v for k, v in params.items()}
    onward = "block2.weight" if "block2.weight" in params else "head.weight"
    cut[onward] = cut[onward][:, kept]
    assert_same(network.apply(cut, batch.x), network.apply(params, batch.x))


# ---------------------------------------------------------------- proximal operators


def thresholds_like(params: Params, seed: int = 50) -> Params:
    """One threshold for each weight, spread over a decade and a half."""
    return {k: 0.6 * (random(*v.shape, seed=seed + i)).exp() for i, (k, v) in enumerate(params.items())}


@pytest.mark.parametrize("ratio", [0.0, 0.7])
@pytest.mark.parametrize("adaptive", [False, True])
def test_coordinate_wise_operators_find_the_lowest_point_of_a_grid(ratio: float, adaptive: bool) -> None:
    """|x| + (ratio/2) x^2 + (x - w)^2 / (2 tau), by grids of step 1e-3 around 0; L1 is the elastic net of ratio 0."""
    params = example(seed=20)
    penalty = Elastic(ratio=ratio) if ratio else L1()
    thresholds = thresholds_like(params) if adaptive else 0.4
    found = penalty.shrink(params, thresholds)
    grid = torch.linspace(-4, 4, 8001).double()
    for k in ("block0.weight", "head.weight"):
        w, x = params[k].flatten()[:, None], found[k].flatten()
        tau = (thresholds[k] if isinstance(thresholds, dict) else torch.full_like(params[k], thresholds)).flatten()

        def objective(x: Tensor, w: Tensor = w, tau: Tensor = tau) -> Tensor:
            return x.abs() + ratio / 2 * x.square() + (x - w).square() / (2 * tau[:, None])

        values, at = objective(grid).min(1)
        assert bool((objective(x[:, None])[:, 0] <= values).all())
        assert bool(((x - grid[at]).abs() <= 0.5001e-3).all())
        assert 0 < int((x == 0).sum()) < len(x)


@pytest.mark.parametrize("penalty", [L1(), Elastic()], ids=["l1", "elastic"])
def test_a_soft_threshold_leaves_exact_zeros_and_everything_else_as_it_is(penalty: Any) -> None:
    params = example(seed=30)
    found = penalty.shrink(params, 0.5)
    for k, v in params.items():
        if k in penalty.target_names(params):
            assert torch.equal(found[k] == 0, v.abs() <= 0.5)
            assert bool((found[k].sign() * v.sign() >= 0).all())
        else:
            assert found[k] is v


def lowest(w: Tensor, s: Tensor, steps: int = 1500) -> Tensor:
    """argmin_x |x| + sum_j (x_j - w_j)^2 / (2 s_j) for each row, by projected gradient steps on its dual: x = w - s u
    with u = argmin_{|u| <= 1} (1/2) sum_j s_j u_j^2 - w_j u_j."""
    u = torch.zeros_like(w)
    rate = 1 / s.amax(1, keepdim=True)
    for _ in range(steps):
        u = u - rate * (s * u - w)
        u = u / u.norm(dim=1, keepdim=True).clamp_min(1.0)
    return w - s * u


@pytest.mark.parametrize("n", [1, 2, 6, 30])
def test_the_operator_of_a_group_minimises_its_objective(n: int) -> None:
    """One threshold for each weight, a factor of thirty apart; some weights are zero, some groups vanish."""
    w, s = random(40, n, seed=n), 30 ** uniform(40, n, seed=n + 1) / 10
    w[:10, 0] = 0
    w[10] = 0
    s = s * n**0.5 * torch.linspace(0.2, 3, 40).double()[:, None]
    found, expected = w * factors_in_metric(w, s), lowest(w, s)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    dead = (found == 0).all(1)
    assert 1 < int(dead.sum()) < 40
    assert torch.equal(dead, (w / s).square().sum(1) <= 1)


def test_with_one_threshold_for_all_both_ways_are_the_closed_form() -> None:
    w, tau = random(20, 5, seed=8), 1.8
    w[3] = 0
    length = w.norm(dim=1, keepdim=True)
    expected = torch.where(length > tau, w * (1 - tau / length), 0.0)
    assert 0 < int((expected == 0).all(1).sum()) < 20
    assert_same(w * factors_of_one_threshold(w, tau), expected)
    assert_same(w * factors_in_metric(w, torch.full_like(w, tau)), expected)
    assert_same(w * factors_of_one_threshold(w, tau), lowest(w, torch.full_like(w, tau)), rtol=1e-8)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_layers_groups_are_shrunk_by_thresholds_times_the_root_of_their_size(adaptive: bool) -> None:
    """argmin sum_g sqrt(6) |x_g| + sum_j (x_j - w_j)^2 / (2 tau_j): the dual with s = sqrt(6) tau."""
    params = example(seed=40)
    thresholds = thresholds_like(params) if adaptive else 0.3
    tau = filters(thresholds) if isinstance(thresholds, dict) else torch.full((3, 6), 0.3).double()
    found = Group().shrink(params, thresholds)
    assert_same(filters(found), lowest(filters(params), 6**0.5 * tau, 6000), rtol=1e-7)
    assert bool((filters(found)[1] == 0).all())
    assert bool((filters(found)[2] != 0).any())
    assert all(found[k] is params[k] for k in ("head.weight", "head.bias", "reg.other.log_factor"))
    many = Group().shrink(params, {k: 1e3 * v for k, v in thresholds_like(params).items()} if adaptive else 1e3)
    assert bool((filters(many) == 0).all())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("spread", [1.0, 4.0, 9.0])
def test_the_operator_of_a_group_holds_where_rates_are_decades_apart(
    dtype: torch.dtype, tolerance: float, spread: float
) -> None:
    """Under Adam a weight without gradients has a rate of lr/eps, others one near lr. What a solution must fulfil:
    x_j (1 + s_j / |x|) = w_j, to rounding, and groups vanish where sum_j (w_j / s_j)^2 < 1."""
    w = random(300, 73, seed=1) * (spread / 2 * random(300, 73, seed=3)).exp()
    s = (spread * random(300, 73, seed=2)).exp()
    s = s * (w / s).norm(dim=1, keepdim=True) * torch.linspace(0, 1.3, 300).double()[:, None] ** 2
    x = (w.to(dtype) * factors_in_metric(w.to(dtype), s.to(dtype))).double()
    assert bool(x.isfinite().all())
    length = x.norm(dim=1, keepdim=True)
    alive = (length > 0)[:, 0]
    margin = (w / s.clamp_min(1e-300)).square().sum(1) - 1
    assert torch.equal(alive[margin.abs() > 1e-5], (margin > 0)[margin.abs() > 1e-5])
    back = x * (1 + s / torch.where(length > 0, length, 1.0))
    nearly = length[:, 0] < 1e-3 * w.norm(dim=1)  # the last digits of a length that is next to nothing are rounding
    held = alive & ~nearly
    assert 100 < int(held.sum()) < 300
    torch.testing.assert_close(back[held], w[held], rtol=tolerance, atol=tolerance)


OPERATORS = {
    "l1": lambda w, tau: L1().shrink({"a.weight": w}, {"a.weight": tau})["a.weight"],
    "elastic": lambda w, tau: Elastic().shrink({"a.weight": w}, {"a.weight": tau})["a.weight"],
    "group, one threshold": lambda w, tau: Group().shrink({"a.weight": w}, tau.mean())["a.weight"],
    "group": lambda w, tau: Group().shrink({"a.weight": w}, {"a.weight": tau})["a.weight"],
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_derivatives_of_the_operators_are_those_of_finite_differences(operator: Any) -> None:
    """First and second ones, by weights and thresholds, of rows that live and of rows that vanish."""
    w, tau = random(4, 3, seed=11), 0.1 + 0.2 * uniform(4, 3, seed=12)
    w[1] *= 0.05
    w[2] = 0
    result = operator(w, tau)
    assert bool((result[1:3] == 0).all())
    assert bool((result[0] != 0).any())
    inputs = (w.requires_grad_(), tau.requires_grad_())
    assert torch.autograd.gradcheck(operator, inputs)
    assert torch.autograd.gradgradcheck(operator, inputs)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_nested_transforms_agree_on_the_derivatives_of_the_operators(operator: Any) -> None:
    """Forward over reverse, reverse over reverse, and under vmap: what the trainer and the probes do."""
    w, tau = random(5, 2, 3, seed=13), 0.1 + 0.2 * uniform(2, 3, seed=14)

    def value(w: Tensor) -> Tensor:
        return operator(w, tau).sin().sum()

    found = vmap(hessian(value))(w)
    assert_same(found, torch.stack([jacrev(jacrev(value))(w[i]) for i in range(5)]))
    eps = 1e-6
    up, down = grad(value)(w[0] + eps * w[1]), grad(value)(w[0] - eps * w[1])
    torch.testing.assert_close(
        torch.einsum("ijkl,kl->ij", found[0], w[1]), (up - down) / (2 * eps), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_a_threshold_of_zero_is_the_identity_also_for_derivatives(operator: Any) -> None:
    w = random(4, 3, seed=15)
    w[1], w[2, 0] = 0, 0
    zero = torch.zeros(4, 3).double()
    assert torch.equal(operator(w, zero), w)
    slope = jacrev(operator)(w, zero).view(12, 12)
    assert_same(slope, torch.eye(12).double())


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Elastic(ratio=-1.0), "ratio=-1.0: must be at least 0"),
        (lambda: Elastic(method="ista"), "method=ista: choices: subgradient, prox"),
        (lambda: Group(metric="adam"), "metric=adam: choices: adaptive, plain"),
        (lambda: Group(method="gradient"), "method=gradient: choices: subgradient, prox"),
    ],
)
def test_settings_without_a_meaning_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


# ---------------------------------------------------------------- the implicit gradient with groups that vanish


@dataclass(frozen=True)
class Smooth:
    """Four hidden units with tanh, and a head: no kinks but those of the penalty, which is where minimisers are."""

    def init(self, seed: int) -> Params:
        shapes = {"block0.weight": (4, 2), "block0.shift": (4,), "head.weight": (1, 4), "head.bias": (1,)}
        return {k: random(*shape, seed=10 * seed + i) for i, (k, shape) in enumerate(shapes.items())}

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        h = (x @ params["block0.weight"].T + params["block0.shift"]).tanh()
        return h @ params["head.weight"].T + params["head.bias"]

    def query_stats(self, params: Params, support_x: Tensor) -> None:
        return None


def regression_task() -> Task:
    x = random(17, 2, seed=60)
    y = x[:, :1].sin() + x[:, 1:]
    return Task(Batch(x[:8], y[:8]), Batch(x[8:], y[8:]))


@pytest.mark.parametrize("penalty", [Group(), Elastic(ratio=0.5)], ids=["group", "elastic"])
def test_the_implicit_gradient_of_proximal_steps_is_that_of_their_minimiser(penalty: Any) -> None:
    """iMAML, proximal term and inner proximal steps: finite differences of theta -> L^Q(phi*(theta))."""
    network = Smooth()
    regularization = Regularization((Term("p", penalty, Schedule(0.4), "inner"),))
    learner = IMAML(network, MeanSquaredError(), 1.0, 0.25, 200, 200, 30, 0.0, regularization)
    theta = network.init(7)
    for k in ("block0.weight", "block0.shift"):
        theta[k][1] *= 0.1  # a filter that adaptation sets to zero, or some of its weights
    task = regression_task()
    found, metrics = learner.meta_grad(theta, task)
    assert float(metrics["stationarity"]) < 1e-12
    phi = learner.adapt(theta, task.support).params["block0.weight"]
    assert 0 < int((phi == 0).sum()) < phi.numel()
    flat, unflatten = flattened(theta)
    moved = torch.cat([flat + sign * 1e-5 * torch.eye(len(flat)).double() for sign in (1, -1)])

    def value(row: Tensor) -> Tensor:
        phi = learner.adapt(unflatten(row), task.support).params
        return MeanSquaredError()(network.apply(phi, task.query.x), task.query.y)

    up, down = vmap(value)(moved).chunk(2)
    expected = unflatten((up - down) / 2e-5)
    for k in theta:
        torch.testing.assert_close(found[k], expected[k], rtol=1e-5, atol=1e-8, msg=lambda m, k=k: f"{k}: {m}")


def flattened(params: Params) -> tuple[Tensor, Any]:
    sizes = [v.numel() for v in params.values()]

    def unflatten(row: Tensor) -> Params:
        return {k: part.view(v.shape) for (k, v), part in zip(params.items(), row.split(sizes), strict=True)}

    return torch.cat([v.flatten() for v in params.values()]), unflatten


# ---------------------------------------------------------------- adaptation with proximal steps


@pytest.mark.parametrize("penalty", [L1(), Elastic(), Group()], ids=["l1", "elastic", "group"])
def test_unrolled_adaptation_passes_nothing_through_what_its_last_step_set_to_zero(penalty: Any) -> None:
    """d phi / d theta of three proximal gradient steps: 0 where phi is 0, finite differences elsewhere."""
    network = mlp((2,), 1, (4,), "none")
    weight = 0.2 if isinstance(penalty, Group) else 0.6
    regularization = Regularization((Term("p", penalty, Schedule(weight), "inner"),))
    learner = MAML(network, MeanSquaredError(), 0.1, 3, 3, False, None, regularization)
    theta = {k: v.double() + 0.3 * random(*v.shape, seed=80 + i) for i, (k, v) in enumerate(network.init(0).items())}
    for k in ("block0.weight", "block0.shift"):
        theta[k][1] *= 0.05
    flat, unflatten = flattened(theta)

    support = regression_task().support

    def adapted(row: Tensor) -> Tensor:
        return flattened(learner.adapt(unflatten(row), support).params)[0]

    phi, slopes = adapted(flat), jacrev(adapted)(flat)
    gone = phi == 0
    assert 1 < int(gone.sum()) < 10
    assert bool((slopes[gone] == 0).all())
    eye = 1e-6 * torch.eye(len(flat)).double()
    expected = (vmap(adapted)(flat + eye) - vmap(adapted)(flat - eye)).T / 2e-6
    torch.testing.assert_close(slopes, expected, rtol=1e-6, atol=1e-8)


def test_an_inner_loop_that_moves_only_the_head_leaves_groups_alone() -> None:
    network = mlp((2,), 1, (4,), "none")
    regularization = Regularization((Term("p", Group(), Schedule(10.0), "inner"),))
    learner = MAML(network, MeanSquaredError(), 0.1, 2, 2, False, ("head",), regularization)
    theta = {k: v.double() for k, v in network.init(0).items()}
    support = regression_task().support
    plain = replace(learner, regularization=Regularization()).adapt(theta, support).params
    assert_same(learner.adapt(theta, support).params, plain, rtol=EXACT)
