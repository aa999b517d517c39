"""Scores on fixed episodes: the figures against numpy, the curves against loops, and what they may not depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import EXACT, LinearModel, QuadraticTasks, assert_same
from torch import Tensor

from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.compute.device import Placement
from metarun.models.mlp import mlp
from metarun.training import evaluation
from metarun.training.evaluation import Evaluation, Evaluator, adaptation_curves, mean_and_interval
from metarun.types import Batch, EpisodeSpec, Split, Task

MODEL = LinearModel(3, 1, bias=True)
DATA = QuadraticTasks(MODEL)
SPEC = EpisodeSpec(1, 6, 5)
ALGORITHM = MAML(MODEL, MeanSquaredError(), 0.1, 1, 2, False)
PARAMS = MODEL.init(0)


def placement(chunk: int | None = None) -> Placement:
    return Placement(torch.device("cpu"), torch.float64, chunk, False)


def evaluator(
    tasks: int = 12, steps: int = 3, spec: EpisodeSpec = SPEC, split: Split = "test", chunk: int | None = None
) -> Evaluator:
    return Evaluator(DATA, split, spec, tasks, tuple(range(steps + 1)), placement(chunk))


def single(tasks: Task, i: int) -> Task:
    return Task(*(Batch(b.x[i], b.y[i]) for b in tasks))


@pytest.mark.parametrize("count", [2, 3, 600])
def test_mean_and_interval_are_the_mean_and_1_96_standard_errors(count: int) -> None:
    """1.96 s / sqrt(n), with s^2 = sum (v - mean)^2 / (n - 1), in double precision for float32 scores too."""
    values = np.random.default_rng(count).random(count).astype(np.float32)
    mean, interval = mean_and_interval(torch.from_numpy(values))
    exact = values.astype(np.float64)
    assert mean == pytest.approx(exact.mean(), rel=EXACT)
    assert interval == pytest.approx(1.96 * exact.std(ddof=1) / np.sqrt(count), rel=EXACT)


def test_a_single_task_has_no_interval() -> None:
    """One value has no spread to estimate: not a number, and not 0, which would read as certainty."""
    mean, interval = mean_and_interval(torch.tensor([0.25]))
    assert mean == 0.25
    assert math.isnan(interval)


def test_adaptation_curves_equal_a_loop_over_tasks_and_steps() -> None:
    """Row i, column k: loss and score on task i's queries after k gradient steps on its support set."""
    tasks = DATA.episodes("train", 0, 0, range(4), SPEC)
    losses, scores = adaptation_curves(ALGORITHM, PARAMS, tasks, range(4), None)
    assert losses.shape == scores.shape == (4, 4)
    for i in range(4):
        task = single(tasks, i)
        phi = {k: p.clone().requires_grad_() for k, p in PARAMS.items()}
        for k in range(4):
            error = F.mse_loss(MODEL.apply(phi, task.query.x), task.query.y)
            assert_same(losses[i, k], error)
            assert_same(scores[i, k], error)
            support_loss = F.mse_loss(MODEL.apply(phi, task.support.x), task.support.y)
            slopes = torch.autograd.grad(support_loss, list(phi.values()))
            phi = {
                name: (p - 0.1 * g).detach().requires_grad_() for (name, p), g in zip(phi.items(), slopes, strict=True)
            }


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_adaptation_curves_do_not_depend_on_the_chunk_size(chunk: int) -> None:
    tasks = DATA.episodes("train", 0, 0, range(4), SPEC)
    whole = adaptation_curves(ALGORITHM, PARAMS, tasks, range(3), None)
    for found, expected in zip(adaptation_curves(ALGORITHM, PARAMS, tasks, range(3), chunk), whole, strict=True):
        assert_same(found, expected)


def test_an_evaluation_has_steps_by_rows_and_tasks_by_columns() -> None:
    """Losses and scores are [steps + 1, tasks]; each column is that of the task on its own, drawn with seed 0."""
    found = evaluator(tasks=5, steps=3)(ALGORITHM, PARAMS)
    assert found.losses.shape == found.scores.shape == (4, 5)
    tasks = DATA.episodes("test", evaluation.EPISODE_SEED, 0, range(5), SPEC)
    losses, scores = adaptation_curves(ALGORITHM, PARAMS, tasks, range(4), None)
    assert_same(found.losses, losses.T)
    assert_same(found.scores, scores.T)


@pytest.mark.parametrize(("test_steps", "reported", "headline"), [(2, 3, 2), (3, 3, 3), (5, 3, 3), (0, 3, 0)])
def test_the_result_is_the_figure_at_the_algorithms_own_number_of_steps(
    test_steps: int, reported: int, headline: int
) -> None:
    """`test_inner_steps`, or the last step there is."""
    algorithm = replace(ALGORITHM, test_inner_steps=test_steps)
    found = evaluator(steps=reported)(algorithm, PARAMS)
    mean, interval = mean_and_interval(found.scores[headline])
    assert (found.mean, found.ci95, found.error) == (mean, interval, mean)  # an error measure is its own error
    curve = found.curve()
    assert [row["step"] for row in curve] == list(range(reported + 1))
    assert curve[headline]["mean"] == found.mean
    assert curve[headline]["ci95"] == found.ci95
    assert [row["loss"] for row in curve] == pytest.approx(found.losses.mean(1).tolist(), rel=EXACT)


def test_the_error_of_an_accuracy_is_what_is_missing_to_one() -> None:
    """Lower is better for whoever selects: 1 - accuracy."""
    scores = torch.tensor([[0.5, 0.7]])
    assert Evaluation((0,), scores, scores, 0, True, "").error == pytest.approx(1 - 0.6, rel=1e-6)
    assert Evaluation((0,), scores, scores, 0, False, "").error == pytest.approx(0.6, rel=1e-6)


@pytest.mark.parametrize("per_draw", [1, 5, 12, 50])
def test_an_evaluation_does_not_depend_on_how_many_tasks_are_drawn_at_once(
    per_draw: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 tasks in draws of 1, of 5 (the last one short), and all together."""
    monkeypatch.setattr(evaluation, "NUMBERS_PER_DRAW", 0)
    monkeypatch.setattr(evaluation, "TASKS_PER_DRAW", 12)
    whole = evaluator()(ALGORITHM, PARAMS)
    monkeypatch.setattr(evaluation, "TASKS_PER_DRAW", per_draw)
    parts = evaluator()(ALGORITHM, PARAMS)
    assert_same(parts.losses, whole.losses)
    assert_same(parts.scores, whole.scores)


@dataclass(frozen=True)
class Shaped(QuadraticTasks):
    shape: tuple[int, ...] = ()

    def input_shape(self) -> tuple[int, ...]:
        return self.shape


@pytest.mark.parametrize(
    ("shape", "width", "drawn"), [((1,), 40, 500), ((100,), 40, 83), ((3, 84, 84), 40, 50), ((1,), 400, 50)]
)
def test_tasks_of_few_numbers_are_drawn_in_larger_parts(shape: tuple[int, ...], width: int, drawn: int) -> None:
    """A task has 120 inputs of the shape; at most a million numbers, or else 50 tasks, and with a large network 50."""
    whole = replace(evaluator(spec=EpisodeSpec(ways=1, shots=20, queries=100)), dataset=Shaped(MODEL, shape=shape))
    assert whole._tasks_per_draw({"weight": torch.zeros(width, width)}) == drawn


@pytest.mark.parametrize("chunk", [1, 5, 50])
def test_an_evaluation_does_not_depend_on_the_chunk_size(chunk: int) -> None:
    whole, parts = evaluator()(ALGORITHM, PARAMS), evaluator(chunk=chunk)(ALGORITHM, PARAMS)
    assert_same(parts.losses, whole.losses)
    assert parts.episodes_sha256 == whole.episodes_sha256


def test_the_first_tasks_of_a_longer_evaluation_are_those_of_a_shorter_one() -> None:
    """Episodes are a function of the task index: more tasks refine the same figure."""
    short, long = evaluator(tasks=4)(ALGORITHM, PARAMS), evaluator(tasks=9)(ALGORITHM, PARAMS)
    assert_same(long.losses[:, :4], short.losses)


def test_the_episode_hash_is_of_the_episodes_and_of_nothing_else() -> None:
    """Two runs, whatever their weights and reported steps, meet the same episodes; another spec or split, others."""
    reference = evaluator()(ALGORITHM, PARAMS).episodes_sha256
    assert evaluator()(ALGORITHM, MODEL.init(5)).episodes_sha256 == reference
    assert evaluator(steps=1)(replace(ALGORITHM, inner_lr=0.3), PARAMS).episodes_sha256 == reference
    others = [
        evaluator(spec=EpisodeSpec(1, 5, 5)),
        evaluator(spec=EpisodeSpec(1, 6, 4)),
        evaluator(split="val"),
        evaluator(tasks=11),
    ]
    hashes = [other(ALGORITHM, PARAMS).episodes_sha256 for other in others]
    assert len({reference, *hashes}) == 1 + len(hashes)


@dataclass(frozen=True)
class Edited(QuadraticTasks):
    """The same tasks, but for one number of one of the four tensors."""

    part: str = "support"
    tensor: str = "x"

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = super().episodes(split, seed, step, tasks, spec)
        getattr(getattr(drawn, self.part), self.tensor)[-1, -1, -1] += 1e-6
        return drawn


@pytest.mark.parametrize("part", ["support", "query"])
@pytest.mark.parametrize("tensor", ["x", "y"])
def test_the_episode_hash_sees_every_number_of_the_episodes(part: str, tensor: str) -> None:
    """Inputs and targets of support and query: a millionth in the last entry of the last task is another episode."""
    same, edited = evaluator(), replace(evaluator(), dataset=Edited(MODEL, part, tensor))
    assert same(ALGORITHM, PARAMS).episodes_sha256 != edited(ALGORITHM, PARAMS).episodes_sha256


def test_the_episode_hash_does_not_depend_on_how_many_tasks_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """TASKS_PER_DRAW is a matter of memory: tuning it must not make the same episodes look like others."""
    whole = evaluator()(ALGORITHM, PARAMS).episodes_sha256
    monkeypatch.setattr(evaluation, "NUMBERS_PER_DRAW", 0)
    monkeypatch.setattr(evaluation, "TASKS_PER_DRAW", 5)
    assert evaluator()(ALGORITHM, PARAMS).episodes_sha256 == whole


# ---------------------------------------------------------------- population statistics


@dataclass(frozen=True)
class Blobs(QuadraticTasks):
    """Two classes a task: the inputs of quadratic tasks, shifted by the label; query rows `kept` are left."""

    kept: tuple[int, int] = (0, 4)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = super().episodes(split, seed, step, tasks, spec)
        support, query = (Batch(b.x + row_labels(b)[..., None], row_labels(b)) for b in drawn)
        return Task(support, Batch(query.x[:, slice(*self.kept)], query.y[:, slice(*self.kept)]))


def row_labels(batch: Batch) -> Tensor:
    """0, 1, 0, 1, ... for every task, [T, rows]."""
    return (torch.arange(batch.x.shape[1]) % 2).expand(batch.x.shape[:2])


def losses_of(norm: str, kept: tuple[int, int]) -> Tensor:
    """The query loss of each of four tasks, [T], as an evaluator with that norm and those queries reports it."""
    learner = ProtoNet(mlp((3,), None, (6, 4), norm), CrossEntropy(), 2, "euclidean", 1.0)
    params = {k: p.double() for k, p in learner.init(0).items()}
    found = Evaluator(Blobs(MODEL, kept=kept), "test", EpisodeSpec(2, 6, 4), 4, (0,), placement())(learner, params)
    assert found.losses.shape == (1, 4)  # a learner without steps has one row
    return found.losses[0]


@pytest.mark.parametrize("norm", ["population", "joined", "support", "batch", "none"])
def test_an_evaluation_is_transductive_with_batch_statistics_only(norm: str) -> None:
    """If no query sees another, the mean loss of four queries is the mean of those of the first and the last two.

    A population norm predicts with the batch's statistics until it is calibrated, which the evaluator must have done.
    """
    whole = losses_of(norm, (0, 4))
    halves = (losses_of(norm, (0, 2)) + losses_of(norm, (2, 4))) / 2
    if norm == "batch":
        assert float((whole - halves).abs().max()) > 1e-3
    else:
        assert_same(whole, halves)


def test_population_statistics_are_those_of_the_reference_inputs() -> None:
    """The evaluator's figures are those of the learner with its model calibrated on REFERENCE_INPUTS inputs."""
    learner = ProtoNet(mlp((3,), None, (6, 4), "population"), CrossEntropy(), 2, "euclidean", 1.0)
    params = {k: p.double() for k, p in learner.init(0).items()}
    data, spec = Blobs(MODEL), EpisodeSpec(2, 6, 4)
    reference = data.reference_inputs(evaluation.REFERENCE_INPUTS)
    calibrated = replace(learner, model=learner.model.calibrate(params, reference))
    tasks = data.episodes("test", evaluation.EPISODE_SEED, 0, range(4), spec)
    losses, scores = adaptation_curves(calibrated, params, tasks, range(1), None)
    found = Evaluator(data, "test", spec, 4, (0,), placement())(learner, params)
    assert_same(found.losses, losses.T)
    assert_same(found.scores, scores.T)
    assert learner.model.fixed is None  # training goes on with the batch's statistics
