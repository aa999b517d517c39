"""The point robot: its steps and rewards by hand, goals by split, the oracle, episodes as pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from metarun.data.point_robot import PointRobot
from metarun.types import EpisodeSpec

ROBOT = PointRobot(reward="dense", horizon=4, train_goals=5, val_goals=3, test_goals=3)


def test_the_robot_walks_and_is_rewarded_as_written_down() -> None:
    y = torch.tensor([0.0, 1.0, 0.0])
    state, learned, shown = ROBOT.step(torch.tensor([0.0, 0.5]), torch.tensor([1.0, -7.0]), y)
    torch.testing.assert_close(state, torch.tensor([0.1, 0.4]))
    assert float(learned) == float(shown) == pytest.approx(-math.hypot(0.1, 0.6))
    sparse = replace(ROBOT, reward="sparse")
    for height, inside in ((0.75, True), (0.65, False), (1.05, True), (1.25, False)):
        state, learned, shown = sparse.step(torch.tensor([0.0, height]), torch.tensor([0.0, 1.0]), y)
        assert float(shown) == pytest.approx(1 - abs(height + 0.1 - 1) if inside else 0.0, abs=1e-6)
        assert float(learned) == pytest.approx(-abs(height + 0.1 - 1), abs=1e-6)
    assert ROBOT.idle_return() == pytest.approx(-4)
    assert sparse.idle_return() == 0


def test_goals_are_spread_over_the_half_circle_and_each_belongs_to_one_split() -> None:
    rows = [ROBOT.tasks(split) for split in ("train", "val", "test")]
    assert [len(r) for r in rows] == [5, 3, 3]
    goals = torch.cat([r[:, :2] for r in rows]).double()
    angles = torch.atan2(goals[:, 1], goals[:, 0]).remainder(2 * math.pi).sort().values
    torch.testing.assert_close(angles, torch.linspace(0, math.pi, 11).double(), rtol=1e-6, atol=1e-6)
    assert all(r[:, 2].tolist() == list(range(len(r))) for r in rows)
    other = replace(ROBOT, goal_seed=1).tasks("train")
    assert not other.equal(rows[0])


def test_the_oracle_walks_each_coordinate_at_full_speed() -> None:
    """After t steps it is max(|g_j| - t / 10, 0) away in coordinate j; no random walk does better."""
    far = replace(ROBOT, horizon=20)
    spec = EpisodeSpec(1, 1, 1)
    goals = far.tasks("test")[:, :2].double().abs()
    left = [(goals - 0.1 * t).clamp(min=0).norm(dim=1) for t in range(1, 21)]
    found = far.oracle("test", 0, 0, range(3), spec)["return"]
    torch.testing.assert_close(found, -torch.stack(left).sum(0), rtol=1e-6, atol=1e-6)
    sparse = replace(far, reward="sparse", goal_radius=0.23).oracle("test", 0, 0, range(3), spec)["return"]
    shown = torch.stack([(1 - d) * (d <= 0.23) for d in left]).sum(0)
    torch.testing.assert_close(sparse, shown, rtol=1e-5, atol=1e-5)
    state, total, generator = torch.zeros(500, 3, 2), torch.zeros(500, 3), torch.Generator().manual_seed(0)
    for _ in range(20):
        state, _, shown = far.step(state, 2 * torch.rand(500, 3, 2, generator=generator) - 1, far.tasks("test"))
        total += shown
    assert (total.double() <= found).all()


def test_episodes_are_functions_of_seed_split_step_and_number() -> None:
    spec = EpisodeSpec(1, 2, 1)
    whole = ROBOT.episodes("train", 0, 3, range(6), spec)
    part = ROBOT.episodes("train", 0, 3, range(2, 4), spec)
    assert all(a[2:4].equal(b) for w, p in zip(whole, part, strict=True) for a, b in zip(w, p, strict=True))
    tested = ROBOT.episodes("test", 0, 0, range(6), spec).query.y[:, 0, -1]
    assert tested.tolist() == [0, 1, 2, 0, 1, 2]
