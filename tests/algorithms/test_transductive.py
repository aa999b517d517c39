"""TIM and transductive fine-tuning: their descents against torch's optimizer, and what they may know of the queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import LinearModel, assert_same
from torch import Tensor
from torch.distributions import Categorical

import metarun
from metarun.algorithms.finetuning import FineTuning
from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.simpleshot import SimpleShot
from metarun.algorithms.tim import TIM, marginal_entropy
from metarun.errors import UserError
from metarun.training.evaluation import PREDICTION, score_tasks
from metarun.training.experiment import assemble
from metarun.types import Batch, Params, Task

WAYS, CLASSES, INPUTS, FEATURES = 3, 7, 5, 4
MODEL = LinearModel(INPUTS, FEATURES, bias=True)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SUPPORT = Batch(draw(6, INPUTS, seed=1), torch.tensor([0, 1, 2, 2, 1, 0]))
QUERIES = draw(8, INPUTS, seed=2)


def tim(steps: int = 6) -> TIM:
    return TIM(MODEL, CrossEntropy(), WAYS, CLASSES, 15.0, 0.1, 0.3, 0.01, steps)


def fine_tuning(steps: int = 4, entropy_weight: float = 0.7, whole_network: bool = True) -> FineTuning:
    return FineTuning(MODEL, CrossEntropy(), WAYS, CLASSES, 0.01, steps, entropy_weight, whole_network)


def doubles(learner: Any) -> Params:
    return {name: value.double() for name, value in learner.init(0).items()}


def predict(learner: Any, x: Tensor = QUERIES) -> Tensor:
    theta = doubles(learner)
    return learner.predict(learner.adapt(theta, SUPPORT), x)


def means(z: Tensor) -> Tensor:
    return torch.stack([z[SUPPORT.y == n].mean(0) for n in range(WAYS)])


def test_tim_descends_support_loss_minus_mutual_information() -> None:
    """torch's Adam without a mean of gradients, entropies from torch.distributions, distances from torch.cdist."""
    theta = doubles(tim())
    z, queries = (F.normalize(MODEL.apply(theta, x), dim=1) for x in (SUPPORT.x, QUERIES))
    w = means(z).requires_grad_()

    def score(rows: Tensor) -> Tensor:
        return -7.5 * torch.cdist(rows, w).square()

    optimizer = torch.optim.Adam([w], lr=0.01, betas=(0.0, 0.999))
    for _ in range(6):
        p = Categorical(logits=score(queries))
        information = Categorical(probs=p.probs.mean(0)).entropy() - 0.3 * p.entropy().mean()
        optimizer.zero_grad()
        (0.1 * F.cross_entropy(score(z), SUPPORT.y) - information).backward()
        optimizer.step()
    torch.testing.assert_close(predict(tim()), score(queries).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("whole_network", [True, False])
def test_fine_tuning_alternates_between_support_and_queries(whole_network: bool) -> None:
    learner = fine_tuning(whole_network=whole_network)
    theta = doubles(learner)
    leaves = {k: v.clone().requires_grad_(whole_network) for k, v in theta.items() if not k.startswith("learned.")}
    w = F.normalize(means(MODEL.apply(theta, SUPPORT.x)), dim=1).requires_grad_()
    b = torch.zeros(WAYS, dtype=torch.float64, requires_grad=True)

    def score(x: Tensor) -> Tensor:
        return F.normalize(MODEL.apply(leaves, x), dim=1) @ w.T + b

    optimizer = torch.optim.Adam([w, b, *(leaves.values() if whole_network else ())], lr=0.01, betas=(0.0, 0.999))
    for step in range(8):
        optimizer.zero_grad()
        entropy = Categorical(logits=score(QUERIES)).entropy().mean()
        (0.7 * entropy if step % 2 else F.cross_entropy(score(SUPPORT.x), SUPPORT.y)).backward()
        optimizer.step()
    torch.testing.assert_close(predict(learner), score(QUERIES).detach(), rtol=1e-9, atol=1e-9)


def test_without_steps_both_are_the_nearest_class_mean() -> None:
    simple = SimpleShot(MODEL, CrossEntropy(), WAYS, CLASSES, "l2n")
    assert_same(predict(tim(0)), 7.5 * predict(simple))
    theta = doubles(simple)
    centres = means(MODEL.apply(theta, SUPPORT.x))
    cosines = F.cosine_similarity(MODEL.apply(theta, QUERIES)[:, None], centres[None], dim=-1)
    assert_same(predict(fine_tuning(0)), cosines)


def test_the_marginal_entropy_is_finite_where_a_class_is_impossible() -> None:
    logits = torch.tensor([[0.0, -1e4, 0.0], [0.0, -1e4, -2.0]], dtype=torch.float64, requires_grad=True)
    expected = Categorical(probs=logits.detach().softmax(1).mean(0)).entropy()
    found = marginal_entropy(logits)
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-12)
    found.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("learner", [tim(), fine_tuning()], ids=["tim", "finetuning"])
def test_labels_of_queries_change_no_prediction(learner: Any) -> None:
    """By way of the evaluation that tests a run; their inputs change the predictions of others."""
    theta, labels = doubles(learner), torch.arange(8) % WAYS
    found = []
    for y in (labels, labels.flip(0), torch.zeros(8, dtype=torch.int64)):
        tasks = Task(Batch(SUPPORT.x[None], SUPPORT.y[None]), Batch(QUERIES[None], y[None]))
        found.append(score_tasks(learner, theta, tasks, (0,), None, with_predictions=True)[PREDICTION])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert float((predict(learner, QUERIES[:5]) - predict(learner)[:5]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("learner", "transductive"),
    [(tim(), True), (tim(0), False), (fine_tuning(), True), (fine_tuning(0), False), (fine_tuning(4, 0.0), False)],
)
def test_a_learner_is_transductive_where_queries_see_each_other(learner: Any, transductive: bool) -> None:
    assert learner.transductive is transductive
    alone = predict(learner, QUERIES[:5])
    assert torch.allclose(alone, predict(learner)[:5], rtol=1e-9, atol=1e-9) is not transductive


TINY = ["data=folder", "data.image_size=8", "data.ways=2", "data.queries=1", "data.test_queries=2"]
TINY += ["model.filters=2", "model.pool=stride", "report=false", "device.compile=false"]
TINY += ["train.steps=2", "train.tasks=1", "val.tasks=2", "test.tasks=2"]
SHORT = {"tim": "algo.steps=3", "finetuning": "algo.steps=2", "protonet": "algo.temperature=2", "r2d2": "algo.ridge=2"}


def test_another_learner_of_features_tests_the_weights_of_a_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own meta-parameters keep their first values, those of the run's algorithm are left out; the result line and
    the summary say which is transductive."""
    metarun.run(metarun.compose(["algo=protonet", *TINY, f"data.root={root}"]), tmp_path / "protonet")
    metarun.run(metarun.compose(["algo=tim", *TINY, SHORT["tim"], f"data.root={root}"]), tmp_path / "tim")
    for run, algo in (("protonet", "tim"), ("protonet", "finetuning"), ("protonet", "r2d2"), ("tim", "protonet")):
        typed = ["job=evaluate", f"run={tmp_path / run}", f"algo={algo}", SHORT[algo], "report=false"]
        capsys.readouterr()
        result = metarun.run(metarun.compose(typed), tmp_path / f"{run}_{algo}")
        printed = capsys.readouterr().out
        assert result.summary["transductive"] is (algo in ("tim", "finetuning"))
        assert (f"{algo} (transductive) on folder" in printed) is result.summary["transductive"]
    strength = result_params(tmp_path / "protonet", root, "r2d2")["learned.log_lambda"]
    assert float(strength.exp()) == pytest.approx(2.0)


def result_params(run: Path, root: Path, algo: str) -> Params:
    typed = ["job=evaluate", f"run={run}", f"algo={algo}", SHORT[algo], "report=false"]
    return metarun.run(metarun.compose(typed), run.with_name("params")).params


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=tim", "algo.scale=0"], r"algo\.scale=0\.0: must be above 0 and finite"),
        (["algo=tim", "algo.entropy_weight=-1"], r"algo\.entropy_weight=-1\.0: must be at least 0"),
        (["algo=tim", "algo.steps=-1"], r"algo\.steps=-1: must be at least 0"),
        (["algo=finetuning", "algo.inner_lr=0"], r"algo\.inner_lr=0\.0: must be above 0"),
        (["algo=finetuning", "diagnostics=full"], r"diagnostics\.level=full: algo=finetuning is trained on batches"),
    ],
)
def test_mistakes_are_refused_in_one_line(overrides: list[str], message: str, root: Path) -> None:
    with pytest.raises(UserError, match=message):
        assemble(metarun.compose([*TINY, f"data.root={root}", *overrides]))


def test_a_user_s_own_loss_is_that_of_the_support_set() -> None:
    halved = replace(tim(), loss=Halved())
    weighted = replace(tim(), support_weight=0.05)
    assert_same(predict(halved), predict(weighted))


class Halved(CrossEntropy):
    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        return super().__call__(prediction, y) / 2
