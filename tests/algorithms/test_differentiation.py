"""Going back over the inner loop segment by segment gives the gradient of the whole graph, wherever theta enters it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from helpers.quadratic import LinearModel, assert_same, hessian, matrix, random_batch, random_task, weights

import metarun
from metarun.algorithms.differentiation import checkpoint_descent, segment_length
from metarun.algorithms.inner_loop import adam, descend, last, sgd
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.compute.linalg import dot, gradient
from metarun.compute.task_axis import map_tasks
from metarun.errors import UserError
from metarun.models.conv4 import conv4
from metarun.testing.episodes import Blobs
from metarun.training.experiment import assemble
from metarun.training.meta_gradient import MetaGradient, build_meta_gradient
from metarun.training.run import Trainer
from metarun.types import EpisodeSpec, Objective, Params, Task

MODEL = LinearModel(3, 2, bias=True)
STEPS, RATE = 5, 0.1
BATCHES = [random_batch(torch.Generator().manual_seed(k), 6, MODEL) for k in range(STEPS)]
PLAIN = ("diagnostics=off", "device.compile=false", "device.precision=float64", "train.tasks=3", "recipe=absent")
SINUSOIDS = ("data.shots=4", "data.queries=3", "model.hidden=[6,5]")


def changing(theta: Params) -> Objective:
    """Another batch at each step, and a proximal term by which theta enters every one of them."""

    def objective(phi: Params, step: int) -> torch.Tensor:
        batch, away = BATCHES[step], {k: phi[k] - theta[k] for k in phi}
        return MeanSquaredError()(MODEL.apply(phi, batch.x), batch.y) + 0.3 / 2 * dot(away, away)

    return objective


@pytest.mark.parametrize("segment", [1, 2, 3, 5, 9])
def test_the_pull_back_is_that_of_the_known_steps(segment: int) -> None:
    """phi_{k+1} = A_k phi_k + a prox theta + ..., A_k = (1 - a prox) I - a H_k: its transposed derivatives, by hand."""
    theta, v = MODEL.init(0), MODEL.init(1)
    phi, pullback = checkpoint_descent(changing, theta, sgd(RATE), STEPS, segment)
    assert_same(phi, last(descend(changing(theta), theta, sgd(RATE), STEPS)), rtol=0)
    adjoint = matrix(v)
    direct = torch.zeros_like(adjoint)
    for batch in reversed(BATCHES):
        direct = direct + RATE * 0.3 * adjoint
        adjoint = (1 - RATE * 0.3) * adjoint - RATE * hessian(batch, bias=True) @ adjoint
    assert_same(pullback(v), weights(adjoint + direct, bias=True))


def found_by(trainer: Trainer, inner_checkpoint: Any) -> MetaGradient:
    """The outer step's gradient, away from the start, where penalties may have kinks."""
    trainer = replace(trainer, algorithm=replace(cast(Any, trainer.algorithm), inner_checkpoint=inner_checkpoint))
    draw = torch.Generator().manual_seed(0)
    params = {k: v + 0.1 * torch.randn(v.shape, generator=draw).to(v) for k, v in trainer.start().params.items()}
    return build_meta_gradient(trainer)(params, trainer.tasks(0))


CASES: dict[str, list[str]] = {
    "plain": [],
    "chunks": ["device.chunk_size=2"],
    "one at a time": ["device.chunk_size=1"],
    "head": ["algo.adapted=[head]"],
    "prox_l2 learned inside": ["reg=prox_l2", "reg.where=inner", "reg.weight=0.5", "reg.learned=true"],
    "prox_l2 outside": ["reg=prox_l2", "reg.where=outer", "reg.weight=0.5"],
    "l1 by proximal steps": ["reg=l1", "reg.where=both", "reg.weight=0.05", "reg.method=prox"],
    "predictive_kl on both sides": ["reg=predictive_kl", "reg.where=both", "reg.weight=0.5"],
    "several": ["reg=[l2,prox_l2]", "reg.l2.where=inner", "reg.prox_l2.where=inner", "reg.prox_l2.schedule=linear"],
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_and_metrics_are_those_without_checkpoints(case: str) -> None:
    config = metarun.compose(["algo=maml", "algo.inner_steps=5", *SINUSOIDS, *CASES[case], *PLAIN])
    trainer = assemble(config).trainer()
    plain = found_by(trainer, False)
    for length in (1, True, 4):
        found = found_by(trainer, length)
        assert_same(found.mean, plain.mean, rtol=1e-12)
        assert_same(found.grads, plain.grads, rtol=1e-12)
        assert_same(found.metrics, plain.metrics, rtol=1e-12)
        assert_same(found.penalty, plain.penalty, rtol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "joined", "support"])
def test_convolutions_and_their_normalisation_are_pulled_back_too(norm: str) -> None:
    model = conv4((1, 16, 16), 3, filters=4, norm=norm, pool="max", readout="mean")
    params = {k: p.double() for k, p in model.init(0).items()}
    drawn = Blobs().episodes("train", 0, 0, range(2), EpisodeSpec(3, 2, 2))
    tasks = Task(*(b._replace(x=b.x.double()) for b in drawn))
    settings: dict[str, Any] = {"inner_lr": 0.1, "inner_steps": 3, "test_inner_steps": 3, "first_order": False}
    plain, kept = (MAML(model, CrossEntropy(), **settings, inner_checkpoint=n) for n in (False, 2))
    for found, expected in zip(*(map_tasks(a.meta_grad, 2, None)(params, tasks) for a in (kept, plain)), strict=True):
        assert_same(found, expected, rtol=1e-12)


def test_the_checkpointed_gradient_can_itself_be_differentiated() -> None:
    """As probes of curvature do: the products with the second derivative are those of the plain gradient."""
    theta, v, task = MODEL.init(2), MODEL.init(3), random_task(MODEL, 0)

    def plain(theta: Params) -> torch.Tensor:
        phi = last(descend(changing(theta), theta, sgd(RATE), STEPS))
        return MeanSquaredError()(MODEL.apply(phi, task.query.x), task.query.y)

    def pulled(theta: Params) -> Params:
        phi, pullback = checkpoint_descent(changing, theta, sgd(RATE), STEPS, 2)
        return pullback(gradient(lambda phi: MeanSquaredError()(MODEL.apply(phi, task.query.x), task.query.y), phi))

    expected = gradient(lambda theta: dot(gradient(plain, theta), v), theta)
    assert_same(gradient(lambda theta: dot(pulled(theta), v), theta), expected)


@pytest.mark.parametrize(("setting", "steps", "length"), [(True, 1, 1), (True, 5, 2), (True, 100, 5), (3, 100, 3)])
def test_a_segment_has_the_length_that_is_set(setting: Any, steps: int, length: int) -> None:
    assert segment_length(setting, steps) == length


def test_a_rule_that_carries_a_state_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="carries a state"):
        checkpoint_descent(changing, MODEL.init(0), adam(RATE), STEPS, 2)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["algo.inner_checkpoint=some"], "algo.inner_checkpoint=some: choices: false, true, a number of steps"),
        (["algo.inner_checkpoint=-1"], "algo.inner_checkpoint=-1: choices"),
        (["algo.inner_checkpoint=true", "algo.first_order=true"], "must be false for a first-order gradient"),
    ],
)
def test_what_cannot_be_checkpointed_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        assemble(metarun.compose(["algo=maml", *overrides]))
