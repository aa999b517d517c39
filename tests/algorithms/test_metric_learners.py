"""Prototypical and matching networks against loops over rows and classes, and the LSTMs against torch's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import EXACT, LinearModel, assert_same
from torch import Tensor

from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.matchingnet import MatchingNet, _lstm_cell, embed_query, embed_support, init_fce
from metarun.algorithms.protonet import ProtoNet
from metarun.errors import SettingError
from metarun.models.mlp import mlp
from metarun.types import Batch, Params, Task

WAYS, SHOTS, QUERIES, INPUTS, FEATURES = 3, 2, 4, 5, 4
DISTANCES = pytest.mark.parametrize("distance", ["euclidean", "cosine"])
MODEL = LinearModel(INPUTS, FEATURES, bias=True)
PARAMS = MODEL.init(0)


def protonet(distance: str = "euclidean", temperature: float = 1.0) -> ProtoNet:
    return ProtoNet(MODEL, CrossEntropy(), WAYS, distance, temperature)


def matchingnet(distance: str = "cosine", temperature: float = 1.0, use_fce: bool = False) -> MatchingNet:
    return MatchingNet(MODEL, CrossEntropy(), WAYS, distance, temperature, use_fce, 3)


def task(seed: int = 0, shots: int = SHOTS) -> Task:
    """Rows in a mixed order of classes, so that nothing can rely on their position."""
    draw = torch.Generator().manual_seed(seed)

    def batch(per_class: int) -> Batch:
        order = torch.randperm(WAYS * per_class, generator=draw)
        x = torch.randn(WAYS * per_class, INPUTS, generator=draw, dtype=torch.float64)
        return Batch(x, torch.arange(WAYS).repeat(per_class)[order])

    return Task(batch(shots), batch(QUERIES))


def embed(x: Tensor, params: Params = PARAMS) -> Tensor:
    return x @ params["w"] + params["b"]


def alike(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """The similarity of two vectors, from its definition."""
    if distance == "cosine":
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())
    return -(a - b).square().sum()


def class_means(z: Tensor, y: Tensor) -> list[Tensor]:
    return [torch.stack([z[j] for j in range(len(y)) if int(y[j]) == n]).mean(0) for n in range(WAYS)]


# ---------------------------------------------------------------- ProtoNet


@DISTANCES
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_protonet_logits_compare_every_query_with_every_class_mean(distance: str, temperature: float) -> None:
    """logit[m, n] = -d(z_m, c_n) / tau, c_n the mean embedding of the support rows of class n."""
    episode = task(1)
    algorithm = protonet(distance, temperature)
    centres = class_means(embed(episode.support.x), episode.support.y)
    expected = [[alike(z, c, distance) / temperature for c in centres] for z in embed(episode.query.x)]
    adapted = algorithm.adapt(PARAMS, episode.support)
    assert_same(adapted.centres, torch.stack(centres))
    assert_same(algorithm.predict(adapted, episode.query.x), torch.tensor(expected, dtype=torch.float64))


def test_protonet_with_squared_distances_is_a_linear_classifier() -> None:
    """-|z - c_n|^2 = 2 c_n.z - |c_n|^2 - |z|^2 (Snell et al. 2017, eq. 8): weights 2 c_n, biases -|c_n|^2.

    The last term is the same for all classes and drops out of the softmax.
    """
    episode = task(2)
    algorithm = protonet()
    z = embed(episode.query.x)
    c = torch.stack(class_means(embed(episode.support.x), episode.support.y))
    linear = 2 * z @ c.T - c.square().sum(1)
    logits = algorithm.predict(algorithm.adapt(PARAMS, episode.support), episode.query.x)
    assert_same(logits, linear - z.square().sum(1, keepdim=True))
    assert_same(logits.softmax(-1), linear.softmax(-1))


def test_protonet_meta_gradient_is_that_of_the_query_cross_entropy() -> None:
    """plain autograd through means, squared distances and -log softmax, written as loops."""
    episode = task(3)
    theta = {k: p.clone().requires_grad_() for k, p in PARAMS.items()}
    centres = class_means(embed(episode.support.x, theta), episode.support.y)
    total = torch.zeros((), dtype=torch.float64)
    for z, label in zip(embed(episode.query.x, theta), episode.query.y, strict=True):
        similarities = torch.stack([alike(z, c, "euclidean") for c in centres])
        total = total + similarities.logsumexp(0) - similarities[label]
    mean = total / len(episode.query.y)
    expected = dict(zip(theta, torch.autograd.grad(mean, list(theta.values())), strict=True))
    found, metrics = protonet().meta_grad(PARAMS, episode)
    assert_same(metrics["loss"], mean)
    # The bias moves z and c_n together, so that its gradient is 0: compare on the scale of the weights' gradient.
    assert_same(torch.cat([found["w"], found["b"][None]]), torch.cat([expected["w"], expected["b"][None]]))
    assert float(found["b"].abs().max()) < EXACT * float(found["w"].abs().max())


@pytest.mark.parametrize("kind", ["protonet", "matchingnet"])
def test_accuracy_counts_the_queries_whose_largest_logit_is_their_own(kind: str) -> None:
    """The `accuracy` metric against a count by hand."""
    episode = task(4)
    algorithm = protonet() if kind == "protonet" else matchingnet()
    logits = algorithm.predict(algorithm.adapt(PARAMS, episode.support), episode.query.x)
    right = sum(row.tolist().index(max(row.tolist())) == int(y) for row, y in zip(logits, episode.query.y, strict=True))
    _, metrics = algorithm.meta_grad(PARAMS, episode)
    assert 0 < right < len(logits)
    assert float(metrics["accuracy"]) == pytest.approx(right / len(logits), rel=EXACT)


@pytest.mark.parametrize("norm", ["none", "batch", "joined", "support", "population"])
@pytest.mark.parametrize("kind", ["protonet", "matchingnet", "matchingnet-fce"])
def test_one_pass_over_support_and_query_shares_batch_statistics_only_where_the_norm_says_so(
    kind: str, norm: str
) -> None:
    """`meta_grad` embeds [support; query] at once. Without batch statistics, or with those of the support set, that is
    adapt-then-predict. With the batch's, its loss is that of embeddings normalised over all S + M rows.
    """
    network = mlp((INPUTS,), None, (6, FEATURES), norm)
    if kind == "protonet":
        algorithm = ProtoNet(network, CrossEntropy(), WAYS, "euclidean", 0.5)
    else:
        algorithm = MatchingNet(network, CrossEntropy(), WAYS, "cosine", 0.5, kind.endswith("fce"), 2)
    params = {k: p.double() for k, p in algorithm.init(1).items()}
    episode = task(5)
    _, metrics = algorithm.meta_grad(params, episode)
    apart = algorithm.predict(algorithm.adapt(params, episode.support), episode.query.x)
    apart_loss = F.cross_entropy(apart, episode.query.y)
    if norm in ("none", "support", "joined"):
        assert_same(metrics["loss"], apart_loss)
        return
    # A model whose statistics are fixed to those of the whole episode, as `calibrated` measures them.
    joint_x = torch.cat([episode.support.x, episode.query.x])
    population = mlp((INPUTS,), None, (6, FEATURES), "population").calibrate(params, joint_x)
    fixed = type(algorithm)(**{**vars(algorithm), "model": population})
    joint = fixed.predict(fixed.adapt(params, episode.support), episode.query.x)
    assert_same(metrics["loss"], F.cross_entropy(joint, episode.query.y))
    assert abs(float(metrics["loss"] - apart_loss)) > 1e-4


# ---------------------------------------------------------------- MatchingNet


@DISTANCES
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("shots", [1, 2])
def test_matchingnet_attends_to_every_support_row(distance: str, temperature: float, shots: int) -> None:
    """p_n = sum over rows j of class n of exp(c(z, z_j) / tau) / sum over all rows, as a double loop."""
    episode = task(6, shots)
    algorithm = matchingnet(distance, temperature)
    keys, labels = embed(episode.support.x), episode.support.y
    expected = torch.zeros(len(episode.query.y), WAYS, dtype=torch.float64)
    for m, z in enumerate(embed(episode.query.x)):
        scores = [math.exp(float(alike(z, key, distance)) / temperature) for key in keys]
        for j, score in enumerate(scores):
            expected[m, int(labels[j])] += score / sum(scores)
    predicted = algorithm.predict(algorithm.adapt(PARAMS, episode.support), episode.query.x)
    assert_same(predicted.exp(), expected)
    assert_same(predicted, expected.log())


@DISTANCES
@pytest.mark.parametrize("use_fce", [False, True], ids=["plain", "fce"])
def test_matchingnet_probabilities_sum_to_one(distance: str, use_fce: bool) -> None:
    """Attention sums to one over rows, and each row belongs to one class."""
    algorithm = matchingnet(distance, 0.5, use_fce)
    params = {k: p.double() for k, p in algorithm.init(0).items()}
    episode = task(7)
    predicted = algorithm.predict(algorithm.adapt(params, episode.support), episode.query.x)
    assert_same(predicted.exp().sum(-1), torch.ones(len(predicted), dtype=torch.float64))


def test_matchingnet_logits_give_minus_log_p_as_cross_entropy() -> None:
    """The softmax of log p is p itself, since p sums to one: the cross-entropy of these logits is -mean log p[y]."""
    algorithm = matchingnet(temperature=0.2)
    episode = task(8)
    log_p = algorithm.predict(algorithm.adapt(PARAMS, episode.support), episode.query.x)
    chosen = torch.stack([row[y] for row, y in zip(log_p, episode.query.y, strict=True)])
    _, metrics = algorithm.meta_grad(PARAMS, episode)
    assert_same(metrics["loss"], -chosen.mean())


def test_matchingnet_stays_finite_where_attention_underflows() -> None:
    """At tau = 1e-3 and squared distances above 1 the exponents are below -1000, and exp of them is 0 in float64.

    log p is then a difference of similarities, and its gradient must not be 0 / 0.
    """
    algorithm = matchingnet("euclidean", 1e-3)
    episode = task(9)
    log_p = algorithm.predict(algorithm.adapt(PARAMS, episode.support), episode.query.x)
    assert float(log_p.min()) < -1000
    assert log_p.isfinite().all()
    found, metrics = algorithm.meta_grad(PARAMS, episode)
    assert metrics["loss"].isfinite()
    assert all(g.isfinite().all() for g in found.values())


@dataclass(frozen=True)
class Identity:
    features: int

    def apply(self, params: Params, x: Tensor, stats: None = None) -> Tensor:
        return x

    def query_stats(self, params: Params, support_x: Tensor) -> None:
        return None


@pytest.mark.parametrize(("ways", "cap"), [(5, 0.65), (20, 0.28)])
def test_temperature_one_caps_the_confidence_of_a_cosine(ways: int, cap: float) -> None:
    """The best case: cosine 1 with the own class and -1 with all others gives e / (e + (N - 1) / e)."""
    algorithm = MatchingNet(Identity(1), CrossEntropy(), ways, "cosine", 1.0, False, 1)
    keys = -torch.ones(ways, 1, dtype=torch.float64)
    keys[0] = 1
    query = torch.ones(1, 1, dtype=torch.float64)
    log_p = algorithm.predict(algorithm.adapt({}, Batch(keys, torch.arange(ways))), query)
    p = math.e / (math.e + (ways - 1) / math.e)
    assert float(log_p[0, 0].exp()) == pytest.approx(p, rel=EXACT)
    assert round(p, 2) == cap  # the figure in the module's docstring


@DISTANCES
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_with_one_shot_protonet_and_matchingnet_are_the_same_classifier(distance: str, temperature: float) -> None:
    """A class mean of one row is that row, and attention over rows is the softmax over classes."""
    episode = task(10, shots=1)
    prototypes, memory = protonet(distance, temperature), matchingnet(distance, temperature)
    logits = prototypes.predict(prototypes.adapt(PARAMS, episode.support), episode.query.x)
    log_p = memory.predict(memory.adapt(PARAMS, episode.support), episode.query.x)
    assert_same(log_p, logits.log_softmax(-1))
    one, other = prototypes.meta_grad(PARAMS, episode), memory.meta_grad(PARAMS, episode)
    assert_same(one[0]["w"], other[0]["w"])
    assert_same(one[1], other[1])


@pytest.mark.parametrize("algorithm", [protonet, matchingnet])
def test_unknown_distances_and_temperatures_of_zero_are_refused(algorithm: type[ProtoNet]) -> None:
    """The error names the field, so that the builder can name the key."""
    with pytest.raises(SettingError) as refused:
        algorithm(distance="manhattan")
    assert refused.value.key == "distance"
    with pytest.raises(SettingError) as refused:
        algorithm(temperature=0.0)
    assert refused.value.key == "temperature"


# ---------------------------------------------------------------- fully conditional embeddings

D = FEATURES


def fce_params(seed: int = 0) -> Params:
    """Random weights and, unlike the initial ones, random biases."""
    params = init_fce(D, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    return {k: torch.randn(p.shape, generator=draw, dtype=torch.float64) for k, p in params.items()}


def load_lstm(cell: torch.nn.Module, suffix: str, weight: Tensor, bias: Tensor, inputs: int) -> None:
    """metarun keeps [W_ih, W_hh] side by side and one bias; torch's gates are in the same order i, f, g, o."""
    with torch.no_grad():
        getattr(cell, f"weight_ih{suffix}").copy_(weight[:, :inputs])
        getattr(cell, f"weight_hh{suffix}").copy_(weight[:, inputs:])
        getattr(cell, f"bias_ih{suffix}").copy_(bias)
        getattr(cell, f"bias_hh{suffix}").zero_()


def embeddings(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_cell_is_an_lstm_cell() -> None:
    """c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c'), against torch.nn.LSTMCell with the same weights."""
    params = fce_params()
    cell = torch.nn.LSTMCell(D, D, dtype=torch.float64)
    load_lstm(cell, "", params["fce.forward.weight"], params["fce.forward.bias"], D)
    x, h, c = (embeddings(3, seed) for seed in (1, 2, 3))
    for found, expected in zip(_lstm_cell(params, "fce.forward", x, h, c), cell(x, (h, c)), strict=True):
        assert_same(found, expected)


def test_support_context_is_a_bidirectional_lstm_plus_a_skip() -> None:
    """g(x_j, S) = h_fwd_j + h_bwd_j + z_j; torch.nn.LSTM returns the two halves side by side."""
    params = fce_params(1)
    lstm = torch.nn.LSTM(D, D, bidirectional=True, dtype=torch.float64)
    for name, suffix in (("fce.forward", "_l0"), ("fce.backward", "_l0_reverse")):
        load_lstm(lstm, suffix, params[f"{name}.weight"], params[f"{name}.bias"], D)
    z = embeddings(6, 4)
    both, _ = lstm(z)
    assert_same(embed_support(params, z), both[:, :D] + both[:, D:] + z)


@pytest.mark.parametrize("steps", [1, 3])
def test_query_context_reads_the_support_set_by_attention(steps: int) -> None:
    """Query by query: h^, c = LSTM(z, [h, r], c); h = h^ + z; r = sum_j softmax_j(h . g_j) g_j.

    torch's LSTMCell wants a recurrent input as wide as its state; here [z, h, r] enters as its input and W_hh = 0.
    """
    params = fce_params(2)
    cell = torch.nn.LSTMCell(3 * D, D, dtype=torch.float64)
    weight = torch.cat([params["fce.reader.weight"], torch.zeros(4 * D, D, dtype=torch.float64)], 1)
    load_lstm(cell, "", weight, params["fce.reader.bias"], 3 * D)
    cell.requires_grad_(False)
    queries, keys = embeddings(5, 5), embeddings(6, 6)
    expected = []
    for z in queries:
        h = c = r = torch.zeros(D, dtype=torch.float64)
        for _ in range(steps):
            hidden, c = (state[0] for state in cell(torch.cat([z, h, r])[None], (torch.zeros(1, D).double(), c[None])))
            h = hidden + z
            attention = torch.tensor([math.exp(float(h @ key)) for key in keys], dtype=torch.float64)
            r = sum(a * key for a, key in zip(attention / attention.sum(), keys, strict=True))
        expected.append(h)
    assert_same(embed_query(params, queries, keys, steps), torch.stack(expected))


def test_fully_conditional_embeddings_replace_both_sides_of_the_comparison() -> None:
    """keys = g(x_j, S), queries = f(x, S), then the same attention: composed by hand from the tested parts."""
    algorithm = matchingnet("cosine", 0.3, use_fce=True)
    params = PARAMS | fce_params(3)
    episode = task(11)
    keys = embed_support(params, embed(episode.support.x))
    queries = embed_query(params, embed(episode.query.x), keys, algorithm.fce_steps)
    expected = torch.zeros(len(queries), WAYS, dtype=torch.float64)
    for m, query in enumerate(queries):
        attention = torch.stack([alike(query, key, "cosine") / 0.3 for key in keys]).softmax(0)
        for j, label in enumerate(episode.support.y):
            expected[m, int(label)] += attention[j]
    predicted = algorithm.predict(algorithm.adapt(params, episode.support), episode.query.x)
    assert_same(predicted, expected.log())
    _, metrics = algorithm.meta_grad(params, episode)
    assert_same(metrics["loss"], F.cross_entropy(expected.log(), episode.query.y))


def test_fully_conditional_embeddings_add_three_cells_to_the_parameters() -> None:
    """Two directions of 4 D x 2 D weights and a reader of 4 D x 3 D, uniform within 1 / sqrt(D), biases 0."""
    params = init_fce(D, 0)
    shapes = {k: tuple(p.shape) for k, p in params.items()}
    assert shapes == {
        "fce.forward.weight": (4 * D, 2 * D),
        "fce.forward.bias": (4 * D,),
        "fce.backward.weight": (4 * D, 2 * D),
        "fce.backward.bias": (4 * D,),
        "fce.reader.weight": (4 * D, 3 * D),
        "fce.reader.bias": (4 * D,),
    }
    for name, p in params.items():
        limit = D**-0.5 if name.endswith("weight") else 0.0
        assert float(p.abs().max()) <= limit
    assert float(params["fce.reader.weight"].abs().max()) > 0.9 * D**-0.5
    assert set(matchingnet(use_fce=True).init(0)) == set(PARAMS) | set(params)
    assert set(matchingnet(use_fce=False).init(0)) == set(PARAMS)


def test_initial_weights_of_the_embedding_and_of_the_lstms_are_drawn_independently() -> None:
    """Two uniform draws of n numbers correlate by about 1 / sqrt(n); equal streams would correlate by 1.

    n = 64 first weights of each: five standard deviations are 5 / 8.
    """
    network = mlp((16,), None, (8,), "none")
    params = MatchingNet(network, CrossEntropy(), WAYS, "cosine", 1.0, True, 1).init(0)
    pair = torch.stack([params["block0.weight"].flatten()[:64], params["fce.forward.weight"].flatten()[:64]])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / 8
