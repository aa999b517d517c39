"""The outer step: rates by hand, updates against torch, and what becomes of steps that are not finite."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from helpers.quadratic import (
    EXACT,
    LinearModel,
    QuadraticTasks,
    assert_same,
    gradient,
    hessian,
    matrix,
    minimiser,
    weights,
)
from helpers.trainers import DATA, MODEL, SPEC, RecordingObserver, trainer_of
from torch import Tensor

from metarun import compose
from metarun.algorithms.losses import MeanSquaredError
from metarun.algorithms.reptile import Reptile
from metarun.compute.linalg import norm
from metarun.config.schema import OptimConfig, TrainConfig
from metarun.diagnostics.step import StepMeasures
from metarun.errors import NonFinite, SettingError
from metarun.regularizers.l2 import L2
from metarun.training import meta_gradient
from metarun.training.experiment import assemble
from metarun.training.loop import outer_step, train
from metarun.training.meta_gradient import build_meta_gradient
from metarun.training.optimizer import apply_update, build_optimizer, clip_gradient, learning_rate
from metarun.types import MOMENTS, Batch, EpisodeSpec, Metrics, Params, Split, Task


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- learning rates


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (OptimConfig(lr=0.8, schedule="constant"), [0.8] * 8),
        (OptimConfig(lr=0.8, schedule="linear"), [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        # (1 + cos(pi k / 8)) / 2, with cos(pi / 4) = sqrt(2) / 2, cos(pi / 8) = sqrt(2 + sqrt(2)) / 2, and so on.
        (
            OptimConfig(lr=0.8, schedule="cosine"),
            [
                0.8,
                0.4 * (1 + (2 + 2**0.5) ** 0.5 / 2),
                0.4 * (1 + 2**0.5 / 2),
                0.4 * (1 + (2 - 2**0.5) ** 0.5 / 2),
                0.4,
                0.4 * (1 - (2 - 2**0.5) ** 0.5 / 2),
                0.4 * (1 - 2**0.5 / 2),
                0.4 * (1 - (2 + 2**0.5) ** 0.5 / 2),
            ],
        ),
        (OptimConfig(lr=0.8, schedule="halving", halve_every=3), [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]),
        (OptimConfig(lr=0.9, schedule="linear", final_lr=0.1), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
        (
            OptimConfig(lr=0.9, schedule="cosine", final_lr=0.1),
            [0.1 + 0.4 * (1 + c) for c in (1, *(math.cos(math.pi * k / 8) for k in range(1, 8)))],
        ),
        (OptimConfig(lr=0.8, final_lr=0.1), [0.8] * 8),
    ],
    ids=["constant", "linear", "cosine", "halving", "linear-to", "cosine-to", "constant-to"],
)
def test_schedules_by_hand(settings: OptimConfig, expected: list[float]) -> None:
    """Eight steps: step k of `steps` has progress k / 8, so that the first has the full rate and none has 0."""
    assert [learning_rate(settings, k, 8) for k in range(8)] == pytest.approx(expected, rel=EXACT)


# ---------------------------------------------------------------- one update


def test_sgd_along_the_way_back_interpolates() -> None:
    """theta - eps (theta - phi) = (1 - eps) theta + eps phi: Reptile's outer step, where eps = 1 lands on phi."""
    for eps in (0.25, 1.0):
        theta, phi = {"w": random(3, 2, seed=1)}, {"w": random(3, 2, seed=2)}
        start = theta["w"].clone()
        optimizer = build_optimizer(OptimConfig(name="sgd", lr=9.0), theta)
        apply_update(optimizer, theta, {"w": theta["w"] - phi["w"]}, eps)  # the step's rate, not the optimizer's
        assert_same(theta["w"], (1 - eps) * start + eps * phi["w"])


def test_sgd_with_momentum_accumulates_gradients() -> None:
    """m <- mu m + g, theta <- theta - lr m: with g = 1 three times and mu = 1/2 the steps are 1, 1.5, 1.75 times lr."""
    theta = {"w": torch.zeros(1, dtype=torch.float64)}
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.1, momentum=0.5), theta)
    for total in (1.0, 2.5, 4.25):
        apply_update(optimizer, theta, {"w": torch.ones(1, dtype=torch.float64)}, 0.1)
        assert float(theta["w"]) == pytest.approx(-0.1 * total, rel=EXACT)


def test_an_algorithms_own_meta_parameters_are_trained_without_weight_decay() -> None:
    """theta <- theta - lr (g + decay theta) for a weight; without the decay for `learned.NAME`."""
    theta = {"w": torch.ones(1, dtype=torch.float64), "learned.strength": torch.ones(1, dtype=torch.float64)}
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.1, weight_decay=0.5), theta)
    apply_update(optimizer, theta, {name: 2 * torch.ones(1, dtype=torch.float64) for name in theta}, 0.1)
    assert float(theta["w"]) == pytest.approx(1 - 0.1 * 2.5, rel=EXACT)
    assert float(theta["learned.strength"]) == pytest.approx(1 - 0.1 * 2, rel=EXACT)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_takes_its_textbook_steps_at_the_rate_of_each_step(name: str) -> None:
    """m, v with betas 0.9, 0.999 and bias corrections; decay w enters adam's gradient as w theta (L2), and shrinks
    adamw's theta by 1 - lr w before the step.
    """
    decay, eps = 0.1, 1e-8
    theta = {"w": random(4, seed=3)}
    optimizer = build_optimizer(OptimConfig(name=name, weight_decay=decay, eps=eps), theta)
    x, m, v = theta["w"].clone(), torch.zeros(4).double(), torch.zeros(4).double()
    for k, lr in enumerate((0.1, 0.05, 0.2), start=1):
        g = random(4, seed=10 + k)
        apply_update(optimizer, theta, {"w": g}, lr)
        if name == "adamw":
            x = x * (1 - lr * decay)
        else:
            g = g + decay * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + eps)
        assert_same(theta["w"], x)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_meta_parameters_that_are_no_weights_have_a_rate_of_their_own(name: str) -> None:
    """Its share of the rate holds at every step of a schedule."""
    theta = {"w": random(2, seed=4), "rates.w": random(2, seed=5)}
    weights, others = {"w": theta["w"].clone()}, {"w": theta["rates.w"].clone()}
    both = build_optimizer(OptimConfig(name=name, lr=0.4, learned_lr=0.1), theta)
    alone, fast = (build_optimizer(OptimConfig(name=name), one) for one in (others, weights))
    for k, lr in enumerate((0.4, 0.2)):
        g, h = random(2, seed=10 + k), random(2, seed=20 + k)
        apply_update(both, theta, {"w": g, "rates.w": h}, lr)
        apply_update(fast, weights, {"w": g}, lr)
        apply_update(alone, others, {"w": h}, lr / 4)
    assert torch.equal(theta["w"], weights["w"])
    assert_same(theta["rates.w"], others["w"])


def test_a_rate_of_what_is_not_learned_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"optim\.learned_lr=0\.1: must be null where nothing but weights is learned"
    ):
        build_optimizer(OptimConfig(learned_lr=0.1), {"w": torch.ones(1)})


def test_sgd_weight_decay_is_a_gradient() -> None:
    """theta - lr (g + w theta)."""
    theta, g = {"w": random(4, seed=4)}, random(4, seed=5)
    expected = theta["w"] - 0.1 * (g + 0.3 * theta["w"])
    apply_update(build_optimizer(OptimConfig(name="sgd", weight_decay=0.3), theta), theta, {"w": g}, 0.1)
    assert_same(theta["w"], expected)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_memory_order_of_a_gradient_does_not_matter(name: str, dtype: torch.dtype) -> None:
    """A convolution run channels-last returns its weight's gradient in that order; fused Adam reads memory in order
    and would step along a permuted gradient. Same numbers, two orders, same bits.
    """
    start = random(4, 3, 3, 3, seed=6).to(dtype)
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        theta = {"w": start.clone()}
        optimizer = build_optimizer(OptimConfig(name=name, momentum=0.5), theta)
        for k in range(3):
            g = random(4, 3, 3, 3, seed=20 + k).to(dtype).contiguous(memory_format=memory_format)
            assert g.is_contiguous() == (memory_format == torch.contiguous_format)
            apply_update(optimizer, theta, {"w": g}, 0.1)
        ends.append(theta["w"])
    assert torch.equal(*ends)


def test_an_update_moves_the_tensors_in_place_and_leaves_no_gradient_behind() -> None:
    """Whoever holds the dictionary sees the new values; a kept `.grad` would be memory for nothing."""
    w = random(3, seed=7)
    theta, before = {"w": w}, w.clone()
    apply_update(build_optimizer(OptimConfig(), theta), theta, {"w": random(3, seed=8)}, 0.1)
    assert theta["w"] is w
    assert not torch.equal(w, before)
    assert w.grad is None
    assert not w.requires_grad


def test_an_optimizer_that_is_reset_at_every_step_descends_signs() -> None:
    """Adam's first step is lr g / (|g| + eps): with eps far below |g| each step of the loop is lr sign(g), where one
    Adam for all steps smooths, and momentum has nothing to add up.
    """

    def steps(**settings: Any) -> list[Tensor]:
        trainer = trainer_of(
            Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 2, 2, None),
            settings=TrainConfig(steps=3, tasks=3, log_every=1),
            optim=OptimConfig(lr=0.01, **settings),
        )
        state, seen = trainer.start(), []
        seen.append(matrix(state.params).clone())
        while len(seen) < 4:
            outer_step(trainer, state, build_meta_gradient(trainer), RecordingObserver())
            seen.append(matrix(state.params).clone())
        return [b - a for a, b in itertools.pairwise(seen)]

    for step in steps(reset="every_step"):
        assert_same(step.abs(), torch.full_like(step, 0.01), rtol=1e-6)
    assert not torch.allclose(steps()[2].abs(), torch.full((3, 1), 0.01, dtype=torch.float64), rtol=1e-3)
    plain, reset = steps(name="sgd"), steps(name="sgd", momentum=0.9, reset="every_step")
    assert all(torch.equal(a, b) for a, b in zip(plain, reset, strict=True))


# ---------------------------------------------------------------- clipping


def test_clipping_scales_down_to_the_limit_and_never_up() -> None:
    """|g| over all tensors is sqrt(3^2 + 4^2 + 12^2) = 13: a limit of 6.5 halves it, one of 20 leaves it."""
    g = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[12.0]])}
    assert float(norm(g)) == 13
    assert_same(clip_gradient(g, 6.5), {k: v / 2 for k, v in g.items()}, rtol=1e-6)
    assert_same(clip_gradient(g, 20.0), g, rtol=0)
    assert clip_gradient(g, None) is g


def test_clipping_a_zero_gradient_leaves_zero() -> None:
    """limit / 0 is infinite, and its minimum with 1 is 1: no NaN."""
    assert torch.equal(clip_gradient({"w": torch.zeros(3)}, 1.0)["w"], torch.zeros(3))


# ---------------------------------------------------------------- the loop


def test_reptile_and_interpolation_follow_their_recursion() -> None:
    """theta_{t+1} = theta_t + eps_t mean_i (phi_i - theta_t), eps_t = 1 - t/4, phi_i by the closed form on quadratics:
    phi - w_i = (I - alpha H_i)^2 (theta - w_i). This is the whole loop: draws, vmap, mean, schedule, optimizer.
    """
    alpha = 0.1
    trainer = trainer_of(Reptile(MODEL, MeanSquaredError(), "sgd", alpha, 2, 2, None))
    state = trainer.start()
    theta = matrix(state.params).clone()
    for step in range(4):
        moves = []
        for i in range(3):
            drawn = DATA.episodes("train", 0, step, range(i, i + 1), SPEC)
            support = Batch(drawn.support.x[0], drawn.support.y[0])
            contraction = torch.eye(3).double() - alpha * hessian(support, bias=False)
            best = minimiser(support, bias=False)
            moves.append(best + contraction @ contraction @ (theta - best) - theta)
        theta = theta + (1 - step / 4) * sum(moves) / 3
    recorder = RecordingObserver()
    assert train(trainer, state, recorder) == "completed"
    assert_same(state.params, weights(theta, bias=False))
    assert [v["lr"] for v in recorder.values.values()] == pytest.approx([1.0, 0.75, 0.5, 0.25], rel=EXACT)


@pytest.mark.parametrize(
    "optim",
    [OptimConfig(name="sgd", lr=0.5), OptimConfig(name="sgd", lr=0.5, clip=1e-3), OptimConfig(name="adam", lr=0.01)],
    ids=["sgd", "clipped", "adam"],
)
def test_carried_moments_follow_the_tasks_whatever_moves_the_weights(optim: OptimConfig) -> None:
    """v_{t+1} = mean_i v_i and c_{t+1} = 0.999^2 c_t, where v_i is what torch's Adam has after task i's two steps from
    theta_t with the moments v_t; the weights go to theta_t + 0.5 mean_i (phi_i - theta_t), or where Adam takes them."""
    alpha = 0.05
    learner = Reptile(MODEL, MeanSquaredError(), "adam", alpha, 2, 2, None, moments="carried")
    state = trainer_of(learner, optim=optim).start()
    outer_theta = {"w": matrix(state.params).clone()}
    outer = build_optimizer(optim, outer_theta)
    v = torch.zeros_like(outer_theta["w"])
    for step in range(4):
        ended = [inner_adam(outer_theta["w"], v, step, task, alpha) for task in range(3)]
        way_back = outer_theta["w"] - torch.stack([w for w, _ in ended]).mean(0)
        apply_update(outer, outer_theta, clip_gradient({"w": way_back}, optim.clip), optim.lr)
        v = torch.stack([moments for _, moments in ended]).mean(0)
    assert train(trainer_of(learner, optim=optim), state, RecordingObserver()) == "completed"
    assert_same({k: p for k, p in state.params.items() if not k.startswith(MOMENTS)}, weights(outer_theta["w"], False))
    assert_same({k: state.params[MOMENTS + k] for k in weights(v, False)}, weights(v, False))
    assert float(state.params[MOMENTS + "missing"]) == pytest.approx(0.999**8, rel=EXACT)


def inner_adam(theta: Tensor, v: Tensor, step: int, task: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Two steps of torch's Adam on one task's support set, from the moments v of so many outer steps before."""
    drawn = DATA.episodes("train", 0, step, range(task, task + 1), SPEC)
    support = Batch(drawn.support.x[0], drawn.support.y[0])
    w = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], alpha, betas=(0.0, 0.999))
    optimizer.state[w] = {
        "step": torch.tensor(2.0 * step), "exp_avg": torch.zeros_like(w), "exp_avg_sq": v.clone(),
    }  # fmt: skip
    for _ in range(2):
        w.grad = gradient(support, w.detach(), bias=False)
        optimizer.step()
    return w.detach(), optimizer.state[w]["exp_avg_sq"]


def test_the_regularizers_gradient_is_added_to_the_mean_over_tasks() -> None:
    """(w / 2) |theta|^2 has gradient w theta and is reported as the penalty."""
    algorithm = Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 2, 2, None)
    plain, penalised = trainer_of(algorithm), trainer_of(algorithm, penalty=L2(), weight=0.7)
    params, tasks = plain.start().params, plain.tasks(0)
    without = build_meta_gradient(plain)(params, tasks)
    found = build_meta_gradient(penalised)(params, tasks)
    assert_same(found.mean, {k: without.mean[k] + 0.7 * params[k] for k in params})
    assert_same(found.penalty, 0.35 * matrix(params).square().sum())
    assert float(without.penalty) == 0


def test_compilation_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of seconds is for steps: a first call that takes longer than it does not end the run."""
    calls: list[float] = []

    def compile_function(function: Any, *_: Any) -> Any:
        def call(*arguments: Any) -> Any:
            time.sleep(0 if calls else 0.5)
            calls.append(time.monotonic())
            return function(*arguments)

        return call

    monkeypatch.setattr(meta_gradient, "should_compile", lambda *_: True)
    monkeypatch.setattr(meta_gradient, "compile_function", compile_function)
    algorithm = Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 2, 2, None)
    settings = TrainConfig(steps=3, tasks=3, log_every=1, eval_every=100, checkpoint_every=100, max_minutes=1e9)
    trainer = trainer_of(algorithm, settings=settings)
    state, recorder = trainer.start(), RecordingObserver()
    start = time.monotonic()
    assert train(trainer, state, recorder) == "completed"
    whole = time.monotonic() - start
    assert state.spent["compilation"] >= 0.5
    assert state.seconds == pytest.approx(whole - state.spent["compilation"], abs=0.1)
    assert "compiling" in recorder.notes


def test_the_update_ratio_is_the_move_over_the_place() -> None:
    """|theta_1 - theta_0| / |theta_0|."""
    algorithm = Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 2, 2, None)
    settings = TrainConfig(steps=1, tasks=3, log_every=1, eval_every=100, checkpoint_every=100)
    trainer = replace(trainer_of(algorithm, settings=settings), measures=StepMeasures(algorithm, 3, None))
    state, recorder = trainer.start(), RecordingObserver()
    before = matrix(state.params).clone()
    train(trainer, state, recorder)
    moved = float((matrix(state.params) - before).norm() / before.norm())
    assert recorder.values[1]["update_ratio"] == pytest.approx(moved, rel=EXACT)


def test_validation_checkpoints_and_logs_come_when_they_are_due_and_at_the_end() -> None:
    """7 steps: logs every 2 (2 4 6 and the last), validation every 3 (3 6 7), checkpoints every 5 (5 7)."""
    settings = TrainConfig(steps=7, tasks=2, log_every=2, eval_every=3, checkpoint_every=5)
    trainer = trainer_of(Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 1, 1, None), settings=settings)
    state, recorder = trainer.start(), RecordingObserver()
    train(trainer, state, recorder)
    assert list(recorder.values) == [2, 4, 6, 7]
    happened = {
        kind: [step for event, step in recorder.events if event == kind]
        for kind in ("step", "improved", "validated", "checkpoint")
    }
    # The fake validation is always 1: the first is better than none, later ones are not better than the first.
    assert happened == {"step": [1, 2, 3, 4, 5, 6, 7], "improved": [3], "validated": [6, 7], "checkpoint": [5, 7]}
    assert (state.best_error, state.best_step) == (1.0, 3)


def test_a_request_to_stop_ends_after_the_step_at_hand_with_a_checkpoint() -> None:
    trainer = trainer_of(Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 1, 1, None))
    state, recorder = trainer.start(), RecordingObserver(stop_after=2)
    assert train(trainer, state, recorder) == "interrupted"
    assert state.step == 2
    assert recorder.events[-1] == ("checkpoint", 2)


def test_two_sittings_end_in_the_bits_of_one() -> None:
    """Tasks and rates are functions of the step, and the state holds the rest: stopping changes nothing."""
    trainer = trainer_of(
        Reptile(MODEL, MeanSquaredError(), "sgd", 0.1, 1, 1, None), optim=OptimConfig(lr=0.1, schedule="cosine")
    )
    whole, parts = trainer.start(), trainer.start()
    train(trainer, whole, RecordingObserver())
    train(trainer, parts, RecordingObserver(stop_after=2))
    train(trainer, parts, RecordingObserver())
    assert whole.step == parts.step == 4
    assert all(torch.equal(whole.params[k], parts.params[k]) for k in whole.params)


# ---------------------------------------------------------------- steps that are not finite


@dataclass(frozen=True)
class Averaging:
    """A learner whose meta-gradient is the mean of the support inputs and whose loss is that of the query's."""

    kinds: ClassVar[tuple[str, ...]] = ("regression",)
    head: ClassVar[bool] = True
    test_inner_steps: ClassVar[int] = 0
    model: LinearModel = MODEL
    loss: MeanSquaredError = field(default_factory=MeanSquaredError)

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Any:
        yield params

    def predict(self, adapted: Params, x: Tensor) -> Tensor:
        return self.model.apply(adapted, x)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        return {k: task.support.x.mean().expand_as(p) for k, p in params.items()}, {"loss": task.query.x.mean()}


@dataclass(frozen=True)
class Poisoned(QuadraticTasks):
    """Puts a bad number into the support (hence the gradient) or the query inputs (hence the loss) of some tasks."""

    part: str = "support"
    value: float = float("nan")
    step: int = 2
    tasks: tuple[int, ...] = (1,)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = super().episodes(split, seed, step, tasks, spec)
        if step == self.step:
            x = getattr(drawn, self.part).x.clone()
            x[list(self.tasks), 0, 0] = self.value
            drawn = drawn._replace(**{self.part: Batch(x, getattr(drawn, self.part).y)})
        return drawn


BAD = pytest.mark.parametrize(
    ("part", "value"),
    [("support", float("nan")), ("support", float("inf")), ("query", float("nan")), ("query", float("-inf"))],
    ids=["gradient-nan", "gradient-inf", "loss-nan", "loss-inf"],
)


def reference_after(steps: tuple[int, ...], optim: OptimConfig, seed: int = 7) -> Params:
    """The parameters of a clean run of four steps in which only the given ones are taken, at their own rates."""
    trainer = trainer_of(Averaging(), optim=optim, seed=seed)
    state = trainer.start()
    for step in steps:
        mean = trainer.tasks(step).support.x.mean()
        gradient = {k: mean.expand_as(p) for k, p in state.params.items()}
        apply_update(state.optimizer, state.params, gradient, learning_rate(optim, step, 4))
    return state.params


@BAD
def test_a_non_finite_step_stops_the_run_before_the_parameters_move(part: str, value: float) -> None:
    """Step 2 of 0 .. 3 is bad in task 1 of 3: steps 0 and 1 were taken, and nothing after."""
    optim = OptimConfig(lr=0.1, schedule="linear")
    trainer = trainer_of(Averaging(), Poisoned(MODEL, part, value), optim=optim, seed=7)
    state, recorder = trainer.start(), RecordingObserver()
    with pytest.raises(NonFinite, match=r"step 2, task 1, seed 7$"):
        train(trainer, state, recorder)
    assert state.step == 2
    assert_same(state.params, reference_after((0, 1), optim))
    assert list(recorder.values) == [1, 2]


@BAD
def test_a_non_finite_step_is_skipped_and_counted_on_request(part: str, value: float) -> None:
    """Policy skip: the parameters are those of a run that never took step 2, and all four steps are counted."""
    optim = OptimConfig(lr=0.1, schedule="linear")
    settings = TrainConfig(4, 3, log_every=1, eval_every=100, checkpoint_every=100, on_nonfinite="skip")
    trainer = trainer_of(Averaging(), Poisoned(MODEL, part, value), settings, optim, seed=7)
    state, recorder = trainer.start(), RecordingObserver()
    assert train(trainer, state, recorder) == "completed"
    assert state.step == 4
    assert_same(state.params, reference_after((0, 1, 3), optim))
    assert [step for event, step in recorder.events if event == "step"] == [1, 2, 3, 4]
    assert list(recorder.values) == [1, 2, 4]  # there is nothing to log of a step that was not taken
    assert recorder.notes == ["skipped: non-finite loss or meta-gradient at step 2, task 1, seed 7"]


def test_the_message_counts_the_other_culprits() -> None:
    dataset = Poisoned(MODEL, tasks=(0, 2))
    with pytest.raises(NonFinite, match=r"step 2, task 0, seed 0 \(and 1 more of 3 tasks\)$"):
        train(trainer_of(Averaging(), dataset), trainer_of(Averaging()).start(), RecordingObserver())


@dataclass(frozen=True)
class GroupLasso:
    """sum_k |theta_k|, written as anyone would: the gradient of sqrt at 0 makes it NaN where a tensor is all zeros."""

    def of(self, params: Params) -> Tensor:
        return torch.stack([p.square().sum().sqrt() for p in params.values()]).sum()


def test_a_regularizer_without_a_finite_gradient_is_refused_too() -> None:
    """Shifts and biases start at 0, so this is met at the first step: the optimizer may only move along finite numbers,
    whichever term of the meta-gradient they are from.
    """
    trainer = trainer_of(Averaging(), penalty=GroupLasso())
    state = trainer.start()
    state.params["w"].zero_()
    with pytest.raises(NonFinite):
        train(trainer, state, RecordingObserver())
    assert torch.equal(state.params["w"], torch.zeros(3, 1).double())


@pytest.mark.parametrize("algo", ["maml", "metasgd", "reptile", "imaml"])
def test_a_head_of_zero_stays_where_it_is(algo: str) -> None:
    """Nor does weight decay reach it, nor does the meta-gradient's norm contain it."""
    words = [
        f"algo={algo}",
        "algo.zero_head=true",
        "algo.inner_steps=2",
        "optim=adamw",
        "optim.weight_decay=0.1",
        "train.steps=3",
    ]
    trainer = assemble(compose([*words, "device.compile=off"])).trainer()
    state, observer = trainer.start(), RecordingObserver()
    before = {name: value.clone() for name, value in state.params.items()}
    assert train(trainer, state, observer) == "completed"
    for name, value in state.params.items():
        assert torch.equal(value, before[name]) == name.startswith("head.")
    assert not any(state.params[name].any() for name in ("head.weight", "head.bias"))
    assert "head.weight" not in build_meta_gradient(trainer)(state.params, trainer.tasks(0)).mean
