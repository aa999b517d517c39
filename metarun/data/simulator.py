"""Robots that MuJoCo simulates (`metarun[rl]`), as a pure function: (state, action) -> the state after it.

A state is (qpos, qvel); whatever else a simulation remembers is put to what a fresh one has. That is the start of the
contact solver's search alone (qacc_warmstart, here 0), which moves its result within the solver's tolerance of 1e-8.
So a step depends on nothing but what it is given, on whichever state was simulated before it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.errors import UserError

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
