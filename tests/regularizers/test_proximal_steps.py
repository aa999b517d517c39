"""Proximal steps in the trainer's loop: the problems they solve have known solutions, under every optimizer; and a
penalty of weight 0 changes no bit. Everything is driven through `train`, in float64.

    F(W, b) = |X W^T + b - Y|^2 / (2 n),   X [n, D], W [d, D], b [d];   a group is a row of W with its entry of b
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers.quadratic import EXACT, LinearModel, QuadraticTasks, assert_same, random_batch, stack_tasks
from torch import Tensor
from torch.func import grad

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.inner_loop import adam, descend, last, sgd
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.objective import NO_REGULARIZATION, Regularization, Schedule, Term
from metarun.algorithms.protonet import ProtoNet
from metarun.algorithms.reptile import Reptile
from metarun.compute.device import Placement
from metarun.config.schema import OptimConfig, TrainConfig
from metarun.models.mlp import mlp
from metarun.regularizers.elastic import Elastic
from metarun.regularizers.group import Group
from metarun.regularizers.l1 import L1, soft_threshold
from metarun.regularizers.l2 import L2
from metarun.regularizers.prox_l2 import ProxL2
from metarun.training import checkpoint
from metarun.training.evaluation import Evaluation
from metarun.training.loop import outer_step, train
from metarun.training.meta_gradient import build_meta_gradient
from metarun.training.optimizer import apply_update, build_optimizer, learning_rate, step_rates
from metarun.training.run import State, Trainer
from metarun.types import Batch, EpisodeSpec, Metrics, Params, Split, Task

CPU = Placement(torch.device("cpu"), torch.float64, None, False)
SPEC = EpisodeSpec(3, 2, 2)
NAMES = ("block0.weight", "block0.shift")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Silent:
    """A watcher that stops after so many steps and tells nobody."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.step = stop_after, 0

    def on_step(self, state: State) -> None:
        self.step = state.step

    def on_log(self, *_: Any) -> None: ...

    def on_probe(self, *_: Any) -> None: ...

    def on_validation(self, *_: Any) -> None: ...

    def save_checkpoint(self, *_: Any) -> None: ...

    def notify(self, *_: Any) -> None: ...

    def stop_requested(self) -> bool:
        return self.stop_after == self.step


def no_validation(params: Params) -> Evaluation:
    ones = torch.ones(1, 2)
    return Evaluation((0,), ones, ones, 0, False, "")


def regularization_of(penalty: Any, weight: float | Schedule, where: str = "outer") -> Regularization:
    schedule = weight if isinstance(weight, Schedule) else Schedule(weight)
    return Regularization((Term("penalty", penalty, schedule, where),))


def trainer_of(
    algorithm: Any, dataset: Any, regularization: Regularization, optim: OptimConfig, steps: int, tasks: int = 1
) -> Trainer:
    rarely = {"log_every": 10**6, "eval_every": 10**6, "checkpoint_every": 10**6}
    settings = TrainConfig(steps=steps, tasks=tasks, **rarely)
    return Trainer(algorithm, dataset, SPEC, regularization, settings, optim, CPU, 0, no_validation)


# ---------------------------------------------------------------- least squares through the trainer


@dataclass(frozen=True)
class LeastSquares:
    """A learner without adaptation: its meta-gradient is the gradient of F on the support set."""

    start: Params
    model: ClassVar[None] = None
    loss: ClassVar[MeanSquaredError] = MeanSquaredError()
    kinds: ClassVar[tuple[str, ...]] = ("regression",)
    head: ClassVar[bool] = True
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed: int) -> Params:
        return {k: v.clone() for k, v in self.start.items()}

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        value = objective(params, task.support)
        return grad(objective)(params, task.support) | zeros_of_own(params), {"loss": value}


def zeros_of_own(params: Params) -> Params:
    return {k: torch.zeros_like(v) for k, v in params.items() if k not in NAMES}


def objective(params: Params, data: Batch) -> Tensor:
    """F, of the network's weights alone."""
    misses = data.x @ params["block0.weight"].T + params["block0.shift"] - data.y
    return misses.square().sum() / (2 * len(data.x))


@dataclass(frozen=True)
class OneSet:
    """Every task is the same set of rows."""

    data: Batch

    def input_shape(self) -> tuple[int, ...]:
        return (self.data.x.shape[1],)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return stack_tasks([Task(self.data, self.data) for _ in tasks])


def general_design() -> Batch:
    """Thirty rows, six inputs that are correlated and not centred, five outputs of which some hardly depend on them."""
    x = orthogonal_inputs() @ (torch.eye(6).double() + 0.12 * random(6, 6, seed=2)) + 0.2
    w = random(5, 6, seed=3) * torch.tensor([1.0, 0.6, 0.3, 0.1, 0.02]).double()[:, None]
    return Batch(x, x @ w.T + 0.1 * random(30, 5, seed=4) + torch.tensor([0.5, 0.2, -0.1, 0.05, 0.0]).double())


def orthogonal_design() -> Batch:
    """X'X = n I with centred columns: least squares is X'Y/n, and its shift the mean of Y."""
    return Batch(orthogonal_inputs(), general_design().y)


def orthogonal_inputs() -> Tensor:
    columns = torch.cat([torch.ones(30, 1).double(), random(30, 6, seed=5)], 1)
    return torch.linalg.qr(columns)[0][:, 1:] * 30**0.5


START = {"block0.weight": random(5, 6, seed=6), "block0.shift": random(5, seed=7)}


def solved(data: Batch, penalty: Any, weight: float, optim: OptimConfig, steps: int) -> Params:
    """What `train` ends in."""
    trainer = trainer_of(LeastSquares(START), OneSet(data), regularization_of(penalty, weight), optim, steps)
    state = trainer.start()
    assert train(trainer, state, Silent()) == "completed"
    return state.params


def joined(params: Params) -> Tensor:
    """The groups, [5, 7]."""
    return torch.cat([params["block0.weight"], params["block0.shift"][:, None]], 1)


def assert_optimal(params: Params, data: Batch, penalty: Any, weight: float, atol: float) -> None:
    """The KKT conditions: the gradient of F is minus the penalty's where that is differentiable; elsewhere the penalty
    can balance it."""
    slope = {k: g / weight for k, g in grad(objective)(params, data).items()}
    if isinstance(penalty, Group):
        w, g, size = joined(params), joined(slope), 7**0.5
        length = w.norm(dim=1, keepdim=True)
        live = (length > 0)[:, 0]
        torch.testing.assert_close(g[live], (-size * w / length)[live], rtol=0, atol=atol)
        assert bool((g[~live].norm(dim=1) < size).all())
        assert 0 < int(live.sum()) < 5
        return
    w, g = params["block0.weight"], slope["block0.weight"]
    zero = w == 0
    pull = -w.sign() - (penalty.ratio * w if isinstance(penalty, Elastic) else 0)
    torch.testing.assert_close(g[~zero], pull[~zero], rtol=0, atol=atol)
    assert bool((g[zero].abs() < 1).all())
    assert 5 < int(zero.sum()) < 25
    torch.testing.assert_close(slope["block0.shift"], torch.zeros(5).double(), rtol=0, atol=atol)  # exempt


PENALTIES = {"l1": (L1(), 0.2), "elastic": (Elastic(ratio=0.5), 0.2), "group": (Group(), 0.15)}
EACH = pytest.mark.parametrize(("penalty", "weight"), PENALTIES.values(), ids=PENALTIES.keys())
PLAIN = OptimConfig(name="sgd", lr=0.7, schedule="constant")


def minimiser_of(penalty: Any, weight: float) -> Params:
    """On the general design, by the same recursion without a trainer, to the last digits."""
    params = dict(START)
    for _ in range(120):
        slope = grad(objective)(params, general_design())
        params = penalty.shrink({k: v - 0.7 * slope[k] for k, v in params.items()}, 0.7 * weight)
    return params


def test_training_with_proximal_steps_is_the_recursion_of_ista() -> None:
    """W <- S_{lr mu}(W - lr grad F), b <- b - lr grad F, step after step."""
    data, mu, lr = general_design(), 0.2, 0.05
    w, b = START["block0.weight"], START["block0.shift"]
    for _ in range(12):
        misses = data.x @ w.T + b - data.y
        w = soft_threshold(w - lr * misses.T @ data.x / 30, lr * mu)
        b = b - lr * misses.sum(0) / 30
    found = solved(data, L1(), mu, OptimConfig(name="sgd", lr=lr, schedule="constant"), 12)
    assert_same(found, {"block0.weight": w, "block0.shift": b})


@EACH
def test_on_an_orthogonal_design_the_solution_is_that_of_the_closed_form(penalty: Any, weight: float) -> None:
    """The operator applied to the least squares solution, for W, and for W and b together in groups."""
    data = orthogonal_design()
    best = {"block0.weight": data.y.T @ data.x / 30, "block0.shift": data.y.mean(0)}
    w = best["block0.weight"]
    soft = w.sign() * (w.abs() - weight).clamp_min(0)
    length = joined(best).norm(dim=1)
    kept = (1 - 7**0.5 * weight / length).clamp_min(0)
    expected = {
        "l1": best | {"block0.weight": soft},
        "elastic": best | {"block0.weight": soft / (1 + weight * 0.5)},
        "group": {"block0.weight": kept[:, None] * w, "block0.shift": kept * best["block0.shift"]},
    }[type(penalty).__name__.lower()]
    found = solved(data, penalty, weight, PLAIN, 60)
    assert_same(found, expected)
    assert_optimal(found, data, penalty, weight, 1e-9)


@EACH
def test_on_a_general_design_the_solution_fulfils_the_optimality_conditions(penalty: Any, weight: float) -> None:
    found = solved(general_design(), penalty, weight, PLAIN, 60)
    assert_optimal(found, general_design(), penalty, weight, 1e-8)


@EACH
def test_momentum_solves_the_same_problem(penalty: Any, weight: float) -> None:
    """Steps with momentum m add up to lr / (1 - m) times the gradient, and so do their thresholds."""
    optim = OptimConfig(name="sgd", lr=0.3, momentum=0.3, schedule="constant")
    found = solved(general_design(), penalty, weight, optim, 120)
    assert_optimal(found, general_design(), penalty, weight, 1e-8)


@EACH
def test_adam_solves_the_same_problem(penalty: Any, weight: float) -> None:
    """As near as a falling rate leads in so many steps."""
    optim = OptimConfig(name="adam", lr=0.1, schedule="linear")
    found = solved(general_design(), penalty, weight, optim, 300)
    assert_optimal(found, general_design(), penalty, weight, 1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@EACH
def test_the_solution_is_a_fixed_point_of_adam_with_settled_moments(penalty: Any, weight: float, name: str) -> None:
    """m = g, v = g^2 at the minimiser: the step leads away from it, and the proximal step back to the last digits."""
    data = general_design()
    best = minimiser_of(penalty, weight)
    optim = OptimConfig(name=name, lr=0.02, schedule="constant")
    trainer = trainer_of(LeastSquares(best), OneSet(data), regularization_of(penalty, weight), optim, 10**6)
    state = trainer.start()
    for k, g in grad(objective)(best, data).items():
        moments = {"exp_avg": g.clone(), "exp_avg_sq": g.square(), "step": torch.tensor(1e5)}
        state.optimizer.state[state.params[k]] = moments
    outer_step(trainer, state, build_meta_gradient(trainer), Silent())
    for k in NAMES:
        torch.testing.assert_close(state.params[k], best[k], rtol=0, atol=1e-8)
        assert torch.equal(state.params[k] == 0, best[k] == 0)


def test_a_plain_metric_takes_the_rate_itself() -> None:
    """With Adam: theta <- S_{lr mu}(theta after Adam's step), one threshold for all."""
    data, mu, lr = general_design(), 0.2, 0.3
    optim = OptimConfig(name="adam", lr=lr, schedule="constant")
    params = {k: v.clone() for k, v in START.items()}
    optimizer = build_optimizer(optim, params)
    for _ in range(3):
        apply_update(optimizer, params, grad(objective)(params, data), lr)
        params["block0.weight"].copy_(soft_threshold(params["block0.weight"], lr * mu))
    assert_same(solved(data, L1(metric="plain"), mu, optim, 3), params)


def test_a_subgradient_reaches_small_weights_and_no_zeros() -> None:
    """Near the lasso solution, as far as its steps of lr mu allow; zeros would be an accident."""
    data, mu = general_design(), 0.2
    optim = OptimConfig(name="sgd", lr=0.2, schedule="linear")
    found = solved(data, L1(method="subgradient"), mu, optim, 100)["block0.weight"]
    best = minimiser_of(L1(), mu)["block0.weight"]
    assert not bool((found == 0).any())
    torch.testing.assert_close(found, best, rtol=0, atol=0.01)


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_rates_of_adam_are_its_steps_over_its_corrected_mean_of_gradients(name: str, dtype: torch.dtype) -> None:
    """theta moves by rate times m / (1 - beta1^k), in the first steps too, where corrections are small."""
    optim = OptimConfig(name=name, eps=1e-3)
    params = {"w": random(6, seed=1).to(dtype)}
    optimizer, m = build_optimizer(optim, params), torch.zeros(6).double()
    for k, lr in enumerate((0.1, 0.05, 0.2), start=1):
        g, before = random(6, seed=10 + k).to(dtype), params["w"].double().clone()
        apply_update(optimizer, params, {"w": g}, lr)
        m = 0.9 * m + 0.1 * g.double()
        rates = step_rates(optimizer, params, lr)["w"]
        moved = before - params["w"].double()
        rtol = EXACT if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(rates.double() * m / (1 - 0.9**k), moved, rtol=rtol, atol=rtol)
        second = sum(0.001 * 0.999 ** (k - j) * random(6, seed=10 + j).to(dtype).double() ** 2 for j in range(1, k + 1))
        expected = lr / ((second / (1 - 0.999**k)).sqrt() + 1e-3)
        torch.testing.assert_close(rates.double(), expected, rtol=EXACT if dtype == torch.float64 else 1e-6, atol=0)


def test_rates_of_gradient_descent_are_the_rate_and_what_momentum_makes_of_it() -> None:
    """Under a constant gradient the steps tend to lr / (1 - m) times it."""
    for momentum in (0.0, 0.8):
        params, g = {"w": torch.zeros(3).double()}, torch.ones(3).double()
        optimizer = build_optimizer(OptimConfig(name="sgd", momentum=momentum), params)
        for _ in range(120):
            before = params["w"].clone()
            apply_update(optimizer, params, {"w": g}, 0.1)
        assert_same(step_rates(optimizer, params, 0.1) * g, before - params["w"])


@pytest.mark.parametrize("penalty", [L1(), Elastic(), Group()])
def test_a_unit_without_gradients_is_not_gone_at_once_under_adam(penalty: Any) -> None:
    """Its rate, lr / eps, has no bound: its threshold ends at ten times the learning rate. Later steps may end it."""
    params = {"block0.weight": torch.ones(2, 3).double()}
    optimizer = build_optimizer(OptimConfig(name="adam"), params)
    apply_update(optimizer, params, {"block0.weight": torch.zeros(2, 3).double()}, 1e-3)
    found = regularization_of(penalty, 0.1).shrink_outer(params, step_rates(optimizer, params, 1e-3), 1e-3)
    moved = 1 - found["block0.weight"]
    assert float(moved.min()) > 0
    assert float(moved.max()) < 0.03


@pytest.mark.parametrize("penalty", [L1(), Elastic(), Group()])
def test_a_weight_that_the_optimizer_leaves_alone_has_no_step(penalty: Any) -> None:
    """As a head of 0 (`algo.zero_head`), which is no meta-parameter."""
    moved = {"block0.weight": torch.ones(2, 3).double()}
    params = moved | {"head.weight": torch.ones(2, 3).double()}
    optimizer = build_optimizer(OptimConfig(name="adam"), moved)
    apply_update(optimizer, moved, {"block0.weight": torch.ones(2, 3).double()}, 1e-3)
    found = regularization_of(penalty, 0.1).shrink_outer(params, step_rates(optimizer, moved, 1e-3), 1e-3)
    assert_same(found["head.weight"], params["head.weight"])
    assert float((params["block0.weight"] - found["block0.weight"]).min()) > 0


def test_inner_proximal_steps_follow_each_step_of_gradient_descent_and_of_adam() -> None:
    """phi <- S(phi - step) with the threshold weight lr, or weight lr / (sqrt(v_hat) + eps) under Adam."""
    data, mu, lr = general_design(), 0.5, 0.4
    shrink = regularization_of(L1(), mu, "inner").shrink_inner
    for rule in (sgd(lr), adam(lr)):
        phi, v = dict(START), {k: torch.zeros_like(w) for k, w in START.items()}
        for k in range(1, 6):
            g = grad(objective)(phi, data)
            v = {n: 0.999 * v[n] + 0.001 * g[n] ** 2 for n in v}
            adaptive = {n: lr / ((v[n] / (1 - 0.999**k)).sqrt() + 1e-8) for n in v}
            rates = adaptive if rule.rates else dict.fromkeys(v, lr)
            phi = {n: phi[n] - rates[n] * g[n] for n in phi}
            reach = torch.as_tensor(mu * rates["block0.weight"], dtype=torch.float64).clamp_max(10 * lr)
            phi["block0.weight"] = soft_threshold(phi["block0.weight"], reach)
        found = last(descend(lambda p, _: objective(p, data), START, rule._replace(proximal_step=shrink), 5))
        assert_same(found, phi, rtol=1e-8)
        assert bool((found["block0.weight"] == 0).any())


@pytest.mark.parametrize("penalty", [L1(), Group()], ids=["l1", "group"])
def test_reptile_thresholds_by_its_interpolation_times_the_weight(penalty: Any) -> None:
    """theta <- prox_{eps mu}(theta + eps (mean_i phi_i - theta)), eps falling linearly: mu is a distance in weights."""
    dataset, start = QuadraticTasks(LinearModel(6, 5)), START
    learner = Reptile(Rows(start), MeanSquaredError(), "sgd", 0.1, 2, 2, None)
    weight = 0.4 if isinstance(penalty, L1) else 0.6
    regularization = regularization_of(penalty, weight)
    optim = OptimConfig(name="sgd", lr=0.5, schedule="linear")
    trainer = trainer_of(learner, dataset, regularization, optim, 6, tasks=3)
    theta = {k: v.clone() for k, v in start.items()}
    for step in range(6):
        eps, tasks = learning_rate(optim, step, 6), trainer.tasks(step)
        phis = [learner.adapt(theta, Batch(*(leaf[i] for leaf in tasks.support))).params for i in range(3)]
        theta = {k: (1 - eps) * w + eps * sum(phi[k] for phi in phis) / 3 for k, w in theta.items()}
        theta = penalty.shrink(theta, eps * weight)
    state = trainer.start()
    train(trainer, state, Silent())
    assert_same(state.params, theta)
    assert bool((state.params["block0.weight"] == 0).any())


@dataclass(frozen=True)
class Rows:
    """x W^T + b."""

    start: Params

    def init(self, seed: int) -> Params:
        return {k: v.clone() for k, v in self.start.items()}

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return x @ params["block0.weight"].T + params["block0.shift"]

    def query_stats(self, params: Params, support_x: Tensor) -> None:
        return None


# ---------------------------------------------------------------- a weight of 0


@dataclass(frozen=True)
class Labelled:
    """Random inputs of three classes."""

    def input_shape(self) -> tuple[int, ...]:
        return (4,)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return stack_tasks([self._task(torch.Generator().manual_seed(1000 * step + i)) for i in tasks])

    def _task(self, draw: torch.Generator) -> Task:
        y = torch.arange(6) % 3
        support, query = (random_batch(draw, 6, LinearModel(4, 1)).x + y[:, None] for _ in range(2))
        return Task(Batch(support, y), Batch(query, y))


NETWORK = mlp((4,), 3, (5,), "batch")
LOSS = CrossEntropy()
LEARNERS = {
    "maml": MAML(NETWORK, LOSS, 0.1, 2, 2, False),
    "fomaml": MAML(NETWORK, LOSS, 0.1, 2, 2, True),
    "imaml": IMAML(NETWORK, LOSS, 1.0, 0.1, 3, 3, 2, 0.0),
    "reptile": Reptile(NETWORK, LOSS, "adam", 0.01, 2, 2, None),
    "protonet": ProtoNet(mlp((4,), None, (5,), "batch"), LOSS, 3, "euclidean", 1.0),
}
WEIGHTLESS = {
    "l2": L2(),
    "l1 prox": L1(),
    "l1 plain": L1(metric="plain"),
    "l1 subgradient": L1("subgradient"),
    "elastic prox": Elastic(),
    "elastic subgradient": Elastic(method="subgradient"),
    "group prox": Group(),
    "group plain": Group(metric="plain"),
    "group subgradient": Group("subgradient"),
    "prox_l2": ProxL2(),
}


def after_two_steps(learner: Any, regularization: Regularization) -> Params:
    if hasattr(learner, "regularization"):
        learner = replace(learner, regularization=regularization)
    trainer = trainer_of(learner, Labelled(), regularization, OptimConfig(lr=0.05), 2, tasks=2)
    state = trainer.start()
    state.params["block0.weight"][1] = 0  # a filter of zeros, where penalties have kinks
    state.params["block0.weight"][2, 0] = 0
    state.params["block0.shift"][1] = state.params["block0.gain"][1] = 0
    train(trainer, state, Silent())
    return {k: v for k, v in state.params.items() if not k.startswith("reg.")}


@pytest.mark.parametrize("algo", LEARNERS)
def test_a_weight_of_zero_is_no_penalty_to_the_bit(algo: str) -> None:
    """Constant in both loops (there is only one with ProtoNet), and scheduled in the outer one."""
    plain = after_two_steps(LEARNERS[algo], NO_REGULARIZATION)
    where = "outer" if algo == "protonet" else "both"
    for name, penalty in WEIGHTLESS.items():
        if algo == "protonet" and name == "prox_l2":
            continue  # there is no adaptation to penalise
        always = regularization_of(penalty, 0.0, where)
        scheduled = regularization_of(penalty, Schedule(0.0, "linear", steps=2))
        for regularization in (always, scheduled):
            found = after_two_steps(LEARNERS[algo], regularization)
            assert all(torch.equal(found[k], plain[k]) for k in plain), (name, regularization)


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(0.8), [0.8] * 5),
        (Schedule(0.8, warmup=4), [0.0, 0.2, 0.4, 0.6, 0.8]),
        (Schedule(0.8, "linear", steps=4), [0.8, 0.6, 0.4, 0.2, 0.0]),
        (Schedule(0.2, "linear", 1.0, steps=4), [0.2, 0.4, 0.6, 0.8, 1.0]),
        (Schedule(0.8, "linear", 0.4, warmup=2, steps=4), [0.0, 0.35, 0.6, 0.5, 0.4]),
        (Schedule(0.8, "cosine", steps=4), [0.8, 0.4 + 0.2 * 2**0.5, 0.4, 0.4 - 0.2 * 2**0.5, 0.0]),
        (Schedule(0.8, "cosine", 0.4, steps=4), [0.8, 0.6 + 0.1 * 2**0.5, 0.6, 0.6 - 0.1 * 2**0.5, 0.4]),
    ],
)
def test_schedules_by_hand(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule(step) for step in range(5)] == pytest.approx(expected, abs=1e-15)
    assert schedule(10**6) == pytest.approx(expected[-1], abs=1e-15)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_scheduled_weight_sets_the_threshold_of_each_step(shape: str) -> None:
    """ISTA whose mu falls from 0.4 to 0.1 after a warm-up of three steps."""
    data, lr, steps = general_design(), 0.05, 10
    params = dict(START)
    for t in range(steps):
        left = 1 - t / steps if shape == "linear" else (1 + math.cos(math.pi * t / steps)) / 2
        mu = (0.1 + 0.3 * left) * min(1, t / 3)
        params = {k: v - lr * grad(objective)(params, data)[k] for k, v in params.items()}
        params["block0.weight"] = soft_threshold(params["block0.weight"], lr * mu)
    schedule = Schedule(0.4, shape, 0.1, 3, steps)
    optim = OptimConfig(name="sgd", lr=lr, schedule="constant")
    trainer = trainer_of(LeastSquares(START), OneSet(data), regularization_of(L1(), schedule), optim, steps)
    state = trainer.start()
    train(trainer, state, Silent())
    assert_same({k: state.params[k] for k in NAMES}, params)


@pytest.mark.parametrize("penalty", [L1(), L1("subgradient"), Group()], ids=["l1", "subgradient", "group"])
def test_a_run_that_was_stopped_and_restored_ends_in_the_same_bits(penalty: Any, tmp_path: Path) -> None:
    """The weight is a function of the step; thresholds of Adam's moments, which the checkpoint holds."""
    optim = OptimConfig(lr=0.05, schedule="cosine")
    schedule = Schedule(0.4, "cosine", 0.1, 3, 8)
    trainer = trainer_of(LeastSquares(START), OneSet(general_design()), regularization_of(penalty, schedule), optim, 8)
    whole, first, second = trainer.start(), trainer.start(), trainer.start()
    train(trainer, whole, Silent())
    assert train(trainer, first, Silent(stop_after=5)) == "interrupted"
    checkpoint.save(tmp_path / "last.pt", first)
    checkpoint.restore(tmp_path / "last.pt", second)
    train(trainer, second, Silent())
    assert second.step == whole.step == 8
    assert whole.params.keys() == second.params.keys()
    assert all(torch.equal(whole.params[k], second.params[k]) for k in whole.params)
    assert float(whole.params["reg.penalty.weight"]) == pytest.approx(schedule(7), rel=EXACT)
