"""One gate for every algorithm: each YAML of conf/algo is a row of each test, with its own default settings.

A case is an algorithm on a kind of data: sinusoids (regression) with an MLP, labelled images with an MLP or a Conv4, or
a place to act in with an MLP. (What a learner that acts gains by 60 steps is nothing; test_pearl.py has longer runs.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.blobs import SPECS, Blobs
from helpers.quadratic import EXACT
from torch import Tensor
from torch.func import vmap

import metarun
from metarun.algorithms.contexts import ROW_NORMS
from metarun.algorithms.losses import GaussianLikelihood
from metarun.algorithms.objective import NO_REGULARIZATION
from metarun.compute.device import Placement
from metarun.compute.task_axis import map_tasks
from metarun.config.components import component_class, locate
from metarun.config.schema import Config, TrainConfig
from metarun.data.point_robot import PointRobot
from metarun.data.sinusoid import Sinusoid
from metarun.errors import UserError
from metarun.models.norm import NORMS
from metarun.training.evaluation import Evaluator
from metarun.training.experiment import build_learner
from metarun.training.loop import train
from metarun.training.run import Trainer
from metarun.types import (
    CARRIED,
    Algorithm,
    AlgorithmOptions,
    Batch,
    Dataset,
    EpisodeSpec,
    GradientLearner,
    Params,
    StatefulLearner,
    Task,
    optional,
)

CONF = Path(__file__).parents[2] / "conf"
ALGORITHMS = sorted(path.stem for path in (CONF / "algo").glob("*.yaml"))
TASKS = 3
SMALL = {"mlp": "model.hidden=[8,6]", "conv4": "model.filters=4"}


SINUSOIDS = Sinusoid(amplitude=(0.1, 5.0), phase=(0.0, np.pi), x_range=(-5.0, 5.0), noise=0.0)
ROBOT = PointRobot(reward="dense", horizon=4, train_goals=5, val_goals=3, test_goals=3)
DATASETS: dict[str, Dataset] = {"regression": SINUSOIDS, "classification": Blobs(), "control": ROBOT}


@dataclass(frozen=True)
class Case:
    """An algorithm's YAML, a kind of data and a network."""

    algo: str
    kind: str
    model: str

    @property
    def dataset(self) -> Dataset:
        return DATASETS[self.kind]

    @property
    def spec(self) -> EpisodeSpec:
        return SPECS[self.kind]

    def learner(self, norm: str | None = None) -> Algorithm:
        """With the settings of its YAML and a small network, which may get another norm."""
        config = composed(f"algo={self.algo}", f"model={self.model}", SMALL[self.model])
        model = config.model if norm is None else {**config.model, "norm": norm}
        return build_learner(replace(config, model=model), self.dataset, self.spec.ways)

    def learner_or_refusal(self, norm: str) -> Algorithm:
        """The same; one whose rows stand alone takes only norms of single rows, and refuses the others in one line."""
        any_norm = "min_shots" not in composed(f"algo={self.algo}").algo and self.kind != "control"
        if norm in ROW_NORMS or any_norm:
            return self.learner(norm)
        with pytest.raises(UserError, match=f"model.norm={norm}: must be one of none, layer"):
            self.learner(norm)
        pytest.skip("refused")

    def start(self, algorithm: Algorithm, dtype: torch.dtype = torch.float64) -> tuple[Params, Task]:
        """Meta-parameters and a batch of tasks, as the learner prepares them if it carries state."""
        placement = placed(dtype)
        tasks = self.dataset.episodes("train", 0, 0, range(TASKS), self.spec)
        params = algorithm.init(0)
        if isinstance(algorithm, StatefulLearner):
            _, params, tasks = algorithm.before_step(params, algorithm.init_state(params), tasks, 0, 0)
        return placement.move_params(params), placement.move_task(tasks)


@cache
def composed(*overrides: str) -> Config:
    """As the command line would compose, with what stands in conf/algo and not what a recipe makes of it."""
    return metarun.compose([*overrides, "recipe=absent"])


def placed(dtype: torch.dtype = torch.float64, chunk: int | None = None) -> Placement:
    return Placement(torch.device("cpu"), dtype, chunk, False)


def cases() -> Iterable[Any]:
    for algo in ALGORITHMS:
        kinds = component_class(locate("algo", composed(f"algo={algo}").algo)).kinds
        rows = [Case(algo, "regression", "mlp"), Case(algo, "classification", "mlp")]
        for case in [*rows, Case(algo, "classification", "conv4"), Case(algo, "control", "mlp")]:
            if case.kind in kinds:
                yield pytest.param(case, id=f"{algo}-{case.kind}-{case.model}")


EVERY_CASE = pytest.mark.parametrize("case", list(cases()))


def single(tasks: Task, i: int) -> Task:
    return Task(*(Batch(b.x[i], b.y[i]) for b in tasks))


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of an adapted state or of (gradient, metrics)."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts if part is not None for leaf in leaves(part)]


def vector(params: Params) -> Tensor:
    return torch.cat([p.flatten() for p in params.values()])


def assert_close(found: Params, expected: Params, rtol: float = EXACT) -> None:
    """|found - expected| <= rtol |expected| as vectors: single entries may vanish and have no scale of their own."""
    assert found.keys() == expected.keys()
    difference = float((vector(found) - vector(expected)).norm())
    assert difference <= rtol * float(vector(expected).norm()), f"{difference=}"


def assert_meta_gradients_close(found: Any, expected: Any, rtol: float = EXACT) -> None:
    assert_close(found[0], expected[0], rtol)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        # `cg_residual` may be anything below the precision of the solution, `stationarity` likewise: hence an atol.
        torch.testing.assert_close(found[1][name], value, rtol=rtol, atol=rtol, msg=lambda text, n=name: f"{n}: {text}")


def test_every_yaml_is_a_case_of_every_kind_it_can_learn() -> None:
    """The table is the directory."""
    assert ALGORITHMS, f"no YAML in {CONF / 'algo'}"
    assert {row.values[0].algo for row in cases()} == set(ALGORITHMS)


# ---------------------------------------------------------------- the task axis


@EVERY_CASE
def test_vmap_over_tasks_equals_a_loop(case: Case) -> None:
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    batched = vmap(algorithm.meta_grad, in_dims=(None, 0))(params, tasks)
    looped = [algorithm.meta_grad(params, single(tasks, i)) for i in range(TASKS)]
    for i, expected in enumerate(looped):
        assert_meta_gradients_close([{k: v[i] for k, v in tree.items()} for tree in batched], expected)


@EVERY_CASE
@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.long), 2])
def test_the_chunk_size_changes_nothing(case: Case, chunk: int) -> None:
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    whole = map_tasks(algorithm.meta_grad, TASKS, None)(params, tasks)
    assert_meta_gradients_close(map_tasks(algorithm.meta_grad, TASKS, chunk)(params, tasks), whole)


@EVERY_CASE
def test_a_single_task_beside_vmap_equals_vmap(case: Case) -> None:
    """`over_tasks` runs one task without vmap, on channels-last memory: the numbers and their leading axis stay."""
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    one = Task(*(Batch(b.x[:1], b.y[:1]) for b in tasks))
    found = map_tasks(algorithm.meta_grad, 1, None)(params, one)
    expected = vmap(algorithm.meta_grad, in_dims=(None, 0))(params, one)
    assert {k: v.shape for k, v in found[0].items()} == {k: (1, *p.shape) for k, p in params.items()}
    assert_meta_gradients_close(found, expected)


# ---------------------------------------------------------------- purity


@EVERY_CASE
def test_inputs_are_not_modified_and_nothing_requires_a_gradient(case: Case) -> None:
    """Pure functions: parameters and tasks are as they were, and no result drags a graph along."""
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    task = single(tasks, 0)
    before = [t.clone() for t in leaves((params, task))]
    gradient = algorithm.meta_grad(params, task)
    adapted = algorithm.adapt(params, task.support)
    predicted = algorithm.predict(adapted, task.query.x)
    states = list(algorithm.adaptations(params, task.support, 2))
    assert all(torch.equal(a, b) for a, b in zip(leaves((params, task)), before, strict=True))
    assert not any(t.requires_grad for t in leaves((params, gradient, adapted, predicted, states)))


@EVERY_CASE
def test_the_meta_gradient_has_the_keys_and_shapes_of_the_parameters(case: Case) -> None:
    """And the metrics are scalars, with the loss and the data's figure among them."""
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    gradient, metrics = algorithm.meta_grad(params, single(tasks, 0))
    assert {k: g.shape for k, g in gradient.items()} == {k: p.shape for k, p in params.items()}
    assert "loss" in metrics
    assert algorithm.loss.metric in metrics or isinstance(algorithm, StatefulLearner)  # whose returns are in the carry
    assert all(value.shape == () for value in metrics.values())
    assert any(float(g.abs().max()) > 0 for g in gradient.values())


@EVERY_CASE
def test_the_same_seed_gives_the_same_bits_and_another_other_weights(case: Case) -> None:
    """From the initial weights to the meta-gradient, and whatever the global random state is."""
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    first = algorithm.meta_grad(params, single(tasks, 0))
    torch.rand(5)
    again, other = algorithm.init(0), algorithm.init(1)
    assert all(torch.equal(v.double(), params[k]) for k, v in again.items())
    assert all(k in again or k.startswith(CARRIED) for k in params)
    second = algorithm.meta_grad(params, single(tasks, 0))
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))
    assert any(not torch.equal(again[k], other[k]) for k in again)


# ---------------------------------------------------------------- predictions


def calibrate(algorithm: Algorithm, params: Params, case: Case) -> Algorithm:
    """The learner that is evaluated: with population statistics, if its norm has such."""
    reference = placed().move(case.dataset.reference_inputs(64))
    return replace(algorithm, model=algorithm.model.calibrate(params, reference))


@EVERY_CASE
@pytest.mark.parametrize("norm", NORMS)
def test_predictions_are_finite_and_one_row_per_query(case: Case, norm: str) -> None:
    """After adaptation as in training, and after each step that a test reports, with the model that it is tested with:
    default settings must not diverge on default weights for any choice of the norm. Steps of gradient descent with
    fixed statistics are left out: those do not bound the activations, and no rate suits all untrained weights.
    """
    algorithm = case.learner_or_refusal(norm)
    params, tasks = case.start(algorithm)
    task = single(tasks, 0)
    numbers = 2 if isinstance(algorithm.loss, GaussianLikelihood) else 1  # a mean and a deviation for each target
    shape = (len(task.query.x), numbers * case.dataset.outputs(case.spec.ways))
    tested = calibrate(algorithm, params, case)
    predictions = [algorithm.predict(algorithm.adapt(params, task.support), task.query.x)]
    steps = 0 if norm == "population" else algorithm.test_inner_steps
    states = tested.adaptations(params, task.support, steps)
    predictions += [tested.predict(adapted, task.query.x) for adapted in states]
    for step, predicted in enumerate(predictions):
        assert predicted.shape == shape
        assert predicted.isfinite().all(), f"after step {step - 1}" if step else "in training"


@EVERY_CASE
def test_adaptation_starts_at_step_zero_and_has_a_state_per_step(case: Case) -> None:
    """steps + 1 states, of which the one after the training's number of steps is that of `adapt`; a learner without
    steps has one state, whatever it is asked for.
    """
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    task = single(tasks, 0)
    steps = getattr(algorithm, "inner_steps", 0)
    states = list(algorithm.adaptations(params, task.support, steps))
    assert len(states) == steps + 1
    found, expected = (algorithm.predict(a, task.query.x) for a in (states[-1], algorithm.adapt(params, task.support)))
    assert torch.equal(found, expected)
    if algorithm.test_inner_steps == 0:
        assert len(list(algorithm.adaptations(params, task.support, 5))) == 1


def shuffled(batch: Batch, order: Tensor) -> Batch:
    return Batch(batch.x[order], batch.y[order])


@EVERY_CASE
def test_the_order_of_the_support_set_is_irrelevant(case: Case) -> None:
    """With default settings every learner sees a set: sums over its rows are only rounded differently."""
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    task = single(tasks, 0)
    order = torch.randperm(len(task.support.x), generator=torch.Generator().manual_seed(0))
    permuted = task._replace(support=shuffled(task.support, order))
    assert_meta_gradients_close(algorithm.meta_grad(params, permuted), algorithm.meta_grad(params, task))
    found, expected = (algorithm.predict(algorithm.adapt(params, t.support), t.query.x) for t in (permuted, task))
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


@EVERY_CASE
@pytest.mark.parametrize("norm", ["none", "support", "joined", "population"])
def test_predictions_follow_their_queries(case: Case, norm: str) -> None:
    """Row m of the prediction belongs to query m, whatever stands around it: permuted queries, permuted rows, and a
    query alone is predicted as in company. (For a population norm, with fixed statistics as in an evaluation.)

    After one step of adaptation: fixed statistics do not bound the activations, and a descent at the default rate
    leaves the finite numbers within a few steps on some untrained networks.
    """
    algorithm = case.learner_or_refusal(norm)
    params, tasks = case.start(algorithm)
    algorithm = calibrate(algorithm, params, case)
    task = single(tasks, 0)
    *_, adapted = algorithm.adaptations(params, task.support, 1)
    predicted = algorithm.predict(adapted, task.query.x)
    order = torch.randperm(len(predicted), generator=torch.Generator().manual_seed(1))
    for rows in (order, order[:1]):
        found = algorithm.predict(adapted, task.query.x[rows])
        torch.testing.assert_close(found, predicted[rows], rtol=EXACT, atol=EXACT)


# ---------------------------------------------------------------- precision


@EVERY_CASE
def test_float32_is_close_to_float64(case: Case) -> None:
    """A meta-gradient is some hundred operations deep, each rounding by 6e-8, which adds up to 1e-5 if they conspire; a
    solver or Adam's g / |g| multiply that by their conditioning. 1e-4 of the gradient's length leaves room for both.
    """
    algorithm = case.learner()
    exact, rounded = (
        algorithm.meta_grad(params, single(tasks, 0))
        for params, tasks in (case.start(algorithm, dtype) for dtype in (torch.float64, torch.float32))
    )
    assert all(g.dtype == torch.float32 for g in leaves(rounded))
    assert all(g.dtype == torch.float64 for g in leaves(exact))
    assert_close({k: g.double() for k, g in rounded[0].items()}, exact[0], rtol=1e-4)
    assert float(rounded[1]["loss"]) == pytest.approx(float(exact[1]["loss"]), rel=1e-4)


@EVERY_CASE
def test_the_meta_gradient_is_that_of_the_loss(case: Case) -> None:
    """<g, v> = (L(theta + h v) - L(theta - h v)) / 2h + O(h^2) along a random unit v, L the metric `loss` of one task.

    Left out, by what they declare: learners whose gradient is no gradient of that loss (first order, Reptile, iMAML's
    damped implicit gradient) and learners that act, whose losses hold targets constant.
    """
    algorithm = case.learner()
    exact = not isinstance(algorithm, GradientLearner) or (
        algorithm.sees_adaptation and optional(algorithm, AlgorithmOptions, "cg_steps") is None
    )
    if not exact or case.kind == "control":
        return
    params, tasks = case.start(algorithm)
    task, generator, h = single(tasks, 0), torch.Generator().manual_seed(1), 1e-6
    v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}
    v = {k: p / vector(v).norm() for k, p in v.items()}
    up, down = (
        float(algorithm.meta_grad({k: p + sign * h * v[k] for k, p in params.items()}, task)[1]["loss"])
        for sign in (1, -1)
    )
    gradient = algorithm.meta_grad(params, task)[0]
    slope, length = float(vector(gradient) @ vector({k: v[k] for k in gradient})), float(vector(gradient).norm())
    assert (up - down) / (2 * h) == pytest.approx(slope, abs=1e-6 * length + 1e-9)


# ---------------------------------------------------------------- learning

EASY: dict[str, tuple[Dataset, EpisodeSpec]] = {
    "regression": (replace(SINUSOIDS, amplitude=(1.0, 2.0), phase=(0.0, 1.0)), EpisodeSpec(1, 10, 10)),
    "classification": (Blobs(side=6, informative=4, novelty=0.3), EpisodeSpec(3, 2, 5)),
}
SMALL_SETS = ("optim.lr=0.01", "optim.schedule=constant", "algo.representation=24")
HASTE = {
    "reptile": ("algo.inner_lr=0.01", "algo.test_inner_steps=10"),
    "imaml": ("optim.lr=0.006", "algo.inner_steps=5", "algo.test_inner_steps=5"),
    "cnp": SMALL_SETS,
    "np": (*SMALL_SETS, "algo.latent=4"),
    "anp": (*SMALL_SETS, "algo.latent=4"),
    "cvae": (*SMALL_SETS, "algo.latent=4", "algo.kl_warmup=0"),
}
"""Settings for a run of 60 steps. A YAML that is not named here learns with its own, at an outer rate of 0.01."""


class Nobody:
    """A watcher who does not look."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


ALIKE = ("fomaml", "mamlpp", "cvae")


def easy() -> Iterator[Any]:
    """On classes `make test` has one learner with an inner loop and one without."""
    for row in cases():
        case: Any = row.values[0]
        if case.model == "mlp" and case.kind in EASY:
            sampled = case.algo in ("maml", "protonet") or (case.kind == "regression" and case.algo not in ALIKE)
            yield pytest.param(case, id=row.id, marks=[*row.marks, *([] if sampled else [pytest.mark.long])])


@pytest.mark.parametrize("case", list(easy()))
def test_sixty_steps_halve_the_validation_error_of_an_easy_task(case: Case) -> None:
    """Tasks that differ little: sinusoids of similar amplitude and phase, blobs near the same centres, amid noise.

    Untrained, the error is that of predicting about 0 or of guessing; what the tasks share is learned in 60 steps of 8
    tasks, and takes away five sixths of the first and two thirds of the second error. Half is asked for. Of a
    log-likelihood, whose error is a logarithm, that the density at the targets doubles.
    """
    dataset, spec = EASY[case.kind]
    overrides = HASTE.get(case.algo, ("optim.lr=0.01",))
    config = composed(f"algo={case.algo}", "model=mlp", "model.hidden=[20,20]", *overrides)
    algorithm = build_learner(config, dataset, spec.ways)
    validator = Evaluator(dataset, "val", spec, 40, (algorithm.test_inner_steps,), placed(torch.float32))
    rare = 1000
    trainer = Trainer(
        algorithm=algorithm,
        dataset=dataset,
        spec=spec,
        regularization=NO_REGULARIZATION,
        settings=TrainConfig(steps=60, tasks=8, log_every=rare, eval_every=rare, checkpoint_every=rare),
        optim=config.optim,
        placement=placed(torch.float32),
        seed=0,
        validate=lambda params: validator(algorithm, params),
    )
    state = trainer.start()
    before = validator(algorithm, state.params).error
    assert train(trainer, state, Nobody()) == "completed"
    after = validator(algorithm, state.params).error
    assert state.best_error == after
    enough = before - math.log(2) if algorithm.loss.signed else before / 2
    assert after < enough, f"{before=} {after=}"
