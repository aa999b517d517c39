"""A fixed set of training tasks, and the same with one task exchanged."""

from __future__ import annotations

import pytest
import torch
from helpers.quadratic import LinearModel, QuadraticTasks

from metarun.cli.compose import compose
from metarun.data.pool import TaskPool
from metarun.data.sinusoid import Sinusoid
from metarun.errors import SettingError
from metarun.training.experiment import assemble
from metarun.types import EpisodeSpec, Task

SPEC = EpisodeSpec(1, 5, 3)
SINUSOID = Sinusoid((0.1, 5.0), (0.0, 3.14), (-5.0, 5.0), 0.0)


def same(a: Task, b: Task) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def at(tasks: Task, index: int) -> Task:
    return Task(*(b._replace(x=b.x[index : index + 1], y=b.y[index : index + 1]) for b in tasks))


def test_every_training_task_is_one_of_the_pool_and_all_come_about_equally_often() -> None:
    pool = TaskPool(SINUSOID, 4, seed=0, replaced=None)
    fixed = pool.tasks(SPEC)
    counts = [0] * 4
    drawn = pool.episodes("train", 7, 0, range(2000), SPEC)
    for i in range(2000):
        counts[[same(at(drawn, i), at(fixed, j)) for j in range(4)].index(True)] += 1
    assert max(abs(c - 500) for c in counts) < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_replacing_a_task_changes_that_task_and_nothing_else() -> None:
    plain, other = TaskPool(SINUSOID, 4, 0, None), TaskPool(SINUSOID, 4, 0, 2)
    a, b = plain.tasks(SPEC), other.tasks(SPEC)
    assert [same(at(a, i), at(b, i)) for i in range(4)] == [True, True, False, True]
    drawn_a, drawn_b = (p.episodes("train", 1, 3, range(50), SPEC) for p in (plain, other))
    for i in range(50):
        assert same(at(drawn_a, i), at(drawn_b, i)) != same(at(drawn_a, i), at(a, 2))


def test_a_choice_takes_each_task_or_its_substitute() -> None:
    pools = [TaskPool(SINUSOID, 40, 0, choice=c) for c in range(5)]
    both = pools[0].candidates(SPEC, 80)
    assert same(TaskPool(SINUSOID, 40, 0).tasks(SPEC), Task(*(b._replace(x=b.x[:40], y=b.y[:40]) for b in both)))
    for pool in pools:
        tasks, bits = pool.tasks(SPEC), pool.substituted().tolist()
        assert all(same(at(tasks, i), at(both, i + 40 * bit)) for i, bit in enumerate(bits))
    chosen = [sum(pool.substituted().tolist()) for pool in pools]
    assert abs(sum(chosen) - 100) < 4 * 50**0.5
    assert len({tuple(pool.substituted().tolist()) for pool in pools}) == 5


def test_the_pool_is_a_function_of_its_own_seed_and_not_of_the_runs() -> None:
    assert same(TaskPool(SINUSOID, 3, 0, None).tasks(SPEC), TaskPool(SINUSOID, 3, 0, None).tasks(SPEC))
    assert not same(TaskPool(SINUSOID, 3, 0, None).tasks(SPEC), TaskPool(SINUSOID, 3, 1, None).tasks(SPEC))


def test_validation_and_test_are_those_of_the_data_set() -> None:
    data = QuadraticTasks(LinearModel(3, 2))
    pool = TaskPool(data, 2, 0, None)
    for split in ("val", "test"):
        assert same(pool.episodes(split, 0, 0, range(3), SPEC), data.episodes(split, 0, 0, range(3), SPEC))


def test_a_larger_pool_begins_with_the_smaller_one() -> None:
    """So that results by the number of tasks are nested."""
    small, large = TaskPool(SINUSOID, 3, 0, None).tasks(SPEC), TaskPool(SINUSOID, 8, 0, None).tasks(SPEC)
    assert all(same(at(small, i), at(large, i)) for i in range(3))


def test_settings_make_the_pool_and_wrong_ones_are_refused() -> None:
    experiment = assemble(compose(["train.pool=5", "train.pool_replaced=1"]))
    assert experiment.dataset.facts()["pool"] == 5
    with pytest.raises(SettingError, match=r"train.pool_replaced=5: must be 0 to 4"):
        assemble(compose(["train.pool=5", "train.pool_replaced=5"]))
    with pytest.raises(SettingError, match=r"train.pool_choice=2: cannot be set with train.pool_replaced"):
        assemble(compose(["train.pool=5", "train.pool_replaced=1", "train.pool_choice=2"]))
    for name in ("pool_replaced", "pool_choice"):
        with pytest.raises(SettingError, match=rf"train.{name}=1: needs a pool; set train.pool"):
            assemble(compose([f"train.{name}=1"]))
