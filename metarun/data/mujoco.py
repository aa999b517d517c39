r"""Robots simulated by MuJoCo, with a goal that only the rewards reveal (Finn et al. 2017, arXiv 1703.03400; Rakelly et
al. 2019, arXiv 1903.08254). Needs `metarun[rl]`.

    halfcheetah_vel   r = -|v_x - g| - 0.05 |a|^2                                    g ~ U[0, 3), a velocity
    halfcheetah_dir   r = g v_x - 0.05 |a|^2                                         g in {-1, 1}, a direction
    ant_dir           r = v_x cos g + v_y sin g + 1[healthy] - 0.5 |a|^2 - 5e-4 |f|^2   g ~ U[0, 2 pi), an angle

Symbols: v displacement of the torso divided by the 0.05 s that an action lasts, a in [-1, 1]^A the action, f the
contact forces on all bodies, cut to +-1; healthy: the torso is 0.2 to 1 m high. Rewards are those of Rakelly's code
(katerakelly/oyster: half_cheetah_vel.py, half_cheetah_dir.py and ant_dir.py of rlkit/envs), unscaled. Robots, frames
per action and initial states are those of gymnasium's HalfCheetah-v5 and Ant-v5: qpos_0 = rest + U[-0.1, 0.1], qvel_0 ~
N(0, 0.1^2). An observation is (qpos, qvel) without the coordinates on the ground: 17 and 27 numbers.

A trajectory ends after `horizon` steps and never before: an ant that is not healthy loses 1 a step and goes on, where
the published one ends. The published displacement of the ant is over five frames of the simulation that end one early.

Random goals go to the splits in the order in which `goal_seed` draws them. Both directions of the cheetah are the
tasks of each split, as published: the test asks whether the direction is recognised, not for a new one. With one
direction alone there is nothing to recognise.

The simulation is a pure function: (state, action) -> the next state. A state is (qpos, qvel). The only other memory of
a simulation is where the contact solver starts its search (qacc_warmstart); it is reset to 0 before each step, which
changes the result within the solver's tolerance of 1e-8. So no step depends on the states simulated before it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import Bits, normal, random_bits, uniform
from metarun.data import control
from metarun.errors import UserError, require
from metarun.types import EpisodeSpec, Kind, Split, Task

FRAMES = 5  # of the simulation for one action
NOISE = 0.1  # of initial states
FORCES = (-1.0, 1.0)  # contact forces are cut to this range


class Motion(NamedTuple):
    """What the reward of a step depends on, [...]."""

    velocity: Tensor  # of the torso on the ground [..., 1 or 2]
    height: Tensor  # of the torso after it
    effort: Tensor  # |a|^2
    forces: Tensor  # |f|^2
    goal: Tensor


def velocity_reward(motion: Motion) -> Tensor:
    return -(motion.velocity[..., 0] - motion.goal).abs() - 0.05 * motion.effort


def direction_reward(motion: Motion) -> Tensor:
    return motion.goal * motion.velocity[..., 0] - 0.05 * motion.effort


def angle_reward(motion: Motion) -> Tensor:
    along = motion.velocity[..., 0] * motion.goal.cos() + motion.velocity[..., 1] * motion.goal.sin()
    healthy = (motion.height >= 0.2) & (motion.height <= 1.0)
    return along + healthy - 0.5 * motion.effort - 5e-4 * motion.forces


@dataclass(frozen=True)
class Robots:
    """A simulated robot, its reward, and the goals of each split."""

    simulator: Simulator
    ground: int  # the first so many coordinates are its position on the ground, which is not observed
    height: int  # the index of the torso's height in a state
    reward: Callable[[Motion], Tensor]
    goals: dict[Split, Tensor]  # [n, 1]
    horizon: int
    split: str  # how the goals were chosen

    kind: ClassVar[Kind] = "control"
    normals_per_trajectory: ClassVar[int] = control.NORMALS

    def input_shape(self) -> tuple[int, ...]:
        return (self.simulator.states - self.ground,)

    def outputs(self, ways: int) -> int:
        """The length of an action."""
        return self.simulator.actions

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Accept every size: any number of trajectories can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return control.draw_trajectories(self, self.tasks(split), split, seed, step, tasks, spec)

    def tasks(self, split: Split) -> Tensor:
        """Rows y of a split's tasks [n, G + 1]: the goal and its index."""
        return control.number_goals(self.goals[split])

    def train_tasks(self) -> Tensor:
        return self.tasks("train")

    def reference_inputs(self, count: int) -> Tensor:
        """Observations of initial states."""
        words = random_bits("train", 0, control.GOAL_STREAM + 1, range(count), self.words_per_state)
        return self.observe(self.random_states(words))

    def facts(self) -> dict[str, Any]:
        counts = {f"{split}_goals": len(goals) for split, goals in self.goals.items()}
        split = {"split": self.split, "split_sha256": control.goals_sha256(self.goals), "reward": "dense"}
        return split | {"horizon": self.horizon} | counts | {"mujoco": self.simulator.version}

    def idle_return(self) -> float:
        """The return of a robot without torques, from rest; the mean over training goals."""
        state, y = self.simulator.rest(), self.train_tasks().double()
        total, idle = torch.zeros(len(y), dtype=y.dtype), torch.zeros(self.simulator.actions, dtype=y.dtype)
        for _ in range(self.horizon):
            after, forces = self.simulator.advance(state, idle)
            total = total + self.compute_reward(state, idle, after, forces, y)
            state = after
        return float(total.mean())

    @property
    def words_per_state(self) -> int:
        return self.simulator.positions + 2 * self.simulator.velocities

    def random_states(self, words: Bits) -> Tensor:
        q, v = self.simulator.positions, self.simulator.velocities
        moves = NOISE * normal(words[..., q : q + v], words[..., q + v :])
        noise = np.concatenate([uniform(words[..., :q], -NOISE, NOISE), moves], -1)
        return (self.simulator.rest() + torch.from_numpy(noise)).float()

    def initial_states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., : self.simulator.states], x[..., self.simulator.states :]

    def observe(self, state: Tensor) -> Tensor:
        return state[..., self.ground :]

    def step(self, state: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        action = action.clamp(-1, 1)
        after, forces = self.simulator.advance(state, action)
        reward = self.compute_reward(state, action, after, forces, y)
        return after, reward, reward

    def compute_reward(self, state: Tensor, action: Tensor, after: Tensor, forces: Tensor, y: Tensor) -> Tensor:
        velocity = (after - state)[..., : self.ground] / self.simulator.seconds
        effort = action.square().sum(-1)
        return self.reward(Motion(velocity, after[..., self.height], effort, forces, y[..., 0]))


def uniform_goals(high: float, counts: Sequence[int], goal_seed: int) -> dict[Split, Tensor]:
    """Goals uniform in [0, high), so many of each split."""
    words = random_bits("train", goal_seed, control.GOAL_STREAM, range(sum(counts)), 1)
    return control.split_goals(torch.from_numpy(uniform(words, 0, high).astype(np.float32)), counts)


def halfcheetah_vel(horizon: int, train_goals: int, val_goals: int, test_goals: int, goal_seed: int = 0) -> Robots:
    control.check_sizes(horizon, train_goals, val_goals, test_goals, goal_seed)
    goals = uniform_goals(3.0, [train_goals, val_goals, test_goals], goal_seed)
    return _make_cheetah("halfcheetah_vel", velocity_reward, goals, horizon, "velocities in [0, 3)")


def halfcheetah_dir(horizon: int, directions: tuple[int, ...] = (-1, 1)) -> Robots:
    control.check_sizes(horizon, 1, 1, 1)
    sound = len(directions) > 0 and len({*directions}) == len(directions) and {*directions} <= {-1, 1}
    require(sound, "directions", list(directions), "must be [-1, 1], [1] or [-1]")
    goals = torch.tensor(directions, dtype=torch.float32)[:, None]
    same: dict[Split, Tensor] = {"train": goals, "val": goals, "test": goals}
    drawn = "both directions in each" if len(goals) > 1 else f"direction {directions[0]} in each"
    return _make_cheetah("halfcheetah_dir", direction_reward, same, horizon, drawn)


def ant_dir(horizon: int, train_goals: int, val_goals: int, test_goals: int, goal_seed: int = 0) -> Robots:
    control.check_sizes(horizon, train_goals, val_goals, test_goals, goal_seed)
    goals = uniform_goals(2 * math.pi, [train_goals, val_goals, test_goals], goal_seed)
    simulator = _load_robot("ant_dir", "ant.xml")
    return Robots(simulator, 2, 2, angle_reward, goals, horizon, "angles in [0, 2 pi)")


def _make_cheetah(
    name: str, reward: Callable[[Motion], Tensor], goals: dict[Split, Tensor], horizon: int, drawn: str
) -> Robots:
    return Robots(_load_robot(name, "half_cheetah.xml"), 1, 1, reward, goals, horizon, drawn)


def _load_robot(name: str, file: str) -> Simulator:
    simulator = Simulator(name, file, FRAMES)
    simulator.rest()  # loads it: a missing package is an error before the run begins
    return simulator


@dataclass(frozen=True)
class Simulator:
    """A robot of gymnasium; an action lasts `frames` steps of the simulation."""

    name: str  # of the data set
    file: str  # among gymnasium's robots
    frames: int

    @property
    def states(self) -> int:
        """The length of a state: qpos, then qvel."""
        return self.positions + self.velocities

    @property
    def positions(self) -> int:
        return self._simulation[1].nq

    @property
    def velocities(self) -> int:
        return self._simulation[1].nv

    @property
    def actions(self) -> int:
        return self._simulation[1].nu

    @property
    def seconds(self) -> float:
        """The duration of an action."""
        return self.frames * self._simulation[1].opt.timestep

    @property
    def version(self) -> str:
        return self._simulation[0].__version__

    def rest(self) -> Tensor:
        """The state of the robot at rest [S], float64."""
        return torch.from_numpy(np.concatenate([self._simulation[1].qpos0, np.zeros(self.velocities)]))

    def advance(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """States [..., S] and actions [..., A] -> the next states [..., S], and the sum of the squared contact forces,
        each cut to +-1, [...]. NaN where the simulation became unstable."""
        out = _Simulate.apply(state, action, self)
        return out[..., :-1], out[..., -1]

    def simulate(self, rows: np.ndarray) -> np.ndarray:
        """Rows (state, action) [n, S + A] -> (next state, squared forces) [n, S + 1]; all float64.

        As many threads as torch has share the rows. MuJoCo simulates without Python's lock, and a row's result does not
        depend on the thread.
        """
        threads = min(torch.get_num_threads(), len(rows))
        while len(self._data) < threads:
            self._data.append(self._simulation[0].MjData(self._simulation[1]))
        if threads <= 1:
            return self._simulate_rows(rows, self._data[0])
        parts = _make_pool(threads).map(self._simulate_rows, np.array_split(rows, threads), self._data[:threads])
        return np.concatenate(list(parts))

    def _simulate_rows(self, rows: np.ndarray, data: Any) -> np.ndarray:
        mujoco, model = self._simulation
        after, q, s = np.empty((len(rows), self.states + 1)), self.positions, self.states
        qpos, qvel, ctrl, start, forces = data.qpos, data.qvel, data.ctrl, data.qacc_warmstart, data.cfrc_ext
        kinds, warnings = mujoco.mjtWarning, data.warning.number
        bad = [int(getattr(kinds, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC", "CTRL")]
        for row, out in zip(rows, after, strict=True):
            qpos[:], qvel[:], ctrl[:], start[:] = row[:q], row[q:s], row[s:], 0
            mujoco.mj_step(model, data, self.frames)
            mujoco.mj_rnePostConstraint(model, data)
            out[:q], out[q:s], out[s] = qpos, qvel, np.square(forces.clip(*FORCES)).sum()
            # Where numbers become too large, MuJoCo warns and goes on from rest.
            if warnings.any() and warnings[bad].any():
                mujoco.mj_resetData(model, data)
                out[:] = np.nan
        return after

    @functools.cached_property
    def _data(self) -> list[Any]:
        """The simulation's data, one for each thread."""
        return [self._simulation[0].MjData(self._simulation[1])]

    @functools.cached_property
    def _simulation(self) -> tuple[Any, Any]:
        """The package mujoco and the robot's model."""
        try:
            import gymnasium
            import mujoco
        except ImportError as error:
            raise UserError(f"data={self.name} needs gymnasium and mujoco: pip install 'metarun[rl]'") from error
        # By default mujoco logs warnings to MUJOCO_LOG.TXT in the current folder; those that matter become NaN.
        mujoco.set_mju_user_warning(lambda message: None)
        folder = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
        return mujoco, mujoco.MjModel.from_xml_path(str(folder / self.file))


@functools.cache
def _make_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "mujoco")


class _Simulate(torch.autograd.Function):
    """The simulation as a function of tensors that vmap can batch; it has no derivative."""

    @staticmethod
    def forward(state: Tensor, action: Tensor, simulator: Simulator) -> Tensor:
        shape = torch.broadcast_shapes(state.shape[:-1], action.shape[:-1])
        rows = torch.cat([state.expand(*shape, -1), action.expand(*shape, -1)], -1)
        out = simulator.simulate(rows.detach().cpu().double().reshape(-1, rows.shape[-1]).numpy())
        return torch.from_numpy(out).to(state).reshape(*shape, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], state: Tensor, action: Tensor, simulator: Simulator) -> Any:
        """One call for any number of leading axes."""
        state, action = (
            value.expand(info.batch_size, *value.shape) if at is None else value.movedim(at, 0)
            for value, at in zip((state, action), in_dims[:2], strict=True)
        )
        return _Simulate.apply(state, action, simulator), 0
