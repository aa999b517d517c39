r"""Robots that MuJoCo simulates, with a goal that only rewards tell of (Finn et al. 2017, arXiv 1703.03400; Rakelly et
al. 2019, arXiv 1903.08254).

    halfcheetah_vel   r = -|v_x - g| - 0.05 |a|^2                                    g ~ U[0, 3), a velocity
    halfcheetah_dir   r = g v_x - 0.05 |a|^2                                         g in {-1, 1}, a direction
    ant_dir           r = v_x cos g + v_y sin g + 1[healthy] - 0.5 |a|^2 - 5e-4 |f|^2   g ~ U[0, 2 pi), an angle

Symbols: v displacement of the torso divided by the 0.05 s that an action lasts, a in [-1, 1]^A the action, f the
contact forces on all bodies, cut to +-1; healthy: the torso is 0.2 to 1 m high. Rewards are those of Rakelly's code
(katerakelly/oyster: half_cheetah_vel.py, half_cheetah_dir.py and ant_dir.py of rlkit/envs), shown as they are.
Robots, frames of an action and starts are those of gymnasium's HalfCheetah-v5 and Ant-v5: qpos_0 = rest + U[-0.1, 0.1],
qvel_0 ~ N(0, 0.1^2). A learner sees (qpos, qvel) without the coordinates on the ground: 17 and 27 numbers.

A trajectory ends after `horizon` steps and never before: an ant that is not healthy loses 1 a step and goes on, where
the published one ends. The published displacement of the ant is over five frames of the simulation that end one early.

Goals that are drawn go to the splits in the order of the draws by `goal_seed`. Both directions of the cheetah are the
tasks of each split, as published: a test of these asks whether the direction is found, not for a new one.

Robots that MuJoCo simulates (`metarun[rl]`), as a pure function: (state, action) -> the state after it.

A state is (qpos, qvel); whatever else a simulation remembers is put to what a fresh one has. That is the start of the
contact solver's search alone (qacc_warmstart, here 0), which moves its result within the solver's tolerance of 1e-8.
So a step depends on nothing but what it is given, on whichever state was simulated before it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import Bits, normal, random_bits, uniform
from metarun.data import control
from metarun.errors import UserError
from metarun.types import EpisodeSpec, Kind, Split, Task

FRAMES = 5
NOISE = 0.1
"""Of starts."""

GOAL_STREAM = 2**43
"""The step whose words are the goals."""

DIRECTIONS = torch.tensor([[-1.0], [1.0]])


class Motion(NamedTuple):
    """What a step is rewarded by, [...]."""

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
    """A simulated robot, what it is rewarded for, and the goals of each split."""

    simulator: Simulator
    ground: int  # coordinates that tell where on the ground it is, the first of qpos, and are not seen
    height: int  # the coordinate that is the torso's height, counted in a state
    reward: Callable[[Motion], Tensor]
    goals: dict[Split, Tensor]  # [n, 1]
    horizon: int
    drawn: str  # how goals came about

    kind: ClassVar[Kind] = "control"
    draws: ClassVar[int] = 16

    def input_shape(self) -> tuple[int, ...]:
        return (self.simulator.states - self.ground,)

    def outputs(self, ways: int) -> int:
        """The length of an action."""
        return self.simulator.actions

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Any number of trajectories can be walked."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return control.episodes(self, self.tasks(split), split, seed, step, tasks, spec)

    def reference_inputs(self, count: int) -> Tensor:
        """What is seen at starts."""
        words = random_bits("train", 0, GOAL_STREAM + 1, range(count), self.start_words)
        return self.observe(self.started(words))

    def facts(self) -> dict[str, Any]:
        counts = {f"{split}_goals": len(goals) for split, goals in self.goals.items()}
        told = {"split": self.drawn, "split_sha256": control.digest(self.goals), "reward": "dense"}
        return told | {"horizon": self.horizon} | counts | {"mujoco": self.simulator.version}

    def idle_return(self) -> float:
        """What a robot without torques collects from rest, the mean over training goals."""
        state, y = self.simulator.rest(), self.train_tasks().double()
        total, idle = torch.zeros(len(y), dtype=y.dtype), torch.zeros(self.simulator.actions, dtype=y.dtype)
        for _ in range(self.horizon):
            after, forces = self.simulator.moved(state, idle)
            total = total + self.rewarded(state, idle, after, forces, y)
            state = after
        return float(total.mean())

    # ------------------------------------------------------------ the place to act in

    @property
    def start_words(self) -> int:
        return self.simulator.positions + 2 * self.simulator.velocities

    def started(self, words: Bits) -> Tensor:
        q, v = self.simulator.positions, self.simulator.velocities
        moves = NOISE * normal(words[..., q : q + v], words[..., q + v :])
        noise = np.concatenate([uniform(words[..., :q], -NOISE, NOISE), moves], -1)
        return (self.simulator.rest() + torch.from_numpy(noise)).float()

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., : self.simulator.states], x[..., self.simulator.states :]

    def observe(self, state: Tensor) -> Tensor:
        return state[..., self.ground :]

    def train_tasks(self) -> Tensor:
        return self.tasks("train")

    def step(self, state: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        action = action.clamp(-1, 1)
        after, forces = self.simulator.moved(state, action)
        reward = self.rewarded(state, action, after, forces, y)
        return after, reward, reward

    def rewarded(self, state: Tensor, action: Tensor, after: Tensor, forces: Tensor, y: Tensor) -> Tensor:
        velocity = (after - state)[..., : self.ground] / self.simulator.seconds
        effort = action.square().sum(-1)
        return self.reward(Motion(velocity, after[..., self.height], effort, forces, y[..., 0]))

    def tasks(self, split: Split) -> Tensor:
        """Rows y of a split's tasks, [n, 2]: the goal and its number."""
        return control.numbered(self.goals[split])


@dataclass(frozen=True)
class Counts:
    """Settings, checked, and the goals that are drawn by them."""

    horizon: int
    train_goals: int
    val_goals: int
    test_goals: int
    goal_seed: int = 0

    def __post_init__(self) -> None:
        control.check_counts(self)

    def uniform(self, high: float) -> dict[Split, Tensor]:
        """Goals below `high`, at least 0."""
        counts = [self.train_goals, self.val_goals, self.test_goals]
        words = random_bits("train", self.goal_seed, GOAL_STREAM, range(sum(counts)), 1)
        goals = torch.from_numpy(uniform(words, 0, high).astype(np.float32))
        return control.shared_out(goals, counts)


def halfcheetah_vel(horizon: int, train_goals: int, val_goals: int, test_goals: int, goal_seed: int = 0) -> Robots:
    goals = Counts(horizon, train_goals, val_goals, test_goals, goal_seed).uniform(3.0)
    return _cheetah("halfcheetah_vel", velocity_reward, goals, horizon, "velocities in [0, 3)")


def halfcheetah_dir(horizon: int) -> Robots:
    Counts(horizon, 1, 1, 1)
    goals: dict[Split, Tensor] = {"train": DIRECTIONS, "val": DIRECTIONS, "test": DIRECTIONS}
    return _cheetah("halfcheetah_dir", direction_reward, goals, horizon, "both directions in each")


def ant_dir(horizon: int, train_goals: int, val_goals: int, test_goals: int, goal_seed: int = 0) -> Robots:
    goals = Counts(horizon, train_goals, val_goals, test_goals, goal_seed).uniform(2 * math.pi)
    simulator = _robot("ant_dir", "ant.xml")
    return Robots(simulator, 2, 2, angle_reward, goals, horizon, "angles in [0, 2 pi)")


def _cheetah(
    name: str, reward: Callable[[Motion], Tensor], goals: dict[Split, Tensor], horizon: int, drawn: str
) -> Robots:
    return Robots(_robot(name, "half_cheetah.xml"), 1, 1, reward, goals, horizon, drawn)


def _robot(name: str, file: str) -> Simulator:
    """Loaded at once, so that a missing package is told of before the run begins."""
    simulator = Simulator(name, file, FRAMES)
    simulator.rest()
    return simulator


FORCES = (-1.0, 1.0)
"""What contact forces are cut to."""


def packages(name: str) -> tuple[Any, Any]:
    """gymnasium, which has the robots, and mujoco; `UserError` where the data set of this name lacks them."""
    try:
        import gymnasium
        import mujoco
    except ImportError as error:
        raise UserError(f"data={name} needs gymnasium and mujoco: pip install 'metarun[rl]'") from error
    return gymnasium, mujoco


@dataclass(frozen=True)
class Simulator:
    """A robot of gymnasium's, `frames` steps of the simulation for one action."""

    name: str  # of the data set
    file: str  # among gymnasium's robots
    frames: int

    @property
    def states(self) -> int:
        """Numbers in a state: those of qpos, then those of qvel."""
        return self.positions + self.velocities

    @property
    def positions(self) -> int:
        return self._loaded[1].nq

    @property
    def velocities(self) -> int:
        return self._loaded[1].nv

    @property
    def actions(self) -> int:
        return self._loaded[1].nu

    @property
    def seconds(self) -> float:
        """That an action lasts."""
        return self.frames * self._loaded[1].opt.timestep

    @property
    def version(self) -> str:
        return self._loaded[0].__version__

    def rest(self) -> Tensor:
        """The robot as it is built, without motion, [states] in float64."""
        return torch.from_numpy(np.concatenate([self._loaded[1].qpos0, np.zeros(self.velocities)]))

    def moved(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """States [..., S] after actions [..., A], and the sum of the squared contact forces [...] that act on the
        robot then, cut to +-1 each. Not a number where the simulation became unstable."""
        out = _Moved.apply(state, action, self)
        return out[..., :-1], out[..., -1]

    def run(self, rows: np.ndarray) -> np.ndarray:
        """Rows (state, action) [n, S + A] -> (state after, squared forces) [n, S + 1]; all float64."""
        mujoco, model, data = self._loaded
        after = np.empty((len(rows), self.states + 1))
        parts = [self.positions, self.states]
        for row, out in zip(rows, after, strict=True):
            data.qpos[:], data.qvel[:], data.ctrl[:] = np.split(row, parts)
            data.qacc_warmstart[:] = 0
            mujoco.mj_step(model, data, self.frames)
            mujoco.mj_rnePostConstraint(model, data)
            forces = np.square(np.clip(data.cfrc_ext, *FORCES)).sum()
            out[: parts[0]], out[parts[0] : parts[1]], out[-1] = data.qpos, data.qvel, forces
            if _unstable(mujoco, model, data):
                out[:] = np.nan
        return after

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """MuJoCo, the robot, and the memory that it is simulated in."""
        gymnasium, mujoco = packages(self.name)
        # Without this it writes MUJOCO_LOG.TXT into the current folder; what matters of it is in the numbers.
        mujoco.set_mju_user_warning(_silent)
        folder = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
        model = mujoco.MjModel.from_xml_path(str(folder / self.file))
        return mujoco, model, mujoco.MjData(model)


def _silent(message: str) -> None:
    """Of warnings."""


def _unstable(mujoco: Any, model: Any, data: Any) -> bool:
    """Whether numbers were too large to go on with, from where MuJoCo goes on with the robot as it is built."""
    kinds = mujoco.mjtWarning
    bad = (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC, kinds.mjWARN_BADCTRL)
    found = any(data.warning[int(kind)].number for kind in bad)
    if found:
        mujoco.mj_resetData(model, data)
    return found


class _Moved(torch.autograd.Function):
    """The simulation as a function of tensors that vmap can batch, and that has no derivative."""

    @staticmethod
    def forward(state: Tensor, action: Tensor, simulator: Simulator) -> Tensor:
        shape = torch.broadcast_shapes(state.shape[:-1], action.shape[:-1])
        rows = torch.cat([state.expand(*shape, -1), action.expand(*shape, -1)], -1)
        done = simulator.run(rows.detach().cpu().double().reshape(-1, rows.shape[-1]).numpy())
        return torch.from_numpy(done).to(state).reshape(*shape, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], state: Tensor, action: Tensor, simulator: Simulator) -> Any:
        """Any number of leading axes are one call."""
        state, action = (
            value.expand(info.batch_size, *value.shape) if at is None else value.movedim(at, 0)
            for value, at in zip((state, action), in_dims[:2], strict=True)
        )
        return _Moved.apply(state, action, simulator), 0
