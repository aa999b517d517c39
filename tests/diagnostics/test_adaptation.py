"""Measures of the inner loop, on quadratic tasks whose every step is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers.quadratic import (
    EXACT,
    LinearModel,
    QuadraticTasks,
    gradient,
    hessian,
    loss,
    matrix,
    random_task,
    stack_tasks,
)
from torch import Tensor

from metarun.algorithms.losses import MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.algorithms.reptile import Reptile
from metarun.cli.compose import compose
from metarun.diagnostics.adaptation import adaptation_measures
from metarun.diagnostics.task_sample import TaskSample
from metarun.training.experiment import assemble
from metarun.types import EpisodeSpec, GradientLearner, ProximalLearner, Task

MODEL = LinearModel(3, 2)
RATE = 0.2


def learner(steps: int, rate: float = RATE, model: LinearModel = MODEL) -> MAML:
    return MAML(model, MeanSquaredError(), rate, steps, steps, first_order=False)


def path(task: Task, theta: Tensor, steps: int, rate: float = RATE) -> list[Tensor]:
    """phi_0 ... phi_steps by the closed form of the gradient."""
    states = [theta]
    for _ in range(steps):
        states.append(states[-1] - rate * gradient(task.support, states[-1], bias=False))
    return states


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("chunk", [None, 1])
def test_losses_gain_gap_and_distances_are_those_of_the_known_path(steps: int, chunk: int | None) -> None:
    tasks = [random_task(MODEL, seed) for seed in range(4)]
    params = MODEL.init(0)
    found = adaptation_measures(learner(steps), params, TaskSample(stack_tasks(tasks), chunk))
    paths = [path(t, matrix(params), steps) for t in tasks]

    def mean(values: list[Tensor]) -> float:
        return float(torch.stack(values).mean())

    for k in range(steps + 1):
        on_support = [loss(t.support, p[k], False) for t, p in zip(tasks, paths, strict=True)]
        on_query = [loss(t.query, p[k], False) for t, p in zip(tasks, paths, strict=True)]
        assert found[f"support_loss/{k}"] == pytest.approx(mean(on_support), rel=EXACT)
        assert found[f"query_loss/{k}"] == pytest.approx(mean(on_query), rel=EXACT)
    assert f"query_loss/{steps + 1}" not in found
    assert found["adaptation_gain"] == pytest.approx(found["query_loss/0"] - found[f"query_loss/{steps}"], rel=EXACT)
    gap = found[f"query_loss/{steps}"] - found[f"support_loss/{steps}"]
    assert found["support_query_gap"] == pytest.approx(gap, rel=EXACT)
    away = [(p[-1] - p[0]).norm() for p in paths]
    assert found["distance_body"] == pytest.approx(mean(away), rel=EXACT)
    assert found["distance_relative"] == pytest.approx(mean(away) / float(matrix(params).norm()), rel=EXACT)
    lengths = [sum((b - a).norm() for a, b in pairwise(p)) for p in paths]
    ratios = [length / a for length, a in zip(lengths, away, strict=True)]
    assert found["path_ratio"] == pytest.approx(mean(ratios), rel=EXACT)
    assert found["inner_rises"] == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_contraction_is_the_mean_ratio_of_successive_moves(steps: int) -> None:
    """For one inner step a second is taken, so that there is a ratio."""
    task = random_task(MODEL, 7)
    params = MODEL.init(1)
    found = adaptation_measures(learner(steps), params, TaskSample(stack_tasks([task]), None))
    p = path(task, matrix(params), max(steps, 2))
    moves = [(b - a).norm() for a, b in pairwise(p)]
    ratios = torch.stack([b / a for a, b in pairwise(moves)])
    assert found["contraction"] == pytest.approx(float(ratios.log().mean().exp()), rel=EXACT)


@pytest.mark.parametrize(
    ("settings", "fixed"),
    [
        (["algo=maml"], True),
        (["algo=metasgd"], True),
        (["algo=mamlpp"], False),
        (["algo=imaml"], False),
        (["algo=imaml", "algo.inner_solver=gradient"], True),
        (["algo=reptile", "algo.inner_optimizer=adam"], False),
    ],
    ids=str,
)
def test_contraction_is_measured_where_all_steps_have_the_same_rates(settings: list[str], fixed: bool) -> None:
    """Others take longer steps where the curvature is less, which is no sign of an unstable rate."""
    experiment = assemble(compose([*settings, "data=sinusoid", "model.hidden=[4]", "train.tasks=2"]))
    tasks = experiment.dataset.episodes("train", 0, 0, range(2), experiment.train_spec)
    found = adaptation_measures(experiment.algorithm, experiment.initial_params(), TaskSample(tasks, None))
    assert ("contraction" in found) is fixed
    assert "path_ratio" in found


@pytest.mark.parametrize("factor", [0.5, 1.9, 2.1])
def test_contraction_is_at_most_the_spectral_radius_of_the_inner_map_and_tends_to_it(factor: float) -> None:
    """Moves are m_k = (I - alpha H)^k m_0, the radius is max_j |1 - alpha h_j|. Above alpha h_max = 2 the moves grow
    and the support loss rises."""
    task = random_task(MODEL, 3)
    h = torch.linalg.eigvalsh(hessian(task.support, bias=False))
    rate = factor / float(h.max())
    radius = float((1 - rate * h).abs().max())
    steps = 100
    found = adaptation_measures(learner(steps, rate), MODEL.init(2), TaskSample(stack_tasks([task]), None))
    assert found["contraction"] <= radius * (1 + EXACT)
    assert found["contraction"] == pytest.approx(radius, rel=0.1)  # the first moves weigh 1/99 each
    assert (found["contraction"] > 1) == (factor > 2)
    assert (found["inner_rises"] > 0.9) == (factor > 2)


def test_the_head_is_told_from_the_body_by_its_name() -> None:
    """A bias renamed head.bias moves by its own distance."""

    class Named(LinearModel):
        def init(self, seed: int) -> dict[str, Tensor]:
            return {"head.bias" if k == "b" else k: v for k, v in super().init(seed).items()}

        def apply(self, params: dict[str, Tensor], x: Tensor, stats: object = None) -> Tensor:
            return x @ params["w"] + params["head.bias"]

    model = Named(3, 2, bias=True)
    task = random_task(model, 0)
    params = model.init(0)
    found = adaptation_measures(learner(1, model=model), params, TaskSample(stack_tasks([task]), None))
    move = RATE * gradient(task.support, torch.cat([params["w"], params["head.bias"][None]]), bias=True)
    assert found["distance_body"] == pytest.approx(float(move[:-1].norm()), rel=EXACT)
    assert found["distance_head"] == pytest.approx(float(move[-1].norm()), rel=EXACT)


def test_vmapped_equals_one_by_one_equals_single_precision() -> None:
    """To 1e-9 in float64; to 1e-4 in float32, whose losses carry about 1e-7 a term."""
    spec = EpisodeSpec(1, 9, 7)
    tasks = QuadraticTasks(MODEL).episodes("train", 0, 0, range(5), spec)
    params = MODEL.init(0)
    together = adaptation_measures(learner(3), params, TaskSample(tasks, None))
    assert together == pytest.approx(adaptation_measures(learner(3), params, TaskSample(tasks, 1)), rel=EXACT)
    single = Task(*(b._replace(x=b.x.float(), y=b.y.float()) for b in tasks))
    narrow = adaptation_measures(learner(3), {k: v.float() for k, v in params.items()}, TaskSample(single, None))
    assert together == pytest.approx(narrow, rel=1e-4)


def test_learners_with_an_inner_loop_are_recognised_by_what_they_have() -> None:
    assert isinstance(learner(1), GradientLearner)
    assert isinstance(Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 1, 1, None), GradientLearner)
    assert not isinstance(learner(1), ProximalLearner)
    assert not isinstance(ProtoNet(MODEL, MeanSquaredError(), 2, "euclidean", 1.0), GradientLearner)
