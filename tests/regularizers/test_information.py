"""MR-MAML's information penalty: divergence, noise and gradients in float64, and what must not see the noise."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainers import RecordingObserver
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.func import vmap
from torch.nn.functional import linear, relu, softplus

import metarun
from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.objective import Regularization, Schedule, Term, add_noise
from metarun.errors import SettingError, UserError
from metarun.models.mlp import mlp
from metarun.models.noise import LEAST, ActivationNoise, WeightNoise
from metarun.regularizers.build import build_regularization
from metarun.regularizers.information import Information, gaussian_kl
from metarun.testing.episodes import SPECS, Blobs
from metarun.training import checkpoint
from metarun.training.evaluation import replace_model
from metarun.training.experiment import Experiment, assemble, build_learner
from metarun.training.loop import train
from metarun.training.meta_gradient import build_meta_gradient
from metarun.types import Batch, Params, Task

FORMS = ("weights", "activations")
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
ENCODER, ADAPTED = ("block0", "block1"), ("block2", "head")
SHAPE, WIDTH, PREFIX = (3,), 2, "reg.information."
NETWORK = mlp(SHAPE, 1, (4, WIDTH, 3), "none", linear_blocks=(1,))
TASKS, SHOTS, QUERIES = 3, 4, 5


def learner_of(form: str, weight: float = 0.3, **settings: Any) -> MAML:
    term = Term("information", Information(ENCODER, form, **settings), Schedule(weight))
    regularization = Regularization((term,))
    model: Any = regularization.wrap(NETWORK, SHAPE)
    return MAML(model, MeanSquaredError(), 0.05, 2, 2, False, ADAPTED, regularization)


def theta_of(learner: Any) -> Params:
    """Away from where shifts are zero, in float64."""
    generator = torch.Generator().manual_seed(0)
    start = learner.regularization.init(learner.init(0))
    return {k: v.double() + 0.2 * torch.randn(v.shape, generator=generator).double() for k, v in start.items()}


@cache
def tasks() -> Task:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(TASKS, n, d, generator=generator).double() for n in (SHOTS, QUERIES) for d in (3, 1)]
    return Task(Batch(*drawn[:2]), Batch(*drawn[2:]))


def flat(params: Params) -> Tensor:
    return torch.cat([v.flatten() for v in params.values()])


# ---------------------------------------------------------------- Omega


def test_the_divergence_is_that_of_two_normals() -> None:
    mean, std = torch.tensor([-1.5, 0.0, 0.3]).double(), torch.tensor([0.01, 1.0, 3.0]).double()
    for prior in (0.5, 1.0, 2.0):
        expected = kl_divergence(Normal(mean, std), Normal(torch.zeros(3).double(), prior))
        torch.testing.assert_close(gaussian_kl(mean, std.log(), prior), expected, rtol=1e-12, atol=1e-12)


def test_the_divergence_is_the_mean_of_the_log_ratio() -> None:
    """By 200 000 draws, within five standard errors."""
    mean, std, prior = torch.tensor(0.7).double(), torch.tensor(0.4).double(), 1.5
    x = mean + std * torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double()
    ratio = Normal(mean, std).log_prob(x) - Normal(torch.zeros(()).double(), prior).log_prob(x)
    error = float(ratio.std()) / math.sqrt(len(x))
    assert float(gaussian_kl(mean, std.log(), prior)) == pytest.approx(float(ratio.mean()), abs=5 * error)


@pytest.mark.parametrize("reduce", [None, "sum", "mean"])
def test_omega_of_weights_is_that_of_the_encoders_linear_maps(reduce: str | None) -> None:
    learner = learner_of("weights", prior_std=0.7, reduce=reduce)
    theta = theta_of(learner)
    prior = Normal(torch.zeros(()).double(), 0.7)
    each = [
        kl_divergence(Normal(theta[n], theta[f"{PREFIX}log_std.{n}"].exp()), prior).flatten()
        for n in ("block0.weight", "block1.weight")
    ]
    assert {k for k in theta if k.startswith(PREFIX)} == {f"{PREFIX}log_std.block{i}.weight" for i in (0, 1)}
    expected = torch.cat(each).mean() if reduce == "mean" else torch.cat(each).sum()
    found = learner.regularization.shared_penalty(learner, theta, tasks())
    torch.testing.assert_close(found, 0.3 * expected, rtol=1e-12, atol=0)


def gaussian_by_hand(theta: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    h = relu(linear(x, theta["block0.weight"], theta["block0.shift"]))
    mu = linear(h, theta["block1.weight"], theta["block1.shift"])
    return mu, softplus(linear(h, theta[f"{PREFIX}std.weight"], theta[f"{PREFIX}std.shift"])) + LEAST


@pytest.mark.parametrize("reduce", [None, "sum", "mean"])
def test_omega_of_activations_is_that_of_the_query_rows(reduce: str | None) -> None:
    learner = learner_of("activations", prior_std=0.7, reduce=reduce)
    theta = theta_of(learner)
    each = kl_divergence(
        Normal(*gaussian_by_hand(theta, tasks().query.x)), Normal(torch.zeros(()).double(), 0.7)
    )  # [T, M, D]
    expected = each.sum(2).mean() if reduce == "sum" else each.mean()
    for at in (tasks(), add_noise(learner, theta, tasks(), 0, 0)[1]):
        found = learner.regularization.shared_penalty(learner, theta, at)
        torch.testing.assert_close(found, 0.3 * expected, rtol=1e-12, atol=0)


# ---------------------------------------------------------------- noise


def test_noisy_weights_are_the_mean_plus_what_is_drawn() -> None:
    learner = learner_of("weights")
    theta = theta_of(learner)
    noisy, _ = add_noise(learner, theta, tasks(), 0, 0)
    by_hand = {k: v for k, v in theta.items() if not k.startswith(PREFIX)}
    for n in ("block0.weight", "block1.weight"):
        by_hand[n] = theta[n] + theta[f"{PREFIX}log_std.{n}"].exp() * noisy[f"{PREFIX}noise.{n}"]
    x = tasks().query.x[0]
    torch.testing.assert_close(learner.model.apply(noisy, x), NETWORK.apply(by_hand, x), rtol=0, atol=0)
    assert not torch.allclose(learner.model.apply(noisy, x), NETWORK.apply(theta, x))


def test_noisy_activations_are_mu_plus_sigma_eps_of_each_row() -> None:
    learner = learner_of("activations")
    theta = theta_of(learner)
    _, noisy = add_noise(learner, theta, tasks(), 0, 0)
    rows, eps = noisy.query.x[1, :, :3], noisy.query.x[1, :, 3:]
    assert eps.shape == (QUERIES, WIDTH)
    mu, sigma = gaussian_by_hand(theta, rows)
    h = relu(linear(mu + sigma * eps, theta["block2.weight"], theta["block2.shift"]))
    expected = linear(h, theta["head.weight"], theta["head.bias"])
    torch.testing.assert_close(learner.model.apply(theta, noisy.query.x[1]), expected, rtol=1e-12, atol=1e-12)


def noise_of(form: str, seed: int, step: int, count: int = TASKS) -> Tensor:
    """All that is drawn: numbers, or [T, S + M, D]."""
    learner = learner_of(form)
    theta = theta_of(learner)
    few = Task(*(Batch(b.x[:count], b.y[:count]) for b in tasks()))
    params, at = add_noise(learner, theta, few, seed, step)
    if form == "weights":
        return flat({k: v for k, v in params.items() if k not in theta})
    return torch.cat([at.support.x, at.query.x], 1)[:, :, 3:]


@EVERY_FORM
def test_noise_is_a_function_of_seed_and_step(form: str) -> None:
    first = noise_of(form, 0, 5)
    assert torch.equal(first, noise_of(form, 0, 5))
    for seed, step in [(0, 6), (1, 5)]:
        assert not torch.isin(noise_of(form, seed, step), first).any()


def test_noise_of_a_row_is_its_own_and_does_not_depend_on_the_tasks_beside() -> None:
    eps = noise_of("activations", 0, 5)
    assert len(eps.unique()) == TASKS * (SHOTS + QUERIES) * WIDTH
    assert torch.equal(eps[:2], noise_of("activations", 0, 5, count=2))


def test_noise_is_standard_normal() -> None:
    """Mean 0, mean square 1, mean fourth power 3, within five standard errors of n independent numbers."""
    for form in FORMS:
        x = torch.cat([noise_of(form, 0, step).flatten() for step in range(400)])
        for power, moment, variance in [(1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)]:
            assert abs(float(x.pow(power).mean()) - moment) < 5 * math.sqrt(variance / len(x))


@EVERY_FORM
def test_a_network_without_noise_is_the_plain_one(form: str) -> None:
    learner = learner_of(form)
    theta, x = theta_of(learner), tasks().query.x[0]
    assert torch.equal(learner.model.apply(theta, x), NETWORK.apply(theta, x))
    for layer, h in learner.model.activations(theta, x).items():
        assert torch.equal(h, NETWORK.activations(theta, x)[layer])
    weights = {k: v for k, v in learner.init(7).items() if not k.startswith("reg.")}
    assert all(torch.equal(v, NETWORK.init(7)[k]) for k, v in weights.items())


def test_noise_starts_with_the_standard_deviation_given() -> None:
    for std in (None, 0.3):
        start = learner_of("weights", std=std).init(0)
        torch.testing.assert_close(start[f"{PREFIX}log_std.block0.weight"].exp(), torch.full((4, 3), std or 0.01))
        learner = learner_of("activations", std=std)
        start = learner.init(0) | {f"{PREFIX}std.weight": torch.zeros(WIDTH, 4)}
        model: Any = learner.model
        sigma = model.model.gaussian(start, torch.randn(6, 3))[1]
        torch.testing.assert_close(sigma, torch.full((6, WIDTH), std or 0.7))


# ---------------------------------------------------------------- meta-gradient


def objective(learner: MAML, theta: Params, at: Task) -> Tensor:
    """Mean query loss after two inner steps taken by hand, plus weight times Omega."""

    def one(support: Batch, query: Batch) -> Tensor:
        phi = dict(theta)
        for _ in range(2):
            leaves = {k: v.detach().clone().requires_grad_() for k, v in phi.items() if k.startswith(ADAPTED)}
            loss = (learner.model.apply(phi | leaves, support.x) - support.y).square().mean()
            grads = torch.autograd.grad(loss, list(leaves.values()))
            phi |= {k: phi[k] - 0.05 * g for k, g in zip(leaves, grads, strict=True)}
        return (learner.model.apply(phi, query.x) - query.y).square().mean().detach()

    each = [one(*(Batch(b.x[i], b.y[i]) for b in at)) for i in range(TASKS)]
    return torch.stack(each).mean() + learner.regularization.shared_penalty(learner, theta, at)


def experiment_of(form: str, *more: str) -> Experiment:
    """A small one through the command line's settings, in float64."""
    overrides = ["reg=information", f"reg.form={form}", "reg.encoder=[block0,block1]", "reg.weight=0.3"]
    overrides = overrides if form != "none" else ["reg=none"]
    small = ["model.hidden=[4,2,3]", "model.linear_blocks=[1]", "algo.adapted=[block2,head]", "data.shots=4"]
    small += ["data.queries=5", "data.identity=3", "train.tasks=3", "train.steps=6", "train.log_every=1", "val.tasks=3"]
    small += ["device.precision=float64", "device.compile=false", "recipe=absent", "train.eval_every=6"]
    return assemble(metarun.compose([*overrides, *small, *more]))


@EVERY_FORM
def test_the_meta_gradient_with_noise_is_the_slope_with_the_same_noise(form: str) -> None:
    """Of every number of theta, the noise's own parameters too, by central differences."""
    learner = learner_of(form)
    theta = theta_of(learner)
    trainer: Any = dataclasses.replace(
        experiment_of(form).trainer(), algorithm=learner, regularization=learner.regularization
    )
    noisy, at = add_noise(learner, theta, tasks(), 0, 0)
    found = build_meta_gradient(trainer)(noisy, at)
    assert found.mean.keys() == found.grads.keys() == theta.keys()
    for name, value in theta.items():
        for j in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = noisy | {name: value.clone()}
                moved[name].view(-1)[j] += sign * 1e-6
                ends.append(objective(learner, moved, at))
            slope = float(ends[0] - ends[1]) / 2e-6
            assert float(found.mean[name].flatten()[j]) == pytest.approx(slope, rel=1e-6, abs=1e-8), name


@EVERY_FORM
def test_the_noise_is_trained_and_never_stored(form: str) -> None:
    trainer = experiment_of(form).trainer()
    state = trainer.start()
    before = {k: v.clone() for k, v in state.params.items()}
    recorder = RecordingObserver()
    assert train(trainer, state, recorder) == "completed"
    own = {k for k in before if k.startswith(PREFIX)}
    assert own
    assert all(not torch.equal(state.params[k], before[k]) for k in own)
    assert state.params.keys() == before.keys()
    assert recorder.values[1]["penalty"] > 0
    assert not [key for key in recorder.values[1] if "noise" in key]


@EVERY_FORM
def test_without_weight_and_noise_it_is_plain_maml(form: str) -> None:
    """A standard deviation of 2e-6 moves results by as much, in the limit by nothing. Shifts are not 0: behind a dead
    first layer all would stand at the kink of its ReLU."""
    sgd = ["optim=sgd", "optim.lr=0.01"]
    plain = experiment_of("none", *sgd).trainer()
    silent = experiment_of(form, "reg.weight=0", "reg.std=2e-6", *sgd).trainer()
    states = [trainer.start() for trainer in (plain, silent)]
    for trainer, state in zip((plain, silent), states, strict=True):
        for i in range(3):
            state.params[f"block{i}.shift"].copy_(torch.linspace(-0.3, 0.5, len(state.params[f"block{i}.shift"])))
        if form == "activations" and trainer is silent:
            state.params[f"{PREFIX}std.weight"].zero_()
        train(trainer, state, RecordingObserver())
    for name, value in states[0].params.items():
        torch.testing.assert_close(states[1].params[name], value, rtol=0, atol=1e-5)


@EVERY_FORM
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(form: str, tmp_path: Path) -> None:
    trainer = experiment_of(form).trainer()
    whole = trainer.start()
    train(trainer, whole, RecordingObserver())
    stopped = trainer.start()
    assert train(trainer, stopped, RecordingObserver(stop_after=3)) == "interrupted"
    checkpoint.save(tmp_path / "last.pt", stopped)
    resumed = trainer.start()
    checkpoint.restore(tmp_path / "last.pt", resumed)
    train(trainer, resumed, RecordingObserver())
    assert resumed.step == whole.step == 6
    assert all(torch.equal(resumed.params[k], v) for k, v in whole.params.items())


@EVERY_FORM
def test_one_task_a_step_is_enough(form: str) -> None:
    trainer = experiment_of(form, "train.tasks=1", "train.steps=1").trainer()
    assert train(trainer, trainer.start(), RecordingObserver()) == "completed"


@EVERY_FORM
def test_validation_and_measures_are_those_of_the_mean_network(form: str) -> None:
    experiment, plain = experiment_of(form), experiment_of("none")
    params = experiment.trainer().start().params
    evaluations = [e.evaluator("test", 4, (0, 2))(e.tested, params) for e in (experiment, plain)]
    assert torch.equal(evaluations[0].losses, evaluations[1].losses)
    drawn = experiment.trainer().tasks(0)
    grads = vmap(plain.algorithm.meta_grad, in_dims=(None, 0))(params, drawn)[0]
    measured = [e.measures().algorithm.meta_grad for e in (experiment, plain)]
    first = Task(*(Batch(b.x[0], b.y[0]) for b in drawn))
    for name, g in measured[0](params, first)[0].items():
        torch.testing.assert_close(g, grads[name][0], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- metric learners and images


@pytest.mark.parametrize("norm", ["batch", "joined", "support", "population", "layer"])
@pytest.mark.parametrize("algo", ["protonet", "matchingnet"])
@EVERY_FORM
def test_metric_learners_on_images_train_with_it(form: str, algo: str, norm: str) -> None:
    chosen = [f"algo={algo}", "model=conv4", "model.filters=3", f"model.norm={norm}", "reg=information"]
    config = metarun.compose([*chosen, f"reg.form={form}", "reg.encoder=[block0,block1]", "recipe=absent"])
    data, spec = Blobs(side=8), SPECS["classification"]
    learner: Any = build_learner(config, data, spec.ways)
    regularization = build_regularization(config, data.kind)
    params = {k: v.double() for k, v in regularization.init(learner.init(0)).items()}
    drawn = data.episodes("train", 0, 0, range(2), spec)
    doubled = Task(*(Batch(b.x.double(), b.y) for b in drawn))
    noisy, at = add_noise(learner, params, doubled, 0, 0)
    grads, metrics = vmap(learner.meta_grad, in_dims=(None, 0))(noisy, at)
    clean = vmap(learner.meta_grad, in_dims=(None, 0))(params, doubled)[1]
    assert all(g.isfinite().all() for g in grads.values())
    assert float((metrics["loss"] - clean["loss"]).abs().min()) > 1e-9
    assert any(grads[k].abs().sum() > 0 for k in params if k.startswith(PREFIX))
    assert regularization.shared_penalty(learner, params, at).isfinite()
    one = learner.meta_grad(noisy, Task(*(Batch(b.x[1], b.y[1]) for b in at)))[0]
    for name, g in one.items():
        torch.testing.assert_close(grads[name][1], g, rtol=1e-9, atol=1e-10)


@EVERY_FORM
def test_population_statistics_are_measured_on_the_mean_network(form: str) -> None:
    chosen = ["algo=protonet", "model=conv4", "model.filters=3", "model.norm=population", "reg=information"]
    config = metarun.compose([*chosen, f"reg.form={form}", "recipe=absent"])
    plain = metarun.compose([*chosen[:-1], "recipe=absent"])
    data = Blobs(side=8)
    x = data.reference_inputs(12)
    noisy, clean = (build_learner(c, data, 3) for c in (config, plain))
    params = noisy.init(0)
    calibrated = noisy.model.calibrate(params, x)
    assert calibrated is not noisy.model
    assert torch.equal(calibrated.apply(params, x[:2]), clean.model.calibrate(params, x).apply(params, x[:2]))
    unnormalised = learner_of(form)
    inputs = torch.zeros(4, 3)
    assert unnormalised.model.calibrate(unnormalised.init(0), inputs) is unnormalised.model
    assert replace_model(unnormalised, unnormalised.model) is unnormalised


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algo.adapted=null"], "reg=information algo=maml: the inner loop adapts block0.weight of the encoder"),
        (["algo.adapted=null"], "choose algo.adapted=[block2,head]"),
        (["algo=reptile"], "choose algo=maml algo.adapted=[block2,head]"),
        (["reg.encoder=[block7]"], "reg.information.encoder=['block7']: names none of block0.weight"),
        (["reg.encoder=[block0.shift]"], "names vectors only"),
        (["reg.encoder=[]"], "must name what the inner loop does not adapt"),
        (["reg.form=both"], "choices: weights, activations"),
        (["reg.reduce=max"], "choices: sum, mean"),
        (["reg.std=0"], "must be above"),
        (["reg.prior_std=0"], "must be above 0"),
        (["reg.where=inner"], "this one has choices: outer"),
        (["reg.form=activations", "reg.encoder=[block1]"], "must be the first blocks in order"),
        (["reg.form=activations", "reg.encoder=[block0,block1,block2,head]"], "must be the first blocks in order"),
        (["reg.form=activations", "reg.encoder=[block0.weight]"], "must be the first blocks in order"),
    ],
)
def test_what_it_cannot_be_used_for_is_said_in_one_line(overrides: list[str], said: str) -> None:
    if "algo=reptile" in overrides:
        base = ["algo=reptile", "reg=information", "reg.encoder=[block0,block1]", "model.hidden=[4,2,3]"]
        build = lambda: assemble(metarun.compose([*base, "recipe=absent"]))  # noqa: E731
    else:
        build = lambda: experiment_of("weights", *overrides)  # noqa: E731
    with pytest.raises(UserError) as caught:
        build()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_with_noise_takes_no_other() -> None:
    noisy: Any = learner_of("weights").model
    for form in FORMS:
        with pytest.raises(SettingError, match="one such penalty at a time"):
            Information(ENCODER, form).wrap(noisy, "reg.other.", SHAPE)


def test_activations_need_blocks() -> None:
    class Unknown:
        init = staticmethod(NETWORK.init)

    unknown: Any = Unknown()
    weights: Any = Information(ENCODER, "weights").wrap(unknown, PREFIX, SHAPE)
    activations: Any = Information(ENCODER, "activations").wrap(NETWORK, PREFIX, SHAPE)
    assert isinstance(weights.noise, WeightNoise)
    assert isinstance(activations.noise, ActivationNoise)
    with pytest.raises(SettingError, match="needs a network of blocks"):
        Information(ENCODER, "activations").wrap(unknown, PREFIX, SHAPE)


# ---------------------------------------------------------------- iMAML with an encoder at rest


@pytest.mark.parametrize("terms", [[], [Term("information", Information(ENCODER, "weights"), Schedule(0.3))]])
def test_the_implicit_gradient_holds_for_an_encoder_that_is_not_adapted(terms: list[Term]) -> None:
    """Against central differences of theta -> L^Q(phi*(theta)) with the noise of an outer step: by what is adapted, by
    what is not and by the noise itself. So many inner steps leave a gradient of 0 to rounding, at no kink of a ReLU."""
    regularization = Regularization(tuple(terms))
    model: Any = regularization.wrap(NETWORK, SHAPE)
    learner = IMAML(model, MeanSquaredError(), 1.0, 0.1, 400, 400, 60, 0.0, regularization, ADAPTED)
    theta = theta_of(learner)
    noisy, at = add_noise(learner, theta, tasks(), 0, 0)
    task = Task(*(Batch(b.x[1], b.y[1]) for b in at))
    found, metrics = learner.meta_grad(noisy, task)
    assert float(metrics["stationarity"]) < 1e-12
    names, sizes = list(noisy), [v.numel() for v in noisy.values()]
    point = flat(noisy)
    ends = torch.cat([point + sign * 1e-5 * torch.eye(len(point)).double() for sign in (1, -1)])
    starts = {n: p.view(-1, *noisy[n].shape) for n, p in zip(names, ends.split(sizes, 1), strict=True)}

    def value(start: Params) -> Tensor:
        phi = learner.adapt(start, task.support).params
        return learner.loss(model.apply(phi, task.query.x), task.query.y)

    up, down = vmap(value)(starts).chunk(2)
    torch.testing.assert_close(flat(found), (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
    assert found["block0.weight"].abs().sum() > 0
