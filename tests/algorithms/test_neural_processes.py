"""Learners of distributions: sets and masks, bounds against exact likelihoods, likelihoods against torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import metarun
from metarun.algorithms.contexts import Draws
from metarun.algorithms.cvae import CVAE
from metarun.algorithms.losses import GaussianLikelihood
from metarun.algorithms.neural_process import NeuralProcess
from metarun.algorithms.predictive import Gaussian, kl, pointwise_log_likelihood, score_mixture, summarize_mixture
from metarun.data.sinusoid import Sinusoid
from metarun.errors import UserError
from metarun.models.multi_network import multi_network
from metarun.models.set_transformer import SetTransformer
from metarun.training.experiment import assemble, build_learner
from metarun.types import Batch, Params, Task

ALGOS = ("cnp", "np", "np without r", "anp", "cvae", "tnpd", "convcnp")
SIZES = ("algo.representation=8", "model.hidden=[8,6]")
DATA = Sinusoid(amplitude=(0.5, 2.0), phase=(0.0, 3.0), x_range=(-2.0, 2.0), noise=0.1)


def learner(algo: str, *overrides: str) -> Any:
    name, _, without = algo.partition(" ")
    smaller = {"cnp": SIZES, "tnpd": ("algo.width=8", "algo.heads=2", "algo.layers=2", "model.hidden=[8,6]")}
    smaller["convcnp"] = ("algo.width=4", "algo.layers=2", "algo.density=4", "model.hidden=[8]")
    latent = (*SIZES, "algo.latent=4", "algo.test_samples=7")
    latent_alone = ("algo.deterministic=false",) if without else ()
    chosen = smaller.get(algo, latent)
    return build_learner(metarun.compose([f"algo={name}", *chosen, *latent_alone, *overrides]), DATA, 1)


def double(algorithm: Any, seed: int = 0) -> Params:
    return {k: v.double() for k, v in algorithm.init(seed).items()}


def tasks(count: int = 3, shots: int = 6, queries: int = 5) -> Task:
    drawn = DATA.episodes("train", 0, 0, range(count), metarun.types.EpisodeSpec(1, shots, queries))
    return Task(*(Batch(b.x.double(), b.y.double()) for b in drawn))


def single(many: Task, i: int) -> Task:
    return Task(*(Batch(b.x[i], b.y[i]) for b in many))


def first_rows(task: Task, shots: int, queries: int) -> Task:
    (a, b), (c, d) = task
    return Task(Batch(a[:shots], b[:shots]), Batch(c[:queries], d[:queries]))


def same(found: Any, expected: Any) -> None:
    for tree, other in zip(found, expected, strict=True):
        assert tree.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(tree[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("algo", ALGOS)
def test_networks_of_equal_shape_begin_apart(algo: str) -> None:
    """Torch's generator looks at the last 32 bits of a seed alone."""
    weights = {k: w for k, w in learner(algo).init(0).items() if k.endswith("weight")}
    assert not [(a, b) for a in weights for b in weights if a < b and torch.equal(weights[a], weights[b])]


# ---------------------------------------------------------------- sets


@pytest.mark.parametrize("algo", ALGOS)
def test_padding_changes_nothing(algo: str) -> None:
    """A padded task with a mask has loss, metrics and gradient of the same task cut to the rows that are here."""
    algorithm = learner(algo)
    params = double(algorithm)
    _, drawn = algorithm.add_noise(params, tasks(8), 0, 0)
    sizes = [[int(b.x[i, :, 1].sum()) for b in drawn] for i in range(8)]
    assert len({tuple(s) for s in sizes}) > 3
    assert any(s[0] < 6 for s in sizes)
    for i, (shots, queries) in enumerate(sizes):
        padded = single(drawn, i)
        same(algorithm.meta_grad(params, padded), algorithm.meta_grad(params, first_rows(padded, shots, queries)))


@pytest.mark.parametrize("algo", ALGOS)
def test_the_order_of_context_and_targets_is_that_of_a_set(algo: str) -> None:
    """Predictions do not depend on the order of the context, and follow the order of the targets; what a test says of a
    task depends on neither."""
    algorithm = learner(algo)
    params, task = double(algorithm), single(tasks(), 0)
    order, other = torch.tensor([4, 0, 5, 1, 3, 2]), torch.tensor([2, 4, 0, 3, 1])
    moved = Task(Batch(*(v[order] for v in task.support)), Batch(*(v[other] for v in task.query)))
    adapted, again = (algorithm.adapt(params, t.support) for t in (task, moved))
    expected = algorithm.predict(adapted, task.query.x)
    torch.testing.assert_close(algorithm.predict(again, task.query.x[other]), expected[other], rtol=1e-12, atol=1e-12)
    same([algorithm.assess(again, moved)], [algorithm.assess(adapted, task)])


def test_attention_looks_at_what_is_near_and_a_mean_does_not() -> None:
    """Only with attention does r depend on the target."""
    for algo, varies in (("np", False), ("anp", True)):
        algorithm = learner(algo)
        params, task = double(algorithm), single(tasks(), 0)
        r = algorithm._representation(algorithm.adapt(params, task.support), task.query.x)
        assert (float((r - r[0]).abs().max()) > 1e-6) is varies


def test_without_a_deterministic_path_all_that_is_known_of_a_context_is_z() -> None:
    """Two contexts with the same q(z | C) are then the same to the decoder; with that path they are not."""
    for algo, differs in (("np", True), ("np without r", False)):
        algorithm, (one, other) = learner(algo), (single(tasks(), i) for i in range(2))
        params = double(algorithm)
        beliefs = [algorithm.adapt(params, t.support) for t in (one, other)]
        exchanged = beliefs[1]._replace(prior=beliefs[0].prior)
        found, expected = (algorithm.predict(b, one.query.x) for b in (exchanged, beliefs[0]))
        assert (not found.equal(expected)) is differs


def test_sizes_and_noise_are_functions_of_seed_step_and_task() -> None:
    drawn = Draws(1, min_shots=2, min_queries=1, width=3)
    many, few = tasks(40), tasks(40)
    whole = drawn.add(many, 5, 7, 0)
    part = drawn.add(Task(*(Batch(b.x[10:13], b.y[10:13]) for b in few)), 5, 7, 10)
    for a, b in zip(part, whole, strict=True):
        assert torch.equal(a.x, b.x[10:13])
    for seed, step in ((6, 7), (5, 8)):
        assert not torch.equal(drawn.add(many, seed, step, 0).support.x, whole.support.x)
    counts = [b.x[:, :, 1].sum(1) for b in whole]
    assert set(counts[0].tolist()) == {2.0, 3.0, 4.0, 5.0, 6.0}
    assert set(counts[1].tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0}
    eps = whole.support.x[:, 0, 3:]
    assert torch.equal(eps, whole.query.x[:, 3, 3:])  # one draw of a task
    assert abs(float(eps.mean())) < 5 / math.sqrt(eps.numel())
    assert abs(float(eps.std()) - 1) < 5 / math.sqrt(2 * eps.numel())
    each = replace(drawn, each_row=True).add(many, 5, 7, 0)
    assert len({float(v) for v in torch.cat([b.x[0, :, 3] for b in each])}) == 11


def test_the_weight_of_the_kl_rises_over_the_warmup() -> None:
    """loss = -fit + weight kl / |T|: linear in the weight, so three steps of a warm-up lie on a line."""
    algorithm = learner("np", "algo.kl_warmup=4")
    params, task = double(algorithm), tasks(1)
    weights = [float(algorithm.draws.add(task, 0, step, 0).support.x[0, 0, 2]) for step in (0, 1, 4, 9)]
    assert weights == [0.0, 0.25, 1.0, 1.0]
    one = single(algorithm.draws.add(task, 0, 0, 0), 0)

    def at(weight: float) -> Any:
        told = one.support.x.clone()
        told[:, 2] = weight
        return algorithm.meta_grad(params, one._replace(support=Batch(told, one.support.y)))[1]

    here = sum(float(b.x[:, 1].sum()) for b in one)
    rise = float(at(1.0)["loss"] - at(0.0)["loss"])
    assert rise == pytest.approx(float(at(1.0)["kl"]) / here, rel=1e-9)
    assert float(at(1.0)["log_likelihood"]) == pytest.approx(-float(at(1.0)["loss"]), rel=1e-9)


@pytest.mark.parametrize("algo", ["np", "cvae"])
def test_the_weight_of_the_kl_scales_it_in_the_loss_alone(algo: str) -> None:
    """loss = -fit + b kl: with b = 3 it is loss(1) + 2 (loss(1) - loss(0)), and so is its gradient. The bound that is
    recorded has the whole KL, and weight 1 is as if there were none."""
    found = {}
    for weight in (0.0, 1.0, 3.0):
        algorithm = learner(algo, f"algo.kl_weight={weight}", "algo.kl_warmup=0")
        drawn = single(algorithm.add_noise({}, tasks(1), 0, 5)[1], 0)
        wide = {
            k: 4 * v for k, v in double(algorithm).items()
        }  # at its start a posterior hardly differs from its prior
        found[weight] = algorithm.meta_grad(wide, drawn)
    (g0, m0), (g1, m1), (g3, m3) = found.values()
    torch.testing.assert_close(m3["loss"], m1["loss"] + 2 * (m1["loss"] - m0["loss"]))
    assert float(m1["loss"] - m0["loss"]) > 1e-3
    for name in g1:
        torch.testing.assert_close(g3[name], 3 * g1[name] - 2 * g0[name], rtol=1e-8, atol=1e-10)
    for metrics in (m0, m3):
        torch.testing.assert_close(metrics["log_likelihood"], -m1["loss"])


def test_the_warmup_ends_at_the_weight_of_the_kl() -> None:
    drawn = Draws(1, 1, 1, warmup=4, weight=2.0)
    weights = [float(drawn.add(tasks(1), 0, step, 0).support.x[0, 0, 2]) for step in (0, 1, 4, 9)]
    assert weights == [0.0, 0.5, 2.0, 2.0]
    assert float(drawn.rows(single(tasks(1), 0).support).weight) == 2.0


# ---------------------------------------------------------------- likelihoods


def test_the_likelihood_of_a_cnp_is_torchs() -> None:
    algorithm = learner("cnp", "algo.sigma_floor=0.2")
    params, task = double(algorithm), single(tasks(), 1)
    adapted = algorithm.adapt(params, task.support)
    mu, sigma = algorithm.predict(adapted, task.query.x).chunk(2, -1)
    assert float(sigma.min()) > 0.2
    found, expected = algorithm.assess(adapted, task), Normal(mu, sigma).log_prob(task.query.y)
    torch.testing.assert_close(found["log_likelihood"], expected.mean())
    torch.testing.assert_close(found["mse"], (mu - task.query.y).square().mean())
    everything = [torch.cat(v) for v in zip(*task, strict=True)]
    mu, sigma = algorithm.predict(adapted, everything[0]).chunk(2, -1)
    loss = -Normal(mu, sigma).log_prob(everything[1]).mean()
    torch.testing.assert_close(algorithm.meta_grad(params, task)[1]["loss"], loss)


def test_densities_and_divergences_are_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    mu, other, y = (torch.randn(5, 3, generator=draw, dtype=torch.float64) for _ in range(3))
    sigma, wide = (torch.rand(5, 3, generator=draw, dtype=torch.float64) + 0.1 for _ in range(2))
    p, q = Normal(mu, sigma), Normal(other, wide)
    expected = p.log_prob(y).sum(-1).mean()
    loss = GaussianLikelihood()
    torch.testing.assert_close(loss.score(torch.cat([mu, sigma], -1), y), expected)
    torch.testing.assert_close(loss(torch.cat([mu, sigma], -1), y), -expected)
    torch.testing.assert_close(kl(Gaussian(mu, sigma), Gaussian(other, wide)), kl_divergence(p, q))


def test_mixtures_have_their_moments_and_quantiles() -> None:
    """Against 50 000 samples of a mixture of two: mean, deviation, density by a histogram, and the shares of samples
    inside of the central bands, all within five standard errors."""
    mixture = Gaussian(torch.tensor([[[-1.0]], [[2.0]]]).double(), torch.tensor([[[0.5]], [[1.0]]]).double())
    draw, count = torch.Generator().manual_seed(0), 50_000
    which = (torch.rand(count, generator=draw) < 0.5).long()
    y = mixture.mu[which, 0, 0] + mixture.sigma[which, 0, 0] * torch.randn(count, generator=draw, dtype=torch.float64)
    found = summarize_mixture(mixture)
    assert abs(float(y.mean() - found.mu)) < 5 * float(found.sigma) / math.sqrt(count)
    assert float(y.std() / found.sigma) == pytest.approx(1, abs=0.02)
    rows = Gaussian(*(v.expand(2, count, 1) for v in mixture))
    shares = score_mixture(rows, y[:, None])
    for p in (50, 90, 95):
        assert float(shares[f"coverage_{p}"]) == pytest.approx(p / 100, abs=5 * 0.5 / math.sqrt(count))
    at = torch.tensor([[0.3]]).double()
    inside = float(((y > 0.2) & (y < 0.4)).double().mean()) / 0.2
    assert math.exp(float(pointwise_log_likelihood(mixture, at))) == pytest.approx(inside, rel=0.06)


# ---------------------------------------------------------------- bounds, where the marginal is known


@dataclass(frozen=True)
class Formula:
    """A part of a learner without weights."""

    of: Callable[[Tensor], Tensor]

    def init(self, seed: int) -> Params:
        return {}

    def apply(self, params: Params, rows: Tensor) -> Tensor:
        return self.of(rows)


NOISE = 0.3
SOFTPLUS_OF_1 = math.log1p(math.e)
FLOOR = (NOISE - SOFTPLUS_OF_1) / (1 - SOFTPLUS_OF_1)
"""floor + (1 - floor) softplus(1) = NOISE."""


def line_process(samples: int) -> NeuralProcess:
    """y = z_0 x + z_1 + noise; the mean of the context's y and of x y says where z is, roughly, and how surely."""

    def decoder(rows: Tensor) -> Tensor:
        x, _, z0, z1 = rows.unbind(-1)
        return torch.stack([x * z0 + z1, torch.ones_like(x)], -1)

    model = multi_network(
        encoder=Formula(lambda rows: rows[:, :1] * 0),
        latent_encoder=Formula(lambda rows: torch.stack([rows[:, 0] * rows[:, 1], rows[:, 1]], -1)),
        posterior=Formula(lambda s: torch.cat([0.6 * s, torch.zeros_like(s) - 0.5], -1)),
        decoder=Formula(decoder),
    )
    draws = Draws(1, 1, 1, width=2)
    return NeuralProcess(model, GaussianLikelihood(), draws, FLOOR, 2, 1, samples, deterministic=True, attends=False)


def exact_line(process: NeuralProcess, task: Task) -> Tensor:
    """log p(y | C) / M of z ~ N(m, S): y ~ N(B m, B S B' + noise^2 I), B = [x, 1]."""
    prior = process.adapt({}, task.support).prior
    b = torch.cat([task.query.x, torch.ones_like(task.query.x)], 1)
    covariance = b @ torch.diag(prior.sigma**2) @ b.T + NOISE**2 * torch.eye(len(b), dtype=b.dtype)
    return MultivariateNormal(b @ prior.mu, covariance).log_prob(task.query.y[:, 0]) / len(b)


def test_elbo_bound_and_exact_likelihood_are_in_order_for_a_linear_gaussian_process() -> None:
    """On average over 40 tasks ELBO < bound of 5 samples < bound of 50 < exact; with 40 000 samples it is exact.

    Five samples of a mismatched q lose whole nats, so that the order is far outside of Monte Carlo error. A sign of a
    weight, or a term of the KL, breaks the last equality.
    """
    many = tasks(40)

    def mean(samples: int, name: str) -> float:
        process = line_process(samples)
        rows = [process.assess(process.adapt({}, t.support), t) for t in (single(many, i) for i in range(40))]
        return float(torch.stack([row[name] for row in rows]).mean())

    exact = float(torch.stack([exact_line(line_process(1), single(many, i)) for i in range(40)]).mean())
    bounds = [mean(5, "log_likelihood"), mean(50, "log_likelihood")]
    assert mean(50, "elbo") < bounds[0] - 0.02 < bounds[1] - 0.04 < exact
    assert mean(40_000, "log_likelihood") == pytest.approx(exact, abs=0.01)


def test_the_training_loss_of_a_neural_process_is_the_elbo_by_hand() -> None:
    process = line_process(1)
    drawn = single(process.draws.add(tasks(1), 3, 4, 0), 0)
    loss = process.meta_grad({}, drawn)[1]["loss"]
    sizes = [int(b.x[:, 1].sum()) for b in drawn]
    cut = first_rows(drawn, *sizes)
    plain = Task(*(Batch(b.x[:, :1], b.y) for b in cut))
    everything = Batch(*(torch.cat(v) for v in zip(*plain, strict=True)))
    prior, posterior = (process.adapt({}, batch).prior for batch in (plain.support, everything))
    z = posterior.mu + posterior.sigma * cut.support.x[0, 3:]
    fit = Normal(everything.x[:, 0] * z[0] + z[1], NOISE).log_prob(everything.y[:, 0]).sum()
    spent = kl_divergence(Normal(*posterior), Normal(*prior)).sum()
    torch.testing.assert_close(loss, -(fit - spent) / len(everything.x))


def line_autoencoder(samples: int, objective: str = "cvae", alpha: float = 0.5) -> CVAE:
    """y = x + 0.8 z + noise, z ~ N(x / 2, softplus(0)^2); q leans to the right side and is too wide."""

    def decoder(rows: Tensor) -> Tensor:
        x, _, z = rows.unbind(-1)
        return torch.stack([x + 0.8 * z, torch.ones_like(x)], -1)

    model = multi_network(
        encoder=Formula(lambda rows: rows[:, :1] * 0),
        prior=Formula(lambda rows: torch.stack([rows[:, 0] / 2, torch.zeros_like(rows[:, 0])], -1)),
        posterior=Formula(lambda rows: torch.stack([0.9 * (rows[:, 1] - rows[:, 0]), 0 * rows[:, 0] - 0.5], -1)),
        decoder=Formula(decoder),
    )
    draws = Draws(1, 1, 1, width=2, each_row=True)
    return CVAE(model, GaussianLikelihood(), draws, FLOOR, 1, objective, alpha, samples)


def test_a_linear_gaussian_autoencoder_finds_its_known_likelihood() -> None:
    """y ~ N(x + 0.4 x, 0.64 s^2 + noise^2): by q, by the prior, and for objective=gsnn. The ELBO is
    less by KL(q || p(z | y)), where p(z | y) has the precision 1/s^2 + 0.64/noise^2."""
    task, s = single(tasks(1, queries=60), 0), math.log(2) + 1e-3
    marginal = Normal(1.4 * task.query.x, math.sqrt(0.64 * s**2 + NOISE**2))
    y = marginal.mean + marginal.stddev * torch.linspace(-2.0, 2.0, 60).double()[:, None]
    task, exact = task._replace(query=Batch(task.query.x, y)), marginal.log_prob(y).mean()
    found = {}
    for objective in ("cvae", "gsnn"):
        learned = line_autoencoder(20_000, objective)
        found[objective] = learned.assess(learned.adapt({}, task.support), task)
        for name in ("log_likelihood", "prior_sampled_log_likelihood"):
            assert float(found[objective][name]) == pytest.approx(float(exact), abs=0.01)
    precision = 1 / s**2 + 0.64 / NOISE**2
    centre = (task.query.x / 2 / s**2 + 0.8 * (y - task.query.x) / NOISE**2) / precision
    q = Normal(0.9 * (y - task.query.x), math.log1p(math.exp(-0.5)) + 1e-3)
    gap = kl_divergence(q, Normal(centre, precision**-0.5)).mean()
    assert float(found["cvae"]["elbo"]) == pytest.approx(float(exact - gap), abs=0.03)
    assert float(gap) > 0.1


def test_the_hybrid_objective_is_the_weighted_sum_of_both() -> None:
    task = single(line_autoencoder(1).draws.add(tasks(1), 0, 0, 0), 0)

    def loss(objective: str, alpha: float = 0.5) -> float:
        return float(line_autoencoder(1, objective, alpha).meta_grad({}, task)[1]["loss"])

    assert loss("hybrid", 0.3) == pytest.approx(0.3 * loss("cvae") + 0.7 * loss("gsnn"), rel=1e-12)
    assert loss("cvae") != pytest.approx(loss("gsnn"), rel=1e-3)


def test_the_losses_of_an_autoencoder_are_its_elbo_by_hand() -> None:
    learned = line_autoencoder(1)
    drawn = single(learned.draws.add(tasks(1), 1, 2, 0), 0)
    sizes = [int(b.x[:, 1].sum()) for b in drawn]
    x, y, eps = (torch.cat([v[:n] for v, n in zip(parts, sizes, strict=True)]) for parts in (
        [b.x[:, 0] for b in drawn], [b.y[:, 0] for b in drawn], [b.x[:, 3] for b in drawn]))  # fmt: skip
    prior = Normal(x / 2, math.log(2) + 1e-3)
    posterior = Normal(0.9 * (y - x), math.log1p(math.exp(-0.5)) + 1e-3)
    fit = Normal(x + 0.8 * (posterior.mean + posterior.stddev * eps), NOISE).log_prob(y)
    expected = -(fit - kl_divergence(posterior, prior)).mean()
    metrics = learned.meta_grad({}, drawn)[1]
    torch.testing.assert_close(metrics["loss"], expected)
    torch.testing.assert_close(metrics["kl"], kl_divergence(posterior, prior).mean())
    torch.testing.assert_close(metrics["kl_dimension/z0"], metrics["kl"])
    assert float(metrics["active_units"]) == 1


# ---------------------------------------------------------------- as settings


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algo=cnp", "model.norm=batch"], "model.norm=batch: must be one of none, layer"),
        (["algo=cnp", "algo.sigma_floor=0"], "algo.sigma_floor=0.0"),
        (["algo=anp", "algo.heads=3"], "algo.heads=3: must be at least 1 and divide the width 128"),
        (
            ["algo=np", "algo.heads=8", "algo.deterministic=false"],
            "algo.heads=8: must be 0 with algo.deterministic=false",
        ),
        (["algo=cvae", "algo.objective=vae"], "algo.objective=vae: choices: cvae, gsnn, hybrid"),
        (["algo=np", "algo.min_shots=0"], "algo.min_shots=0"),
        (["algo=np", "algo.kl_weight=-1"], "algo.kl_weight=-1.0: must be at least 0 and finite"),
        (["algo=cvae", "algo.kl_weight=inf"], "algo.kl_weight=inf"),
        (["algo=np", "reg=predictive_kl"], "this algorithm has no inner loop to penalise"),
        (["algo=np", "reg=information", "reg.encoder=[encoder]"], "made of several networks"),
        (
            ["algo=np", "data=omniglot"],
            "this algorithm needs regression.*data=arrays, completion, gp, linear, sinusoid, table",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: list[str], words: str, elsewhere: None) -> None:
    data = [] if any(o.startswith("data=") for o in overrides) else ["data=gp"]
    with pytest.raises(UserError, match=words) as refused:
        assemble(metarun.compose([*data, *overrides]))
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- the transformer


def test_a_layer_of_the_set_transformer_is_torch_s_with_a_mask() -> None:
    """torch.nn.TransformerEncoderLayer (post-norm) on [context, targets] with the mask of the paper: all rows see the
    context that is here, and each target itself."""
    transformer, d, shots, queries = SetTransformer(8, 2, 1), 8, 4, 3
    draw = torch.Generator().manual_seed(0)
    params = {k: torch.randn(w.shape, generator=draw, dtype=torch.float64) for k, w in transformer.init(0).items()}
    layer = torch.nn.TransformerEncoderLayer(d, 2, 2 * d, dropout=0.0, batch_first=True, dtype=torch.float64)
    own = {k.removeprefix("layer0."): w for k, w in params.items()}
    with torch.no_grad():
        attention = layer.self_attn
        attention.in_proj_weight.copy_(torch.cat([own[f"{n}.weight"] for n in ("query", "key", "value")]))
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(own["out.weight"])
        attention.out_proj.bias.zero_()
        for linear, name in ((layer.linear1, "up"), (layer.linear2, "down")):
            linear.weight.copy_(own[f"{name}.weight"])
            linear.bias.copy_(own[f"{name}.shift"])
        for norm, name in ((layer.norm1, "norm1"), (layer.norm2, "norm2")):
            norm.weight.copy_(own[f"{name}.gain"])
            norm.bias.copy_(own[f"{name}.shift"])
    rows = torch.randn(shots + queries, d, generator=draw, dtype=torch.float64)
    here = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    sees = torch.eye(shots + queries, dtype=torch.bool)
    sees[:, :shots] = here > 0
    sees[2, 2] = False  # a padded row does not see itself
    expected = layer(rows[None], src_mask=~sees)[0, shots:].detach()
    found = transformer.apply(params, rows[:shots], here, rows[shots:])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("algo", ["cnp", "np", "anp", "cvae", "tnpd"])
def test_a_network_without_hidden_units_encodes_nothing(algo: str) -> None:
    """`data=linear` chooses `model=linear`, for learners that adapt its weights."""
    with pytest.raises(UserError, match=r"model=linear.* has no hidden units.*try model=mlp"):
        assemble(metarun.compose([f"algo={algo}", "data=linear"]))
    assemble(metarun.compose([f"algo={algo}", "data=linear", "model=mlp"]))
