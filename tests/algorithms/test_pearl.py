"""PEARL: losses by hand, the posterior by numerical multiplication, buffers by lists, runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution, kl_divergence

import metarun
from metarun.algorithms import replay, sac
from metarun.algorithms.losses import Return
from metarun.algorithms.pearl import Pearl
from metarun.algorithms.predictive import Gaussian, kl, product
from metarun.data.point_robot import PointRobot
from metarun.errors import UserError
from metarun.report.page.card import build_card
from metarun.report.read.runs import read_run
from metarun.training.checkpoint import load
from metarun.training.evaluation import score_tasks
from metarun.training.experiment import Experiment, assemble
from metarun.training.loop import outer_step
from metarun.training.meta_gradient import MetaGradients
from metarun.training.nonfinite import start_rewinding
from metarun.types import CARRIED, Batch, EpisodeSpec, ExploringLearner, Params, StatefulLearner, Task

EXACT = 1e-9
ROBOT = PointRobot(reward="dense", horizon=4, train_goals=5, val_goals=3, test_goals=3)
SMALL = [
    "algo=pearl",
    "data=point_robot",
    "data.horizon=4",
    "data.train_goals=5",
    "data.val_goals=3",
    "data.test_goals=3",
    "model.hidden=[8,6]",
    "algo.batch=6",
    "algo.context_batch=5",
    "algo.initial_trajectories=4",
    "algo.collect_every=2",
    "algo.collect_tasks=3",
    "train.tasks=3",
    "val.tasks=3",
    "test.tasks=3",
    "device.compile=false",
    "report=false",
]


def assembled(*overrides: str) -> Experiment:
    return assemble(metarun.compose([*SMALL, *overrides]))


def learner(*overrides: str) -> Any:
    return assembled(*overrides).algorithm


def double(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {k: double(v) for k, v in tree.items()}
    return type(tree)(*(double(v) for v in tree))


def before_step(algorithm: Pearl, step: int = 0) -> tuple[Params, Task]:
    """Meta-parameters with their target network, which differs from the value network, and tasks, in float64."""
    params = algorithm.init(0)
    tasks = ROBOT.episodes("train", 0, step, range(3), EpisodeSpec(1, 2, 1))
    _, at, tasks = algorithm.before_step(params, algorithm.init_state(algorithm.init(1)), tasks, 0, step)
    return double(at), double(tasks)


# ---------------------------------------------------------------- distributions


def test_the_product_of_gaussians_is_what_numerical_multiplication_gives() -> None:
    mu, sigma = torch.tensor([0.3, -0.4, 1.1]).double(), torch.tensor([0.7, 1.5, 0.9]).double()
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = Normal(mu[:, None], sigma[:, None]).log_prob(x).sum(0).exp()
    mass = torch.trapezoid(density, x)
    mean = torch.trapezoid(x * density, x) / mass
    deviation = (torch.trapezoid((x - mean).square() * density, x) / mass).sqrt()
    found = product(mu[:, None], sigma.square()[:, None])
    torch.testing.assert_close(found.mu[0], mean, rtol=EXACT, atol=0)
    torch.testing.assert_close(found.sigma[0], deviation, rtol=EXACT, atol=0)


def test_the_kl_to_the_prior_is_torchs() -> None:
    mu, sigma = torch.tensor([0.3, -2.0, 0.0]).double(), torch.tensor([0.2, 1.7, 1.0]).double()
    found = kl(Gaussian(mu, sigma), Gaussian(torch.zeros_like(mu), torch.ones_like(mu)))
    closed = 0.5 * (sigma.square() + mu.square() - 1) - sigma.log()
    torch.testing.assert_close(found, closed, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(
        found, kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).double(), rtol=EXACT, atol=EXACT
    )


def test_the_density_of_a_squashed_action_is_torchs_and_finite_far_out() -> None:
    out = torch.tensor([[0.3, -0.5, -0.2, 0.4], [1.0, 0.1, -1.0, -3.0]]).double()
    eps = torch.tensor([[0.5, -1.0], [0.2, 2.0]]).double()
    action = sac.squash(out, eps)
    base = Normal(out[:, :2], out[:, 2:].exp())
    expected = TransformedDistribution(base, [TanhTransform()]).log_prob(action.a).sum(-1)
    torch.testing.assert_close(action.log_pi, expected, rtol=1e-8, atol=0)
    far = sac.squash(torch.tensor([[60.0, 0.0]]).double(), torch.zeros(1, 1).double())
    # log(1 - tanh(60)^2) = 2 log 2 - 120 up to e^-240
    assert float(far.log_pi) == pytest.approx(-0.5 * math.log(2 * math.pi) - (2 * math.log(2) - 120), rel=1e-12)


# ---------------------------------------------------------------- losses


def test_the_losses_of_one_transition_by_hand() -> None:
    """Q = 2 and 1, r = -3 after scaling, V' = 4, gamma = 1/2: the target is -1, errors 3 and 2, L_Q = 9 + 4.
    V = 5, min Q(a') = 1, log pi = -2: the target is 3, L_V = 4. L_pi = -2 - 1 + 1e-3 (0.25 + 0.04)."""
    one = torch.tensor([1.0], dtype=torch.float64)
    assert float(sac.critic_loss(2 * one, one, -3 * one, 4 * one, 0.5)) == 13
    assert float(sac.value_loss(5 * one, one, -2 * one)) == 4
    action = sac.Action(one[None], -2 * one, 0.5 * one[None], -0.2 * one[None])
    assert float(sac.actor_loss(action, one)) == pytest.approx(-3 + 1e-3 * 0.29, rel=1e-12)


def run_layers(params: dict[str, Tensor], part: str, x: Tensor) -> Tensor:
    """The two hidden layers and the head, written out."""
    for block in ("block0", "block1"):
        x = torch.relu(x @ params[f"{part}.{block}.weight"].T + params[f"{part}.{block}.shift"])
    return x @ params[f"{part}.head.weight"].T + params[f"{part}.head.bias"]


def gradients_by_network(algorithm: Pearl, params: Params, task: Task) -> dict[str, Tensor]:
    """The published algorithm with one backward pass of each loss to its own networks, in plain autograd."""
    w = {k: v.clone().requires_grad_(not k.startswith(CARRIED)) for k, v in params.items()}
    rates = algorithm.settings
    out = run_layers(w, "encoder", torch.cat([*task.support], 1))
    mu_n, var_n = out[:, :5], torch.nn.functional.softplus(out[:, 5:]).clamp(min=1e-7)
    var = 1 / (1 / var_n).sum(0)
    mu = var * (mu_n / var_n).sum(0)
    s, a, after, eps, eps_z = task.query.x.split([2, 2, 2, 2, 5], 1)
    z = mu + var.sqrt() * eps_z
    divergence = (0.5 * (var + mu**2 - 1 - var.log())).sum()
    target_net = {k.removeprefix(CARRIED): v for k, v in w.items() if k.startswith(CARRIED)}
    target = rates.reward_scale * task.query.y + rates.discount * run_layers(
        target_net, "value", torch.cat([after, z], 1)
    )
    fits = [(run_layers(w, c, torch.cat([s, a, z], 1)) - target.detach()) ** 2 for c in ("critic1", "critic2")]
    critics = [k for k in w if k.startswith(("critic", "encoder"))]
    joint = fits[0].mean() + fits[1].mean() + rates.kl_weight * divergence
    found = dict(zip(critics, torch.autograd.grad(joint, [w[k] for k in critics], retain_graph=True), strict=True))
    z = z.detach()
    mean, log_std = run_layers(w, "actor", torch.cat([s, z], 1)).chunk(2, 1)
    policy = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    new = (mean + log_std.exp() * eps).tanh()
    log_pi = policy.log_prob(new).sum(1, keepdim=True)
    least = torch.minimum(*(run_layers(w, c, torch.cat([s, new, z], 1)) for c in ("critic1", "critic2")))
    value = ((run_layers(w, "value", torch.cat([s, z], 1)) - (least - log_pi).detach()) ** 2).mean()
    actor = (log_pi - least).mean() + 1e-3 * ((mean**2).mean() + (log_std**2).mean())
    for part, loss in (("value", value), ("actor", actor)):
        names = [k for k in w if k.startswith(part + ".")]
        found |= dict(zip(names, torch.autograd.grad(loss, [w[k] for k in names], retain_graph=True), strict=True))
    return found


def test_the_gradient_is_that_of_each_loss_by_its_own_networks() -> None:
    algorithm = learner()
    params, tasks = before_step(algorithm)
    for i in range(3):
        task = Task(*(Batch(b.x[i], b.y[i]) for b in tasks))
        found, _ = algorithm.meta_grad(params, task)
        expected = gradients_by_network(algorithm, params, task)
        assert set(expected) == {k for k in params if not k.startswith(CARRIED)}
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        assert all(not g.any() for k, g in found.items() if k.startswith(CARRIED))


def test_critics_begin_apart_and_seeds_do() -> None:
    first, other = learner().init(0), learner().init(1)
    assert not first["critic1.block0.weight"].equal(first["critic2.block0.weight"])
    assert not any(first[k].equal(other[k]) for k in first if k.endswith("weight"))


# ---------------------------------------------------------------- buffers and the target network


def test_a_ring_keeps_the_last_rows_and_draws_from_no_others() -> None:
    carry = replay.init_buffers(3, 5, 2, 1)
    lists: list[list[float]] = [[], [], []]
    for number in range(7):
        which = torch.tensor([number % 3, (number + 1) % 3])
        rows = torch.arange(6.0).reshape(2, 3, 1) + 10 * number
        before = {k: v.clone() for k, v in carry.items()}
        after = replay.add(carry, which, rows)
        assert all(carry[k].equal(v) for k, v in before.items())
        carry = after
        for task, new in zip(which.tolist(), rows[..., 0].tolist(), strict=True):
            lists[task] = [*lists[task], *new]
        for task, rows_so_far in enumerate(lists):
            kept = carry["replay"][task, : min(len(rows_so_far), 5), 0].tolist()
            assert sorted(kept) == sorted(rows_so_far[-5:])
        with_rows = torch.tensor([t for t in range(3) if lists[t]])
        grid = torch.linspace(0, 1, 41).expand(len(with_rows), -1)  # 1 itself: a number that was rounded up
        drawn = replay.sample(carry, with_rows, grid)[..., 0]
        for task, row in zip(with_rows.tolist(), drawn.tolist(), strict=True):
            assert set(row) == set(lists[task][-5:])


def test_more_rows_than_a_ring_holds_leave_the_last_ones() -> None:
    carry = replay.add(replay.init_buffers(1, 4, 1, 1), torch.tensor([0]), torch.arange(11.0).reshape(1, 11, 1))
    assert sorted(carry["replay"][0, :, 0].tolist()) == [7, 8, 9, 10]


def test_recent_rows_are_those_of_the_latest_collection() -> None:
    carry = replay.replace_recent(replay.init_buffers(2, 4, 3, 1), torch.tensor([1]), torch.full((1, 3, 1), 2.0))
    carry = replay.replace_recent(carry, torch.tensor([1]), torch.full((1, 3, 1), 5.0))
    assert carry["recent"][..., 0].tolist() == [[0, 0, 0], [5, 5, 5]]
    drawn = replay.sample_recent(carry, torch.tensor([1, 0]), torch.rand(2, 4))
    assert drawn[..., 0].tolist() == [[5.0] * 4, [0.0] * 4]


class Silent:
    """A watcher who does not look."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_the_target_network_follows_the_value_network() -> None:
    trainer = assembled().trainer()
    state = trainer.start()
    before = {k: v.clone() for k, v in state.carry.items() if k.startswith(CARRIED)}
    assert all(v.equal(state.params[k.removeprefix(CARRIED)]) for k, v in before.items())
    outer_step(trainer, state, MetaGradients(trainer, state.params, print).at(0), Silent())
    for name, old in before.items():
        new = state.params[name.removeprefix(CARRIED)]
        assert not new.equal(old)
        torch.testing.assert_close(state.carry[name], 0.99 * old + 0.01 * new, rtol=1e-6, atol=1e-7)


@pytest.mark.long
def test_a_compiled_outer_step_is_the_uncompiled_one() -> None:
    """In float64, over a collection and three updates of critics, actor, encoder and targets."""
    states = []
    for choice in ("on", "off"):
        kept = [entry for entry in SMALL if not entry.startswith("device.compile")]
        trainer = assemble(metarun.compose([*kept, f"device.compile={choice}", "device.precision=float64"])).trainer()
        state = trainer.start()
        gradients = MetaGradients(trainer, state.params, print)
        assert gradients.compiles == (choice == "on")
        for step in range(3):
            outer_step(trainer, state, gradients.at(step), Silent())
        states.append(state)
    compiled, plain = states
    start = assembled("device.precision=float64").trainer().start().params
    for name, value in plain.params.items():
        torch.testing.assert_close(compiled.params[name], value, rtol=1e-10, atol=1e-12)
        assert not value.equal(start[name]), name
    assert compiled.carry.keys() == plain.carry.keys()
    for name, value in plain.carry.items():
        torch.testing.assert_close(compiled.carry[name], value, rtol=1e-10, atol=1e-12)


def test_a_bad_number_in_a_buffer_is_refused_with_its_task_and_a_rewind_takes_it_out() -> None:
    """Of the task that is first in step 2. The rewind point, that of step 2 itself, has the buffers without it."""
    trainer = assembled("train.on_nonfinite=rewind", "train.checkpoint_every=2").trainer()
    state = trainer.start()
    start_rewinding(trainer, state)
    gradient = MetaGradients(trainer, state.params, print).at(0)
    for _ in range(2):
        outer_step(trainer, state, gradient, Silent())
    sound, params = dict(state.carry), {k: v.clone() for k, v in state.params.items()}
    task = int(trainer.tasks(2).query.y[0, 0, -1])
    spoilt = state.carry["replay"].clone()
    spoilt[task, :, 4] = float("nan")
    state.carry = state.carry | {"replay": spoilt}
    told: list[str] = []
    observer = Silent()
    observer.notify = told.append  # type: ignore[attr-defined]
    outer_step(trainer, state, gradient, observer)
    assert "at step 2, task 0" in told[0]
    assert "went back to the meta-parameters of step 2" in told[0]
    assert all(value.equal(params[name]) for name, value in state.params.items())
    assert all(value.equal(sound[name]) for name, value in state.carry.items())
    outer_step(trainer, state, gradient, observer)
    assert len(told) == 1
    assert state.step == 4


def test_what_is_collected_when_and_of_whom() -> None:
    """Initially 4 trajectories of 4 steps for 5 tasks; every second step 2 + 2 for 3 tasks, of which 2 are recent."""
    trainer = assembled().trainer()
    state, steps = trainer.start(), []
    gradient = MetaGradients(trainer, state.params, print).at(0)
    for _ in range(5):
        before = state.carry
        outer_step(trainer, state, gradient, Silent())
        steps.append(int(state.carry["environment_steps"]))
        renewed = (state.carry["recent"] != before["recent"]).flatten(1).any(1).sum()
        assert int(renewed) == {1: 5, 3: 3, 5: 3}.get(state.step, 0)
    assert steps == [80, 80, 128, 128, 176]
    assert int(state.carry["written"].sum()) == 176


def test_rows_hold_what_the_robot_does() -> None:
    """Each kept row is a step of the robot, and consecutive rows of a trajectory follow each other from the start."""
    trainer = assembled("data.reward=sparse", "algo.trajectories=[1,1,1]").trainer()
    state = trainer.start()
    gradient = MetaGradients(trainer, state.params, print).at(0)
    for _ in range(3):
        outer_step(trainer, state, gradient, Silent())
    robot: Any = trainer.dataset
    for task, count in enumerate(state.carry["written"].tolist()):
        rows = state.carry["replay"][task, :count]
        s, a, learned, shown, after = rows.split([2, 2, 1, 1, 2], 1)
        y = robot.train_tasks()[task].expand(count, -1)
        expected = robot.step(s, a, y)
        for found, value in zip((after, learned[:, 0], shown[:, 0]), expected, strict=True):
            torch.testing.assert_close(found, value)
        starts = torch.arange(count) % 4 == 0
        assert not s[starts].any()
        assert s[~starts].equal(after[:-1][~starts[1:]])
    assert a.abs().max() < 1
    assert len(set(state.carry["written"].tolist())) == 2


@pytest.mark.parametrize(("renewed", "expected"), [("false", [[0]]), ("true", [[0], [0, 1], [0, 1, 2]])])
def test_a_renewed_posterior_is_of_all_trajectories_before(renewed: str, expected: list[list[int]]) -> None:
    """Each walk has actions of its own, by which contexts are recognised: 40 rows of at most 16."""

    class Numbered:
        contexts: ClassVar[list[Any]] = []

        def act(self, params: Params, state: Tensor, z: Tensor, eps: Tensor | None = None) -> Tensor:
            return torch.full_like(state, len(self.contexts) / 8)

        def posterior(self, params: Params, pairs: Tensor, rewards: Tensor) -> Gaussian:
            self.contexts.append((8 * pairs[..., 2:]).unique().tolist())
            return Gaussian(torch.zeros(3, 5), torch.ones(3, 5))

    sizes = ["algo.trajectories=[1,3,0]", f"algo.renew_posterior={renewed}", "algo.context_batch=40"]
    place, walker = learner(*sizes).collection, Numbered()
    carry = place.collect(walker, learner().init(0), place.init_state(), 0, 2)
    assert walker.contexts == expected
    assert int(carry["environment_steps"]) == 3 * 4 * 4
    assert sorted(carry["written"].tolist()) == [0, 0, 16, 16, 16]


def test_held_actions_are_uniform_and_one_a_trajectory() -> None:
    place = learner("algo.initial_trajectories=400", "algo.initial_actions=held", "algo.capacity=1600").collection
    carry = place.collect(learner(), learner().init(0), place.init_state(), 0, 0)
    actions = place.split(carry["replay"]).pairs[..., 2:].unflatten(1, (-1, 4))
    assert actions.equal(actions[:, :, :1].expand_as(actions))
    held = actions[:, :, 0].flatten(0, 1)
    assert held.abs().max() <= 1
    # 2000 draws: the deviation of a share of 1/4 is 0.01.
    for low in (-1.0, -0.5, 0.0, 0.5):
        assert ((held > low) & (held < low + 0.5)).float().mean(0).allclose(torch.tensor(0.25), atol=0.04)
    assert abs(float(torch.corrcoef(held.T)[0, 1])) < 0.09


# ---------------------------------------------------------------- exploring


@pytest.mark.parametrize("explore", [1, 2])
def test_exploration_conditions_on_all_trajectories_so_far(explore: int) -> None:
    """Walked here once more, step by step; the first `explore` with z from the prior."""
    algorithm = learner(f"algo.explore={explore}")
    params = double(algorithm.init(0))
    episode = double(ROBOT.episodes("test", 0, 0, range(1), EpisodeSpec(1, 3, 1)))
    support = Batch(episode.support.x[0], episode.support.y[0])
    found = list(algorithm.explore_steps(params, support, 3))
    assert len(found) == 4
    assert not found[0].z.mu.any()
    assert (found[0].z.sigma == 1).all()
    pairs, rewards = [], []
    for k in range(3):
        known = found[0].z if k < explore else found[k].z
        z, state = known.mu + known.sigma * support.x[k, 2:7], support.x[k, :2]
        for _ in range(4):
            action = run_layers(params, "actor", torch.cat([state, z])[None])[0, :2].tanh()
            pairs.append(torch.cat([state, action]))
            state = state + 0.1 * action
            rewards.append(-(state - support.y[k, :2]).norm())
        expected = algorithm.adapt(params, Batch(torch.stack(pairs), torch.stack(rewards)[:, None])).z
        for value, other in zip(found[k + 1].z, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=EXACT, atol=EXACT)


def test_an_evaluation_of_many_tasks_is_that_of_each() -> None:
    algorithm = learner()
    params, robot = double(algorithm.init(0)), ROBOT
    tasks = double(robot.episodes("test", 0, 0, range(3), EpisodeSpec(1, 2, 2)))
    many = score_tasks(algorithm, params, tasks, (0, 1, 2), None)
    for i in range(3):
        one = score_tasks(
            algorithm, params, Task(*(Batch(b.x[i : i + 1], b.y[i : i + 1]) for b in tasks)), (0, 1, 2), None
        )
        for name, value in one.items():
            torch.testing.assert_close(many[name][i : i + 1], value, rtol=EXACT, atol=EXACT)
    assert many["score"].shape == (3, 3)
    assert many["loss"].equal(-many["score"])


def test_without_context_there_is_no_encoder_and_nothing_is_learned_of_a_task() -> None:
    algorithm = learner("algo.context=false")
    params = algorithm.init(0)
    assert not [name for name in params if name.startswith("encoder")]
    episode = ROBOT.episodes("test", 0, 0, range(1), EpisodeSpec(1, 2, 1))
    beliefs = algorithm.explore_steps(params, Batch(episode.support.x[0], episode.support.y[0]), 2)
    assert all(not b.z.mu.any() and (b.z.sigma == 1).all() for b in beliefs)


def test_a_learner_that_acts_is_held_against_its_protocols() -> None:
    algorithm = learner()
    assert isinstance(algorithm, StatefulLearner)
    assert isinstance(algorithm, ExploringLearner)
    with pytest.raises(TypeError, match="no function of predictions"):
        Return()(torch.zeros(1), torch.zeros(1))


# ---------------------------------------------------------------- runs


def trained(folder: Path, *overrides: str) -> Any:
    return metarun.run(metarun.compose([*SMALL, "train.checkpoint_every=3", "train.eval_every=3", *overrides]), folder)


def same(found: Any, expected: Any, at: str = "") -> None:
    if isinstance(expected, Tensor):
        assert found.equal(expected), at
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key in expected:
            same(found[key], expected[key], f"{at}.{key}")
    elif not isinstance(expected, float):  # of seconds
        assert found == expected, at


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    trained(tmp_path / "whole", "train.steps=9", "train.on_nonfinite=rewind")
    trained(tmp_path / "parts", "train.steps=6", "train.on_nonfinite=rewind")
    trained(tmp_path / "parts", "train.steps=9", "train.on_nonfinite=rewind", f"resume={tmp_path / 'parts'}")
    whole, parts = (load(tmp_path / name / "checkpoints/last.pt") for name in ("whole", "parts"))
    for stored in (whole, parts):
        stored.pop("seconds")
        stored.pop("spent")
    same(parts, whole)
    assert {"replay", "written", "recent", "environment_steps", "carried.value.head.bias"} <= set(whole["carry"])
    assert whole["rewinding"]["carry"].keys() == whole["carry"].keys()
    assert "carry" not in load(tmp_path / "whole/checkpoints/best.pt")
    assert (tmp_path / "parts/test.json").read_bytes() == (tmp_path / "whole/test.json").read_bytes()


def test_a_run_reports_returns_by_trajectories_and_can_be_evaluated_again(tmp_path: Path) -> None:
    result = trained(tmp_path / "run", "train.steps=4", "train.log_every=2")
    summary = result.summary
    assert result.status == "completed"
    assert (summary["metric"], summary["kind"], summary["headline_step"]) == ("return", "control", 2)
    assert [row["step"] for row in summary["curve"]] == [0, 1, 2]
    assert summary["curve"][2]["mean"] == summary["mean"] == -summary["curve"][2]["loss"]
    assert set(summary["beside"]) == {"learned_return", "kl", "sigma"}
    assert summary["alarms"] == {}
    # 5 tasks x 4 trajectories x 4 steps, and after two steps 3 x 4 x 4 more
    assert summary["collected"]["environment_steps"] == 80 + 48
    facts = {fact.name: fact.value for fact in build_card(read_run(tmp_path / "run")).facts}
    assert facts["environment steps"] == "128"
    assert facts["episodes"] == "2 explored trajectories, 1 scored at test"
    again = metarun.run(metarun.compose([*SMALL, "job=evaluate", f"run={tmp_path / 'run'}"]), tmp_path / "again")
    assert again.summary["mean"] == summary["mean"]
    assert again.summary["episodes_sha256"] == summary["episodes_sha256"]
    assert "collected" not in again.summary


@pytest.mark.long
def test_four_hundred_steps_walk_towards_the_goals(tmp_path: Path) -> None:
    """Of the 20 that a robot collects which stays where it is, at least 1.5 are saved on goals never trained on, and at
    least 1 of them by what two trajectories tell."""
    small = ["model.hidden=[64,64]", "algo.batch=32", "train.steps=400", "device.compile=false", "report=false"]
    result = metarun.run(metarun.compose(["algo=pearl", "data=point_robot", *small]), tmp_path)
    assert result.summary["mean"] > -18.5
    assert result.summary["mean"] - result.summary["curve"][0]["mean"] > 1


def test_l1_shrinks_actor_and_critics_and_leaves_the_encoder(tmp_path: Path) -> None:
    penalty = ["reg=l1", "reg.weight=1", "reg.metric=plain", "reg.targets=[actor,critic]", "optim.lr=0.01"]
    result = trained(tmp_path / "run", "train.steps=6", *penalty)
    layers = result.summary["sparsity"]["layers"]
    assert layers["actor.block0"]["zeros_share"] > 0.05
    assert layers["critic2.block0"]["zeros_share"] > 0.05
    assert layers["encoder.block0"]["nonzero"] >= layers["encoder.block0"]["parameters"] - 8  # shifts of dead units
    assert result.summary["sparsity"]["penalised"]["zeros_share"] > 0.05
    assert math.isfinite(result.summary["mean"])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["job=export"],
            "job=export: algo=pearl gathers its own data and keeps state; choices: train",
        ),
        (["job=profile"], "job=profile: algo=pearl gathers its own data"),
        (["diagnostics=full"], "diagnostics.level=full: algo=pearl has no fixed tasks to probe; choices: off, basic"),
        (["model.norm=batch"], "model.norm=batch: must be one of none, layer"),
        (["algo.latent=17"], "algo.latent=17: must be 1 to 16"),
        (["algo.latent=many"], "algo.latent=many: must be a whole number"),
        (["+algo.batches=3"], "algo.batches: no such setting, did you mean batch?"),
        (["algo.discount=1"], "algo.discount=1.0: must be at least 0 and below 1"),
        (["algo.trajectories=[0,1,1]"], r"algo.trajectories=[0, 1, 1]: must be [prior, posterior, extra]"),
        (["algo.initial_trajectories=1"], "algo.initial_trajectories=1: must be at least 2"),
        (["algo.initial_actions=none"], "algo.initial_actions=none: choices: policy, held"),
        (
            ["algo.initial_actions=held", "algo.latent=1"],
            "algo.latent=1: must be at least 2: initial_actions=held takes",
        ),
        (["data.reward=shaped"], "data.reward=shaped: choices: dense, sparse"),
        (["reg=inequality"], "choose a penalty on the weights"),
        (["reg=l1", "reg.targets=[acter]"], "targets=acter: no tensor begins so; choices: actor, critic1"),
        (["algo=maml"], "the data set is control; for these data choose algo=pearl"),
        (["data=sinusoid"], "the data set is regression"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(overrides: list[str], line: str) -> None:
    kept = [entry for entry in SMALL if not any(o.split("=")[0] == entry.split("=")[0] for o in overrides)]
    if overrides in (["algo=maml"], ["data=sinusoid"]):
        kept = [entry for entry in kept if not entry.startswith(("algo.", "data."))]
    with pytest.raises(UserError) as error:
        assemble(metarun.compose([*kept, *overrides]))
    assert line in str(error.value)
    assert "\n" not in str(error.value)
