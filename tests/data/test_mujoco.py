"""Simulated robots: rewards by hand, goals, and against gymnasium's own environments where MuJoCo is installed."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import metarun as command
from torch import Tensor
from torch.func import vmap

import metarun
from metarun.algorithms.collection import STARTS
from metarun.compute.random import learner_bits
from metarun.data import mujoco as robots
from metarun.data.control import check_sizes
from metarun.data.mujoco import Motion, Robots, uniform_goals
from metarun.errors import SettingError, UserError
from metarun.training.checkpoint import load
from metarun.training.experiment import assemble
from metarun.types import EpisodeSpec

ABSENT = [name for name in ("gymnasium", "mujoco") if importlib.util.find_spec(name) is None]
simulated = pytest.mark.skipif(bool(ABSENT), reason=f"{' and '.join(ABSENT)} not installed (metarun[rl])")
NAMES = ("halfcheetah_vel", "halfcheetah_dir", "ant_dir")
FEW = {"train_goals": 5, "val_goals": 3, "test_goals": 4}
SMALL = [
    "algo=pearl",
    "data.horizon=4",
    "model.hidden=[8,6]",
    "algo.batch=6",
    "algo.context_batch=5",
    "algo.initial_trajectories=2",
    "algo.capacity=50",
    "algo.collect_every=2",
    "algo.collect_tasks=2",
    "train.tasks=3",
    "train.eval_every=3",
    "train.log_every=3",
    "train.checkpoint_every=3",
    "val.tasks=2",
    "test.tasks=2",
    "device.compile=false",
    "report=false",
]


def small(name: str) -> list[str]:
    few = [] if name == "halfcheetah_dir" else [f"data.{key}={value}" for key, value in FEW.items()]
    return [*SMALL, f"data={name}", *few]


def make_robots(name: str, horizon: int = 4) -> Robots:
    return getattr(robots, name)(horizon, **({} if name == "halfcheetah_dir" else FEW))


# ---------------------------------------------------------------- without the packages


@pytest.mark.parametrize("missing", ["gymnasium", "mujoco"])
@pytest.mark.parametrize("name", NAMES)
def test_without_the_packages_one_line_says_what_to_install(
    name: str, missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError) as error:
        metarun.run(metarun.compose(small(name)), tmp_path / "run")
    assert str(error.value) == f"data={name} needs gymnasium and mujoco: pip install 'metarun[rl]'"
    assert not (tmp_path / "run").exists()


def test_on_the_command_line_it_ends_with_code_2(tmp_path: Path) -> None:
    """The package of the path comes before an installed one, and cannot be imported either."""
    (tmp_path / "mujoco.py").write_text("raise ImportError('absent')\n")
    done = command("algo=pearl", "data=halfcheetah_vel", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "metarun: data=halfcheetah_vel needs gymnasium and mujoco: pip install 'metarun[rl]'\n"
    assert not list(tmp_path.rglob("summary.json"))


def motion(**changes: float) -> Motion:
    values = {"velocity": [2.0, -1.0], "height": 0.5, "effort": 3.0, "forces": 40.0, "goal": 1.5} | changes
    return Motion(*(torch.tensor(values[name], dtype=torch.float64) for name in Motion._fields))


def test_rewards_by_hand() -> None:
    """-|2 - 1.5| - 0.15; -2 - 0.15; for a quarter turn v_y: -1 + 1 - 1.5 - 0.02, and 1 less where not healthy."""
    assert float(robots.velocity_reward(motion())) == pytest.approx(-0.65, abs=1e-12)
    assert float(robots.velocity_reward(motion(goal=2.75))) == pytest.approx(-0.9, abs=1e-12)
    assert float(robots.direction_reward(motion(goal=-1.0))) == pytest.approx(-2.15, abs=1e-12)
    for height, healthy in ((0.5, 1), (0.2, 1), (1.0, 1), (0.19, 0), (1.01, 0), (math.nan, 0)):
        found = float(robots.angle_reward(motion(goal=math.pi / 2, height=height)))
        assert found == pytest.approx(healthy - 1 - 1.5 - 0.02, abs=1e-12)
    along = math.cos(0.3) * 2 - math.sin(0.3)
    assert float(robots.angle_reward(motion(goal=0.3))) == pytest.approx(along + 1 - 1.52, abs=1e-12)


def test_drawn_goals_fill_their_range_and_each_belongs_to_one_split() -> None:
    for high in (3.0, 2 * math.pi):
        goals = uniform_goals(high, [300, 100, 200], 0)
        assert {split: list(g.shape) for split, g in goals.items()} == {
            "train": [300, 1],
            "val": [100, 1],
            "test": [200, 1],
        }
        every = torch.cat(list(goals.values()))[:, 0].sort().values.double()
        assert len(every.unique()) == 600
        assert every[0] >= 0
        assert every[-1] < high
        # Kolmogorov's distance from the uniform law; above 0.08 for one of 1000 draws of so many.
        assert float((every / high - (torch.arange(600) + 0.5) / 600).abs().max()) < 0.08
    assert not uniform_goals(3.0, [300, 100, 200], 1)["train"].equal(uniform_goals(3.0, [300, 100, 200], 0)["train"])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"horizon": 0}, "horizon=0: must be at least 1"),
        ({"train_goals": 0}, "train_goals=0: must be at least 1"),
        ({"goal_seed": -1}, "goal_seed=-1: must be at least 0"),
    ],
)
def test_sizes_that_cannot_work_are_errors(settings: dict[str, int], line: str) -> None:
    with pytest.raises(SettingError, match=line):
        check_sizes(**({"horizon": 4} | FEW | settings))


# ---------------------------------------------------------------- as gymnasium has it


def original(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gymnasium's environment without limits of its own; drawing, which its import asks for, is not needed."""
    if importlib.util.find_spec("imageio") is None:
        monkeypatch.setitem(sys.modules, "imageio", ModuleType("imageio"))
    import gymnasium
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)  # else it logs into the current folder
    if name == "ant_dir":
        lasting = {"terminate_when_unhealthy": False, "include_cfrc_ext_in_observation": False}
        return gymnasium.make("Ant-v5", **lasting).unwrapped
    return gymnasium.make("HalfCheetah-v5").unwrapped


def state_of(environment: Any) -> Tensor:
    return torch.from_numpy(np.concatenate([environment.data.qpos, environment.data.qvel]))


@simulated
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_dynamics_are_gymnasiums(name: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit where gymnasium's contact solver starts anew as ours does, and else within what its warm start does to
    20 steps. Reward terms too; the displacement of gymnasium's ant is that of another frame, so it is taken here."""
    environment, ours, generator = original(name, monkeypatch), make_robots(name), np.random.default_rng(0)
    observation, _ = environment.reset(seed=3)
    state, y = state_of(environment), torch.tensor([1.3, 0.0], dtype=torch.float64)
    tolerance = {"rtol": 0, "atol": 0 if exact else 1e-9}
    for _ in range(20):
        torch.testing.assert_close(ours.observe(state), torch.from_numpy(observation), **tolerance)
        action, before = generator.uniform(-1, 1, ours.outputs(1)), state_of(environment)
        if exact:
            environment.data.qacc_warmstart[:] = 0
        observation, _, _, _, info = environment.step(action)
        state, learned, shown = ours.step(state, torch.from_numpy(action), y)
        torch.testing.assert_close(state, state_of(environment), **tolerance)
        velocity = ((state_of(environment) - before) / environment.dt)[:2]
        expected = {
            "halfcheetah_vel": lambda v, i: -abs(i["x_velocity"] - 1.3) + i["reward_ctrl"] / 2,
            "halfcheetah_dir": lambda v, i: 1.3 * i["x_velocity"] + i["reward_ctrl"] / 2,
            "ant_dir": lambda v, i: (
                float(v[0] * math.cos(1.3) + v[1] * math.sin(1.3))
                + sum(i[f"reward_{part}"] for part in ("ctrl", "contact", "survive"))
            ),
        }[name](velocity, info)
        assert float(learned) == float(shown) == pytest.approx(expected, abs=1e-8)
    assert abs(float(state[0])) > 1e-3


@simulated
@pytest.mark.parametrize("name", ["halfcheetah_vel", "ant_dir"])
def test_a_robot_is_what_gymnasium_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, ours = original(name, monkeypatch), make_robots(name)
    assert ours.input_shape() == environment.observation_space.shape
    assert ours.outputs(1) == environment.action_space.shape[0]
    assert ours.simulator.seconds == environment.dt == pytest.approx(0.05)
    rest = np.concatenate([environment.init_qpos, environment.init_qvel])
    assert ours.simulator.rest().numpy().tolist() == rest.tolist()
    words = learner_bits(0, 0, range(4000), STARTS, ours.words_per_state)
    noise = ours.random_states(words).double() - torch.from_numpy(rest)
    position, velocity = noise[:, : environment.model.nq], noise[:, environment.model.nq :]
    assert float(position.abs().max()) <= 0.1 + 1e-6  # rounded to single precision
    torch.testing.assert_close(position.std(0), torch.full_like(position[0], 0.1 / math.sqrt(3)), rtol=0.06, atol=0)
    torch.testing.assert_close(velocity.std(0), torch.full_like(velocity[0], 0.1), rtol=0.06, atol=0)
    assert float(noise.mean(0).abs().max()) < 0.008


@simulated
def test_the_idle_return_is_that_of_no_torques(monkeypatch: pytest.MonkeyPatch) -> None:
    environment, ours = original("halfcheetah_vel", monkeypatch), make_robots("halfcheetah_vel", 10)
    environment.reset(seed=0)
    environment.set_state(environment.init_qpos, environment.init_qvel)
    goals, total = ours.goals["train"][:, 0].double().numpy(), 0.0
    for _ in range(10):
        total += float(-np.abs(environment.step(np.zeros(6))[-1]["x_velocity"] - goals).mean())
    assert ours.idle_return() == pytest.approx(total, abs=1e-9)
    assert make_robots("ant_dir", 10).idle_return() > 9


# ---------------------------------------------------------------- as a function


@simulated
@pytest.mark.parametrize("name", ["halfcheetah_dir", "ant_dir"])
def test_a_step_depends_on_nothing_but_what_it_is_given(name: str) -> None:
    """Alone, in company, in another order and by vmap, to the bit; the inputs stay as they are."""
    ours, generator = make_robots(name), torch.Generator().manual_seed(0)
    states = ours.random_states(learner_bits(0, 0, range(6), STARTS, ours.words_per_state)).double()
    actions = 2 * torch.rand(6, ours.outputs(1), generator=generator, dtype=torch.float64) - 1
    y = ours.tasks("train")[:2].double()[[0, 1, 0, 1, 0, 1]]
    kept = states.clone(), actions.clone()
    many = ours.step(states, actions, y)
    assert states.equal(kept[0])
    assert actions.equal(kept[1])
    for i in (5, 0, 3):
        for found, expected in zip(ours.step(states[i], actions[i], y[i]), many, strict=True):
            assert found.equal(expected[i])
    both = vmap(vmap(ours.step, in_dims=(1, 0, None)), in_dims=(1, 0, 0))
    grid = both(states.reshape(2, 3, -1).permute(2, 0, 1), actions.reshape(2, 3, -1), y[:2])
    paired = ours.step(states.reshape(2, 3, -1), actions.reshape(2, 3, -1), y[:2, None])
    for found, expected in zip(grid, paired, strict=True):
        assert found.equal(expected)
    same = ours.step(states[0], 5 * torch.ones_like(actions[0]), y[0])
    for found, expected in zip(same, ours.step(states[0], torch.ones_like(actions[0]), y[0]), strict=True):
        assert found.equal(expected)


@simulated
@pytest.mark.parametrize("name", ["halfcheetah_dir", "ant_dir"])
def test_threads_change_no_bit(name: str) -> None:
    """Also where another order puts a row into another thread; three threads have 3, 2 and 2 rows."""
    simulator, used = make_robots(name).simulator, torch.get_num_threads()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (7, simulator.states + simulator.actions))
    rows = noise + np.pad(simulator.rest().numpy(), (0, simulator.actions))
    try:
        torch.set_num_threads(1)
        one = simulator.simulate(rows)
        torch.set_num_threads(3)
        assert np.array_equal(simulator.simulate(rows), one)
        assert np.array_equal(simulator.simulate(rows[::-1]), one[::-1])
        assert np.array_equal(simulator.simulate(rows[:1]), one[:1])
    finally:
        torch.set_num_threads(used)
    assert len(simulator._data) == 3
    assert len(np.unique(one[:, 3])) == 7


@simulated
@pytest.mark.parametrize("threads", [1, 2])
def test_an_unstable_simulation_is_not_a_number_and_leaves_no_trace(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours = make_robots("halfcheetah_vel")
    state = ours.simulator.rest()
    bad, rest = state.clone(), torch.zeros(6, dtype=state.dtype)
    bad[10] = 1e12
    expected, _ = ours.simulator.advance(state, rest)
    found, forces = ours.simulator.advance(torch.stack([state, bad, state]), rest)
    assert found[0].equal(expected)
    assert found[1].isnan().all()
    assert forces[1].isnan()
    assert found[2].equal(expected)
    assert not list(tmp_path.iterdir())  # MuJoCo would log into the current folder


@simulated
@pytest.mark.parametrize("directions", [[1], [-1], [1, -1]])
def test_chosen_directions_are_the_tasks_of_every_split(directions: list[int]) -> None:
    ours = robots.halfcheetah_dir(4, tuple(directions))
    assert [ours.tasks(split)[:, 0].tolist() for split in ("train", "val", "test")] == [directions] * 3
    assert (ours.facts()["split"] == "both directions in each") == (len(directions) == 2)


@pytest.mark.parametrize("directions", [(), (2,), (1, 1)])
def test_other_directions_are_errors(directions: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"directions=\[.*\]: must be \[-1, 1\], \[1\] or \[-1\]"):
        robots.halfcheetah_dir(4, directions)


@simulated
def test_tasks_and_episodes() -> None:
    ours, spec = make_robots("halfcheetah_vel"), EpisodeSpec(1, 2, 1)
    rows = ours.tasks("val")
    assert rows[:, 1].tolist() == [0, 1, 2]
    assert rows[:, 0].equal(ours.goals["val"][:, 0])
    episode = ours.episodes("test", 0, 0, range(6), spec)
    assert episode.query.y[:, 0, 1].tolist() == [0, 1, 2, 3, 0, 1]
    state, numbers = ours.initial_states(episode.support.x)
    assert (state.shape, numbers.shape) == ((6, 2, 18), (6, 2, 16))
    assert len(state.reshape(12, -1).unique(dim=0)) == 12
    part = ours.episodes("test", 0, 0, range(2, 4), spec)
    assert part.support.x.equal(episode.support.x[2:4])
    both = make_robots("halfcheetah_dir")
    assert [both.tasks(split)[:, 0].tolist() for split in ("train", "val", "test")] == [[-1, 1]] * 3
    facts = [make_robots(name).facts() for name in NAMES]
    assert len({f["split_sha256"] for f in facts}) == 3
    assert facts[0]["train_goals"] == 5
    assert facts[1]["test_goals"] == 2


# ---------------------------------------------------------------- runs


@simulated
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(name: str, tmp_path: Path) -> None:
    def trained(folder: str, steps: int, *more: str) -> Any:
        return metarun.run(metarun.compose([*small(name), f"train.steps={steps}", *more]), tmp_path / folder)

    whole = trained("whole", 6).summary
    trained("parts", 3)
    parts = trained("parts", 6, f"resume={tmp_path / 'parts'}").summary
    assert parts["params_sha256"] == whole["params_sha256"]
    stored = [load(tmp_path / folder / "checkpoints/last.pt")["carry"] for folder in ("whole", "parts")]
    assert stored[0].keys() == stored[1].keys()
    assert all(stored[1][key].equal(value) for key, value in stored[0].items())
    for file in ("test.json", "metrics.jsonl"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert [row["step"] for row in whole["curve"]] == [0, 1, 2]
    assert whole["metric"] == "return"
    assert not whole["oracle"]


@simulated
def test_kept_rows_are_what_is_seen_and_starts_differ_by_kind() -> None:
    trainer = assemble(metarun.compose(small("halfcheetah_vel"))).trainer()
    state = trainer.start()
    carry = state.carry
    for step in (0, 2):
        carry, _, _ = trainer.algorithm.before_step(state.params, carry, trainer.tasks(step), 0, step)
    rows = carry["replay"][carry["written"] == 24][0, 8:24]  # of one step 2: prior, prior, extra, extra
    seen, after = rows[:, :17].unflatten(0, (4, 4)), rows[:, -17:].unflatten(0, (4, 4))
    assert seen[:, 1:].equal(after[:, :-1])
    assert len(seen[:, 0].unique(dim=0)) == 4
    assert int(carry["environment_steps"]) == 5 * 2 * 4 + 2 * 4 * 4
