"""SimpleShot, Baseline and Baseline++: ordinary training on numbered classes, and what they make of a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import LinearModel, assert_same
from torch import Tensor

import metarun
from metarun.algorithms.baseline import Baseline
from metarun.algorithms.classifier import BIAS, WEIGHT
from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.simpleshot import Centred, SimpleShot, simpleshot
from metarun.errors import UserError
from metarun.jobs.train import build_alarms
from metarun.storage.run_folder import RunFolder
from metarun.training.evaluation import LOSS, score_tasks
from metarun.training.experiment import assemble
from metarun.types import Batch, EpisodeSpec, Params, Task

WAYS, CLASSES, INPUTS, FEATURES = 3, 7, 5, 4
MODEL = LinearModel(INPUTS, FEATURES, bias=True)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def baseline(classifier: str, steps: int = 3) -> Baseline:
    return Baseline(MODEL, CrossEntropy(), WAYS, CLASSES, classifier, 5.0, 0.1, steps, 0.01)


def doubles(learner: Baseline | SimpleShot) -> Params:
    return {name: value.double() for name, value in learner.init(0).items()}


SUPPORT = Batch(draw(6, INPUTS, seed=1), torch.tensor([0, 1, 2, 2, 1, 0]))
QUERIES = draw(5, INPUTS, seed=2)
BATCH = Task(
    Batch(draw(4, INPUTS, seed=3), torch.tensor([6, 0, 2, 2])), Batch(draw(3, INPUTS, seed=4), torch.arange(3))
)
LEARNERS = [SimpleShot(MODEL, CrossEntropy(), WAYS, CLASSES, "un"), baseline("linear"), baseline("cosine")]


@pytest.mark.parametrize("learner", LEARNERS, ids=["simpleshot", "baseline", "baselinepp"])
def test_training_is_that_of_a_classifier_of_all_classes(learner: Baseline | SimpleShot) -> None:
    """Against autograd of F.cross_entropy on support and query rows together."""
    theta = {name: value.requires_grad_() for name, value in doubles(learner).items()}
    x, y = (torch.cat(parts) for parts in zip(*BATCH, strict=True))
    z = MODEL.apply(theta, x)
    if learner is LEARNERS[2]:
        scores = 5.0 * F.cosine_similarity(z[:, None], theta[WEIGHT][None], dim=-1)
        assert BIAS not in theta
    else:
        scores = z @ theta[WEIGHT].T + theta[BIAS]
    loss = F.cross_entropy(scores, y)
    expected = dict(zip(theta, torch.autograd.grad(loss, [*theta.values()]), strict=True))
    found, metrics = learner.meta_grad({name: value.detach() for name, value in theta.items()}, BATCH)
    assert_same(found, expected)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("normalize", ["un", "l2n", "cl2n"])
def test_simpleshot_takes_the_nearest_mean_of_normalized_features(normalize: str) -> None:
    """Row by row; the mean that cl2n subtracts is that of the reference inputs, and 0 before it is measured."""
    learner = simpleshot(MODEL, CrossEntropy(), WAYS, CLASSES, normalize)
    theta, reference = doubles(learner), draw(20, INPUTS, seed=5)
    tested = SimpleShot(learner.model.calibrate(theta, reference), CrossEntropy(), WAYS, CLASSES, normalize)
    mean = MODEL.apply(theta, reference).mean(0) if normalize == "cl2n" else torch.zeros(FEATURES).double()
    for at, m in ((tested, mean), (learner, 0 * mean)):

        def embed(x: Tensor, m: Tensor = m) -> Tensor:
            z = MODEL.apply(theta, x) - m
            return z if normalize == "un" else z / z.square().sum(1, keepdim=True).sqrt()

        z = embed(SUPPORT.x)
        centres = torch.stack([z[SUPPORT.y == n].mean(0) for n in range(WAYS)])
        expected = -(embed(QUERIES)[:, None] - centres[None]).square().sum(-1)
        assert_same(at.predict(at.adapt(theta, SUPPORT), QUERIES), expected)
    assert isinstance(learner.model, Centred) == (normalize == "cl2n")


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_a_new_head_descends_the_penalised_support_loss(classifier: str) -> None:
    """Steps written out with autograd, from 0 or from the class means; features do not move."""
    learner = baseline(classifier)
    theta = doubles(learner)
    z, queries = MODEL.apply(theta, SUPPORT.x), MODEL.apply(theta, QUERIES)
    means = torch.stack([z[SUPPORT.y == n].mean(0) for n in range(WAYS)])
    head = [means] if classifier == "cosine" else [0 * means, torch.zeros(WAYS, dtype=torch.float64)]

    def scores(rows: Tensor, w: list[Tensor]) -> Tensor:
        return rows @ w[0].T + w[1] if len(w) == 2 else 5.0 * F.normalize(rows, dim=-1) @ F.normalize(w[0], dim=-1).T

    states = [*learner.adaptations(theta, SUPPORT, 3)]
    for state in states:
        assert_same(learner.predict(state, QUERIES), scores(queries, head))
        leaves = [w.clone().requires_grad_() for w in head]
        loss = F.cross_entropy(scores(z, leaves), SUPPORT.y) + 0.005 * sum(w.square().sum() for w in leaves)
        head = [w - 0.1 * g for w, g in zip(head, torch.autograd.grad(loss, leaves), strict=True)]
    assert len(states) == 4
    assert_same(learner.predict(learner.adapt(theta, SUPPORT), QUERIES), learner.predict(states[3], QUERIES))


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_the_heads_of_all_steps_are_scored_on_features_that_are_computed_once(classifier: str) -> None:
    sizes = []

    class Counted(LinearModel):
        def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
            sizes.append(len(x))
            return super().apply(params, x, stats)

    learner = replace(baseline(classifier), model=Counted(INPUTS, FEATURES, bias=True))
    theta, y = doubles(learner), torch.tensor([0, 1, 2, 0, 1])
    tasks = Task(*(Batch(x[None], labels[None]) for x, labels in (SUPPORT, (QUERIES, y))))
    found = score_tasks(learner, theta, tasks, range(4), 1)[LOSS]
    assert sizes.count(len(QUERIES)) == 1
    each = [F.cross_entropy(learner.predict(state, QUERIES), y) for state in learner.adaptations(theta, SUPPORT, 3)]
    assert_same(found[0], torch.stack(each))


TINY = [
    "data=folder",
    "data.image_size=8",
    "data.ways=2",
    "data.queries=1",
    "data.test_queries=1",
    "model.filters=2",
    "model.pool=stride",
]
TINY += ["train.steps=2", "train.tasks=1", "val.tasks=2", "test.tasks=2", "report=false", "device.compile=false"]


def test_labels_of_training_are_numbers_of_classes(root: Path) -> None:
    """The same in all episodes; those of validation and test stay the task's. The classifier has a row of each."""
    experiment = assemble(metarun.compose(["algo=simpleshot", *TINY, f"data.root={root}"]))
    dataset, names = experiment.dataset, experiment.dataset.members["train"]
    spec = EpisodeSpec(2, 1, 1)
    seen = set()
    for step in range(6):
        task = dataset.episodes("train", 0, step, range(2), spec)
        drawn = dataset.class_names("train", 0, step, range(2), spec)
        for labels, classes in zip(task.query.y.tolist(), drawn, strict=True):
            assert [names[label] for label in labels] == [*classes]
            seen |= {*labels}
        assert torch.equal(task.support.y, task.query.y)
    assert seen == {*range(len(names))}
    assert dataset.episodes("val", 0, 0, range(1), spec).support.y.tolist() == [[0, 1]]
    assert experiment.algorithm.init(0)[WEIGHT].shape[0] == len(names)


def test_alarms_compare_the_loss_with_a_guess_among_all_classes(root: Path, tmp_path: Path) -> None:
    experiment = assemble(metarun.compose(["algo=simpleshot", *TINY, f"data.root={root}"]))
    classes = len(experiment.initial_params()[BIAS])
    assert classes > experiment.train_spec.ways
    alarms = build_alarms(experiment, RunFolder(tmp_path))
    assert alarms.history.run.chance.loss == pytest.approx(np.log(classes))


@pytest.mark.parametrize("algo", ["simpleshot", "baselinepp"])
def test_a_run_trains_and_is_tested_again(algo: str, root: Path, tmp_path: Path) -> None:
    config = metarun.compose([f"algo={algo}", *TINY, f"data.root={root}"])
    result = metarun.run(config, tmp_path / "run")
    assert result.status == "completed"
    again = metarun.run(
        metarun.compose([f"run={tmp_path / 'run'}", "job=evaluate", "test.tasks=2"]), tmp_path / "again"
    )
    assert again.summary["mean"] == result.summary["mean"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.normalize=l3n"], r"algo\.normalize=l3n: choices: un, l2n, cl2n"),
        (["diagnostics=full"], r"diagnostics\.level=full: algo=simpleshot is trained on batches of classes"),
        (["reg=inequality", "train.tasks=2"], r"reg=inequality algo=simpleshot: this algorithm has no inner loop"),
        (["algo.train_ways=99"], r"algo\.train_ways=99: must be 2 to \d+, the classes of the train split"),
    ],
)
def test_mistakes_are_refused_in_one_line(overrides: list[str], message: str, root: Path) -> None:
    with pytest.raises(UserError, match=message):
        assemble(metarun.compose(["algo=simpleshot", *TINY, f"data.root={root}", *overrides]))


def test_data_without_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    arrays = {f"class{i}": draw(6, 3, seed=i).numpy() for i in range(12)}
    np.savez(tmp_path / "rows.npz", x=np.concatenate([*arrays.values()]), label=np.repeat(np.arange(12), 6))
    config = ["algo=simpleshot", "data=arrays", f"data.file={tmp_path / 'rows.npz'}", "data.ways=2", "data.shots=1"]
    with pytest.raises(UserError, match=r"algo=simpleshot data=arrays: this algorithm trains a classifier of all"):
        assemble(metarun.compose(config))
