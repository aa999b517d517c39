r"""Similarity of layers, separation of classes, and adaptation of the head alone, against small known cases."""

from __future__ import annotations

import pytest
import torch
from helpers.quadratic import EXACT, LinearModel, assert_same, gradient, random_task, stack_tasks
from torch import Tensor

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.diagnostics.representation import (
    adapt_head,
    class_means,
    class_measures,
    head_only_measures,
    linear_cka,
    nil_accuracy,
    query_activations,
    separation,
    similarity_measures,
)
from metarun.diagnostics.task_sample import TaskSample
from metarun.models.mlp import mlp
from metarun.models.network import Network
from metarun.types import Batch, Loss, Params, Task


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_the_ratio_of_frobenius_norms_of_centred_cross_products() -> None:
    x, y = normal(9, 4), normal(9, 6, seed=1) + 3
    xc, yc = x - x.mean(0), y - y.mean(0)
    expected = (yc.T @ xc).norm() ** 2 / ((xc.T @ xc).norm() * (yc.T @ yc).norm())
    assert_same(linear_cka(x, y), expected)
    assert_same(linear_cka(y, x), expected)


def test_cka_of_single_columns_is_their_squared_correlation() -> None:
    """x = (0, 1, 2), y = (0, 1, 0.5): covariance 0.5, variances 2 and 0.5, so 0.25 / 1."""
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.5]])
    assert float(linear_cka(x, y)) == pytest.approx(0.25)


def test_cka_sees_no_rotation_no_scale_and_no_shift_but_other_linear_maps() -> None:
    x = normal(12, 5)
    rotation = torch.linalg.qr(normal(5, 5, seed=1)).Q
    assert float(linear_cka(x, x)) == pytest.approx(1, abs=1e-12)
    assert float(linear_cka(x, -3 * x @ rotation + 7)) == pytest.approx(1, abs=1e-12)
    assert float(linear_cka(x, x @ torch.diag(torch.tensor([1.0, 1, 1, 1, 20]).double()))) < 0.9


def test_cka_of_unrelated_columns_is_zero_and_of_a_dead_layer_undefined() -> None:
    x, y = torch.tensor([[1.0], [-1], [1], [-1]]), torch.tensor([[1.0], [1], [-1], [-1]])
    assert float(linear_cka(x, y)) == 0
    assert torch.isnan(linear_cka(x, torch.ones(4, 3)))


def test_class_separation_is_the_variance_within_over_the_variance_between_classes() -> None:
    """Means (1, 0) and (5, 0), each class 1 away from its own on both sides: 4 / (4 - 2) over (4 + 4) / (2 - 1)."""
    z = torch.tensor([[0.0, 0], [5, 1], [2, 0], [5, -1]]).double()
    y = torch.tensor([0, 1, 0, 1])
    assert_same(class_means(z, y, 2), torch.tensor([[1.0, 0], [5, 0]]).double())
    assert float(separation(z, y, 2)) == pytest.approx(2 / 8)
    assert float(separation(-3 * z + 2, y, 2)) == pytest.approx(2 / 8)
    assert float(separation(z[[0, 1, 0, 1]], y, 2)) == 0


def test_separation_estimates_the_ratio_of_the_variances_whatever_the_number_of_images() -> None:
    """Means of variance 1 a coordinate, images of variance 0.01 around them: 0.01, not half of it for two images."""
    for rows in (2, 10):
        mu, y = normal(300, 3), torch.arange(300).repeat(rows)
        z = mu[y] + 0.1 * normal(len(y), 3, seed=1)
        assert float(separation(z, y, 300)) == pytest.approx(0.01, rel=0.15)


def network(norm: str = "none", outputs: int | None = 2, hidden: tuple[int, ...] = (6, 5)) -> Network:
    return mlp((3,), outputs, hidden=hidden, norm=norm)


def params_of(model: Network) -> Params:
    return {k: v.double() for k, v in model.init(1).items()}


def classes(seed: int, ways: int = 2, support: int = 6, query: int = 8) -> Task:
    x = normal(support + query, 3, seed=seed)
    y = torch.arange(support + query) % ways
    return Task(Batch(x[:support], y[:support]), Batch(x[support:], y[support:]))


def maml(model: Network, loss: Loss | None = None, steps: int = 3, rate: float = 0.4) -> MAML:
    return MAML(model, loss or CrossEntropy(), rate, steps, steps, first_order=False)


TASKS = [classes(seed) for seed in range(3)]
PROBES = TaskSample(stack_tasks(TASKS), None)


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("norm", ["none", "batch", "support", "layer"])
def test_cka_is_between_the_layers_that_predict_before_and_after_adaptation(norm: str, chunk: int | None) -> None:
    model = network(norm)
    learner, theta = maml(model), params_of(model)
    found = similarity_measures(learner, theta, TaskSample(PROBES.tasks, chunk))
    assert list(found) == ["cka/block0", "cka/block1", "cka/features"]
    expected = []
    for task in TASKS:
        phi = learner.adapt(theta, task.support)
        stats = [model.measure(w, task.support.x) if norm == "support" else None for w in (theta, phi.params)]
        before = model.activations(theta, task.query.x, stats[0])["block1"]
        after = model.activations(phi.params, task.query.x, stats[1])["block1"]
        expected.append(float(linear_cka(before, after)))
    assert found["cka/block1"] == pytest.approx(sum(expected) / 3, rel=EXACT)
    assert found["cka/block1"] < 1 - 1e-6


def test_query_activations_end_in_the_features_that_a_prediction_is_made_from() -> None:
    model = network("support")
    theta, task = params_of(model), TASKS[0]
    features = query_activations(model, theta, task)["features"]
    logits = features @ theta["head.weight"].T + theta["head.bias"]
    assert_same(logits, model.apply(theta, task.query.x, model.query_stats(theta, task.support.x)))


def test_no_adaptation_leaves_every_layer_as_it_was() -> None:
    model = network()
    found = similarity_measures(maml(model, rate=1e-300), params_of(model), PROBES)
    assert list(found.values()) == pytest.approx([1, 1, 1], abs=1e-12)


def test_nil_labels_a_query_by_the_cosine_to_the_class_means() -> None:
    """Features are relu(x), class means (2, 0) and (0, 1). By angle (1, 0.9) is of the first and (1.2, 1.3) of the
    second; by distance both would be of the second, by inner product both of the first."""
    model = mlp((2,), 2, hidden=(2,), norm="none")
    theta = params_of(model) | {"block0.weight": torch.eye(2).double(), "block0.shift": torch.zeros(2).double()}
    support = Batch(torch.tensor([[1.0, 0], [0, 1], [3, 0], [0, 1]]).double(), torch.tensor([0, 1, 0, 1]))
    query = Batch(torch.tensor([[1.0, 0.9], [1.2, 1.3], [1, 0]]).double(), torch.tensor([0, 1, 1]))
    assert float(nil_accuracy(model, theta, Task(support, query), 2)) == pytest.approx(2 / 3)


def test_class_measures_of_learners_with_and_without_an_inner_loop() -> None:
    model = network("batch")
    theta = params_of(model)
    found = class_measures(maml(model), theta, PROBES, 2)
    assert set(found) == {"class_separation", "nil_accuracy"}
    ratios = []
    for task in TASKS:
        x = torch.cat([task.support.x, task.query.x])
        z = model.activations(theta, x)["features"]
        ratios.append(float(separation(z, torch.cat([task.support.y, task.query.y]), 2)))
    assert found["class_separation"] == pytest.approx(sum(ratios) / 3, rel=EXACT)
    nil = [float(nil_accuracy(model, theta, task, 2)) for task in TASKS]
    assert found["nil_accuracy"] == pytest.approx(sum(nil) / 3, rel=EXACT)
    metric = ProtoNet(network("batch", outputs=None), CrossEntropy(), 2, "euclidean", 1.0)
    assert set(class_measures(metric, params_of(network("batch", outputs=None)), PROBES, 2)) == {"class_separation"}


LINEAR = LinearModel(5, 2, bias=True)


def targets(seed: int) -> Task:
    """The inputs of a task of classes, with real targets."""
    task = classes(seed, support=9)
    return Task(*(Batch(b.x, normal(len(b.x), 2, seed=seed + 10 * part)) for part, b in enumerate(task)))


def head_of(params: Params) -> Tensor:
    return torch.cat([params["head.weight"].T, params["head.bias"][None]])


@pytest.mark.parametrize("steps", [1, 4])
def test_adapting_the_head_alone_is_linear_regression_on_the_features(steps: int) -> None:
    """On the features with a column of ones; the body stays at theta to the bit."""
    model, task = network(), targets(0)
    theta = params_of(model)
    learner = maml(model, MeanSquaredError(), steps, rate=0.1)
    features = Batch(model.activations(theta, task.support.x)["features"], task.support.y)
    w = head_of(theta)
    for _ in range(steps):
        w = w - 0.1 * gradient(features, w, bias=True)
    found = adapt_head(learner, theta, task.support)
    assert_same(head_of(found), w)
    assert all(torch.equal(found[k], theta[k]) for k in theta if not k.startswith("head."))


def test_the_head_keeps_the_proximal_term_of_its_learner() -> None:
    """At a stationary point the loss's slope and the pull to theta cancel in the head."""
    model, task = network(), targets(1)
    theta = params_of(model)
    learner = IMAML(model, MeanSquaredError(), 2.0, 0.1, 300, 300, cg_steps=3, cg_damping=0.0)
    found = head_of(adapt_head(learner, theta, task.support))
    features = Batch(model.activations(theta, task.support.x)["features"], task.support.y)
    assert_same(gradient(features, found, bias=True), -2 * (found - head_of(theta)), rtol=1e-8)


@pytest.mark.parametrize("chunk", [None, 1])
def test_the_gain_from_the_body_is_positive_where_adapting_it_helps(chunk: int | None) -> None:
    model = network("layer")
    theta = params_of(model)
    tasks = [targets(seed) for seed in range(3)]
    fitted = [Task(t.support, t.support) for t in tasks]  # more weights fit the support set better
    found = head_only_measures(maml(model, MeanSquaredError(), 5, 0.05), theta, TaskSample(stack_tasks(fitted), chunk))
    assert found["gain_from_body"] == pytest.approx(found["head_only_mse"] - found["full_mse"], rel=1e-9)
    assert found["gain_from_body"] > 0
    learner = maml(model, steps=30)
    fitted = [Task(t.support, t.support) for t in TASKS]
    found = head_only_measures(learner, theta, TaskSample(stack_tasks(fitted), chunk))
    assert found["gain_from_body"] == pytest.approx(found["full_accuracy"] - found["head_only_accuracy"], abs=1e-12)
    assert found["gain_from_body"] > 0
    adapted = [learner.adapt(theta, t.support) for t in fitted]
    scores = [
        float(learner.loss.score(learner.predict(a, t.query.x), t.query.y))
        for a, t in zip(adapted, fitted, strict=True)
    ]
    assert found["full_accuracy"] == pytest.approx(sum(scores) / 3, rel=EXACT)


def test_a_network_without_a_head_has_no_head_to_adapt() -> None:
    task = random_task(LINEAR, 0)
    learner = MAML(LINEAR, MeanSquaredError(), 0.1, 2, 2, first_order=False)
    assert head_only_measures(learner, LINEAR.init(0), TaskSample(stack_tasks([task]), None)) == {}
