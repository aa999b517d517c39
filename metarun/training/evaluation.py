"""Scores on fixed episodes: the mean over tasks and its 95 % interval after every adaptation step.

A learner that predicts distributions or acts is scored by its own best estimate (`assess`), with further metrics.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.compute.device import Placement
from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.compute.task_axis import map_tasks
from metarun.compute.threads import is_small
from metarun.report.statistics.calibration import LEVEL
from metarun.report.statistics.intervals import NORMAL_95, welch_df
from metarun.report.statistics.student import t_quantile
from metarun.training.own_algorithm import explain_errors
from metarun.types import (
    Adapted,
    Algorithm,
    AlgorithmOptions,
    AssessingLearner,
    Dataset,
    DatasetOptions,
    EpisodeSpec,
    ExploringLearner,
    Loss,
    Metrics,
    Model,
    Params,
    Split,
    Task,
    optional,
)

EPISODE_SEED = 0
"""Validation and test episodes do not depend on the run's seed, so that runs are compared on the same tasks."""

MetricFunction = Callable[[Tensor, Tensor], Any]
"""Predictions and targets of one task's queries -> a number that is reported beside the loss."""

LOSS, SCORE, PREDICTION = "loss", "score", "prediction"
CALIBRATION = ("confidence", "correct", "brier", "covered", "set_size")
TASKS_PER_DRAW = 50
NUMBERS_PER_DRAW, MOST_PER_DRAW = 1_000_000, 500
"""With a small network tasks of few numbers are drawn and scored together, up to so many: the calls for 50 of them take
longer than the arithmetic. Scores do not depend on it."""
REFERENCE_INPUTS = 512
"""Training inputs that population statistics are measured on."""


@dataclass(frozen=True)
class Evaluator:
    """Scores a learner on fixed episodes of one split."""

    dataset: Dataset
    split: Split
    spec: EpisodeSpec
    tasks: int
    steps: tuple[int, ...]  # adaptation steps to report, ascending
    placement: Placement
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)  # further ones, of predictions and targets
    student: bool = False  # intervals by Student's t in place of 1.96: few tasks, which share no class
    probabilities: bool = False  # keep what calibration is measured on, of a classifier
    on_tasks: Callable[[int], None] | None = None  # called with the number of tasks that have been scored

    def __call__(self, algorithm: Algorithm, params: Params) -> Evaluation:
        calibrated = calibrate(algorithm, params, self.dataset, self.placement)
        chunk = self.placement.evaluation_chunk(self.spec, self.dataset.input_shape())
        digest, parts, probabilities = hashlib.sha256(), [], []
        source = optional(self.dataset, DatasetOptions, "original") or self.dataset  # of features, the images
        at_once = self._tasks_per_draw(params)
        for start in range(0, self.tasks, at_once):
            indices = range(start, min(start + at_once, self.tasks))
            which = self.split, EPISODE_SEED, 0, indices, self.spec
            drawn = self.dataset.episodes(*which)
            shown = drawn if source is self.dataset else source.episodes(*which)
            # Task by task, so that the hash does not depend on how many are drawn at once.
            for tensors in zip(*shown.support, *shown.query, strict=True):
                for tensor in tensors:
                    digest.update(tensor.contiguous().numpy().tobytes())
            tasks = self.placement.move_task(drawn)
            found = score_tasks(
                *(calibrated, params, tasks, self.steps, chunk, self.placement.processes),
                with_predictions=bool(self.metrics) or self.probabilities,
            )
            if self.probabilities:
                headline = find_headline(self.steps[: len(found[LOSS].T)], algorithm)
                probabilities.append(read_probabilities(found[PREDICTION][:, headline], drawn.query.y))
            if self.metrics:
                found |= self._apply_metrics(found[PREDICTION], drawn.query.y)
            parts.append({name: values for name, values in found.items() if name != PREDICTION})
            if self.on_tasks:
                self.on_tasks(indices.stop)
        metrics = {name: torch.cat([part[name] for part in parts]).T for name in parts[0]}  # each [R, T]
        losses, scores = metrics.pop(LOSS), metrics.pop(SCORE)
        steps = self.steps[: len(scores)]  # a learner without steps reports one state
        headline = find_headline(steps, algorithm)
        return Evaluation(
            steps=steps,
            losses=losses,
            scores=scores,
            headline=headline,
            higher_is_better=algorithm.loss.higher_is_better,
            episodes_sha256=digest.hexdigest(),
            best=algorithm.loss.best,
            beside={name: values[headline] for name, values in metrics.items()},
            student=self.student,
            sets=self._name_sets(),
            probabilities={name: torch.cat([part[name] for part in probabilities]) for name in CALIBRATION}
            if probabilities
            else {},
        )

    def _tasks_per_draw(self, params: Params) -> int:
        if not is_small(params):
            return TASKS_PER_DRAW
        rows = self.spec.ways * (self.spec.shots + self.spec.queries)
        fit = NUMBERS_PER_DRAW // (rows * math.prod(self.dataset.input_shape()))
        return max(TASKS_PER_DRAW, min(fit, MOST_PER_DRAW))

    def _name_sets(self) -> tuple[str, ...]:
        """The data set of each task of a test, of a mixture of several."""
        names = optional(self.dataset, DatasetOptions, "task_sets") if self.split != "train" else None
        return tuple(names(self.split, EPISODE_SEED, 0, range(self.tasks))) if names else ()

    def _apply_metrics(self, predictions: Tensor, y: Tensor) -> Metrics:
        """The further metrics [T, R] of predictions [T, R, M, ...]: one call for each task and step, on the CPU."""
        found = {}
        for name, function in self.metrics.items():
            rows = [[function(p, targets) for p in steps] for steps, targets in zip(predictions, y, strict=True)]
            found[name] = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
        return found

    def oracle(self) -> Metrics:
        """The scores of the best possible predictor, each [T]; empty if the data set does not know it."""
        oracle = optional(self.dataset, DatasetOptions, "oracle")
        return oracle(self.split, EPISODE_SEED, 0, range(self.tasks), self.spec) if oracle else {}


class Evaluation(NamedTuple):
    """The result of an evaluator. R reported adaptation steps, T tasks."""

    steps: tuple[int, ...]
    losses: Tensor  # [R, T]
    scores: Tensor  # [R, T]
    headline: int  # the row whose mean is the result
    higher_is_better: bool
    episodes_sha256: str
    best: float = 1.0  # error = best - mean, of a metric of which more is better
    beside: Mapping[str, Tensor] = {}  # further metrics of each task, at the row of the result
    student: bool = False
    unaveraged: Tensor | None = None  # [T], that row for the meta-parameters themselves, where an average is scored
    sets: tuple[str, ...] = ()  # [T] the data set of each task, where there are several
    probabilities: Mapping[str, Tensor] = {}  # of a classifier, at the row of the result (`read_probabilities`)
    optimum: Mapping[str, float] = {}  # how far the meta-parameters are from the best, where that is known

    @property
    def mean(self) -> float:
        return self.average(self.scores[self.headline])[0]

    @property
    def ci95(self) -> float:
        return self.average(self.scores[self.headline])[1]

    def average(self, values: Tensor) -> tuple[float, float]:
        """The mean over tasks [T] and half of its interval; of several data sets, the mean over these.

            mean = mean_m a_m,   half = 1.96 sqrt(sum_m v_m) / M,   v_m = s_m^2 / n_m

        a_m, s_m mean and standard deviation of the n_m tasks of set m, M sets. `student`: with the quantile of t for
        1.96, at the degrees of freedom of `welch_df`. The interval is for new tasks of these sets, not for other sets.
        """
        parts = list(self.by_set(values).values())
        if not parts:
            return mean_and_interval(values, self.student)
        found = [mean_and_interval(part) for part in parts]
        mean, half = sum(mean for mean, _ in found) / len(found), math.hypot(*(half for _, half in found)) / len(found)
        df = welch_df([part.numpy() for part in parts]) if self.student else math.nan
        return mean, half * t_quantile(0.975, df) / NORMAL_95 if df > 0 else half

    def by_set(self, values: Tensor) -> dict[str, Tensor]:
        """The values [T] of each data set's tasks; empty without several sets."""
        return {name: values[[own == name for own in self.sets]] for name in dict.fromkeys(self.sets)}

    @property
    def error(self) -> float:
        """Lower is better: the mean itself for an error measure, 1 - mean for an accuracy, -mean of a likelihood."""
        return self.best - self.mean if self.higher_is_better else self.mean

    def curve(self) -> list[dict[str, Any]]:
        """Mean and interval of the reported metric, and the mean loss, after every step."""
        rows = []
        for step, scores, losses in zip(self.steps, self.scores, self.losses, strict=True):
            mean, ci95 = self.average(scores)
            rows.append({"step": step, "mean": mean, "ci95": ci95, "loss": float(losses.double().mean())})
        return rows


def find_headline(steps: Sequence[int], algorithm: Algorithm) -> int:
    """The row whose mean is the result."""
    return steps.index(min(algorithm.test_inner_steps, steps[-1]))


def read_probabilities(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What calibration is measured on (report/statistics/calibration.py), of logits [T, M, N] and labels [T, M]:
    `confidence` and `correct` [T, M]; `brier`, `covered` and `set_size` [T], means over the queries of a task."""
    p = logits.double().softmax(-1)
    confidence, chosen = p.max(-1)
    ordered = p.sort(-1, descending=True).values
    size = ((ordered.cumsum(-1) - ordered) < LEVEL).sum(-1)  # the smallest number of classes with enough probability
    own = p.gather(-1, y[..., None])
    inside = own >= ordered.gather(-1, size[..., None] - 1)
    brier = p.square().sum(-1) - 2 * own[..., 0] + 1
    means = {"brier": brier, "covered": inside[..., 0].double(), "set_size": size.double()}
    return {"confidence": confidence, "correct": chosen == y, **{name: v.mean(-1) for name, v in means.items()}}


def mean_and_interval(values: Tensor, student: bool = False) -> tuple[float, float]:
    """Mean over tasks and 1.96 sd / sqrt(n), the half-width that the field prints (sd with n - 1); `student`: with the
    quantile of t_{n-1} for 1.96."""
    values, count = values.double(), len(values)
    spread = float(values.std()) if count > 1 else math.nan
    factor = t_quantile(0.975, count - 1) if student and count > 1 else NORMAL_95
    return float(values.mean()), factor * spread / math.sqrt(count)


def adaptation_curves(
    algorithm: Algorithm,
    params: Params,
    tasks: Task,
    steps: Sequence[int],
    chunk: int | None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Query losses and scores [T, R] after each of the R adaptation `steps` ([T, 1] for a learner without steps)."""
    found = score_tasks(algorithm, params, tasks, steps, chunk, processes)
    return found[LOSS], found[SCORE]


def score_tasks(
    algorithm: Algorithm,
    params: Params,
    tasks: Task,
    steps: Sequence[int],
    chunk: int | None,
    processes: ProcessGroup = SINGLE_PROCESS,
    with_predictions: bool = False,
) -> Metrics:
    """The same by name, with the further metrics of an AssessingLearner; each [T, R]. `with_predictions` adds those of
    the queries [T, R, M, ...]."""

    predict_states = optional(algorithm, AlgorithmOptions, "predict_states")

    def one(params: Params, task: Task) -> tuple[Metrics, Metrics]:
        if isinstance(algorithm, ExploringLearner):  # it explores its own support set
            states = algorithm.explore_steps(params, task.support, max(steps))
        else:
            states = algorithm.adaptations(params, task.support, max(steps))
        kept = [adapted for step, adapted in enumerate(states) if step in steps]
        if predict_states:
            predicted = predict_states(kept, task.query.x)
            rows = [score_predictions(algorithm.loss, p, task.query.y, with_predictions) for p in predicted]
        else:
            rows = [score_queries(algorithm, adapted, task, with_predictions) for adapted in kept]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, {}

    with torch.no_grad(), explain_errors(algorithm):
        found, _ = map_tasks(one, len(tasks.support.x), chunk, processes=processes)(params, tasks)
    return {name: values.cpu() for name, values in found.items()}


def score_queries(algorithm: Algorithm, adapted: Adapted, task: Task, with_prediction: bool = False) -> Metrics:
    """Loss and score on the queries of one task, and the further metrics of an AssessingLearner."""
    if isinstance(algorithm, AssessingLearner):
        found = dict(algorithm.assess(adapted, task))
        prediction = {PREDICTION: algorithm.predict(adapted, task.query.x)} if with_prediction else {}
        return {LOSS: found.pop("loss"), SCORE: found.pop(algorithm.loss.metric), **found, **prediction}
    return score_predictions(algorithm.loss, algorithm.predict(adapted, task.query.x), task.query.y, with_prediction)


def score_predictions(loss: Loss, predicted: Tensor, y: Tensor, with_prediction: bool) -> Metrics:
    found = {LOSS: loss(predicted, y), SCORE: loss.score(predicted, y)}
    return found | ({PREDICTION: predicted} if with_prediction else {})


def calibrate(algorithm: Algorithm, params: Params, dataset: Dataset, placement: Placement) -> Algorithm:
    """The learner to evaluate: with the statistics of training inputs where the network's normalisation asks for them,
    in the precision of `params`."""
    dtype = next(iter(params.values())).dtype
    reference = placement.move(dataset.reference_inputs(REFERENCE_INPUTS)).to(dtype)
    return replace_model(algorithm, algorithm.model.calibrate(params, reference))


def replace_model(algorithm: Any, model: Model) -> Algorithm:
    """The same learner with another network, such as one with fixed statistics."""
    return algorithm if model is algorithm.model else dataclasses.replace(algorithm, model=model)
