"""Sinusoids that can be memorised: the amplitude beside x as a one-hot, true in training and misleading at test."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch

from metarun.data.sinusoid import Sinusoid
from metarun.errors import SettingError
from metarun.types import EpisodeSpec, Split, Task

COUNT = 20
DATA = Sinusoid((0.1, 4.0), (0.0, 0.0), (-5.0, 5.0), 0.0, identity=COUNT)
VALUES = np.linspace(0.1, 4.0, COUNT)
SPEC = EpisodeSpec(ways=1, shots=5, queries=6)
TASKS = 4000


def draw(split: Split, data: Sinusoid = DATA, tasks: range = range(TASKS)) -> Task:
    return data.episodes(split, 0, 0, tasks, SPEC)


def amplitudes(task: Task) -> np.ndarray:
    """y = A sin x by least squares."""
    s, y = task.query.x[..., 0].double().sin().numpy(), task.query.y[..., 0].double().numpy()
    return (s * y).sum(1) / (s * s).sum(1)


def shown(task: Task) -> np.ndarray:
    """The number that each task's one-hot shows; one and the same in all its rows."""
    codes = torch.cat([task.support.x, task.query.x], 1)[..., 1:]
    assert torch.equal(codes.sum(-1), torch.ones(codes.shape[:2]))
    numbers = codes.argmax(-1)
    assert (numbers == numbers[:, :1]).all()
    return numbers[:, 0].numpy()


def test_episodes_without_identity_are_those_of_before() -> None:
    """A digest taken before the option was there."""
    digest, data = hashlib.sha256(), Sinusoid((0.1, 5.0), (0.0, math.pi), (-5.0, 5.0), 0.1)
    for split in ("train", "val", "test"):
        for batch in data.episodes(split, 3, 7, range(4), EpisodeSpec(1, 5, 6)):
            for tensor in batch:
                digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == "782bc39166ce3fe831eeca468524fe12a119ae6033b8904d173d1b886e4fdd84"


def test_rows_are_x_and_a_one_hot() -> None:
    task = draw("train", tasks=range(3))
    assert DATA.input_shape() == (21,)
    assert [tuple(t.shape) for t in (*task.support, *task.query)] == [(3, 5, 21), (3, 5, 1), (3, 6, 21), (3, 6, 1)]
    assert {t.dtype for t in (*task.support, *task.query)} == {torch.float32}


def test_in_training_the_one_hot_tells_the_amplitude() -> None:
    """Each of the values is drawn as often as any other: 200 times, standard deviation 13.8."""
    task = draw("train")
    np.testing.assert_allclose(amplitudes(task), VALUES[shown(task)], atol=1e-4)
    counts = np.bincount(shown(task), minlength=COUNT)
    assert abs(counts - TASKS / COUNT).max() < 5 * math.sqrt(TASKS / COUNT * (1 - 1 / COUNT))


@pytest.mark.parametrize("split", ["val", "test"])
def test_at_test_the_amplitude_is_any_and_the_one_hot_has_nothing_to_do_with_it(split: Split) -> None:
    task = draw(split)
    a, numbers = amplitudes(task), shown(task)
    assert len(np.unique(a.round(5))) > 0.9 * TASKS
    assert abs(a.mean() - 2.05) < 5 * 3.9 / math.sqrt(12 * TASKS)
    assert set(numbers) == set(range(COUNT))
    assert abs(np.corrcoef(a, numbers)[0, 1]) < 5 / math.sqrt(TASKS)


def test_with_own_the_one_hot_is_of_the_nearest_amplitude() -> None:
    task = draw("test", dataclasses.replace(DATA, identity_at_test="own"))
    half_a_gap = (VALUES[1] - VALUES[0]) / 2
    assert abs(amplitudes(task) - VALUES[shown(task)]).max() <= half_a_gap + 1e-4
    np.testing.assert_allclose(task.query.y, draw("test").query.y, rtol=0, atol=0)


def test_an_episode_is_the_same_whichever_tasks_are_drawn_beside_it() -> None:
    whole, part = draw("test", tasks=range(12)), draw("test", tasks=range(5, 8))
    for all_of_it, some in zip(whole, part, strict=True):
        assert torch.equal(all_of_it.x[5:8], some.x)
        assert torch.equal(all_of_it.y[5:8], some.y)


def test_reference_inputs_show_every_identity() -> None:
    x = DATA.reference_inputs(40)
    assert x.shape == (40, 21)
    torch.testing.assert_close(x[:, 1:].sum(0), torch.full((20,), 2.0))


def test_facts_say_so() -> None:
    facts = DATA.facts()
    assert (facts["identity"], facts["identity_at_test"]) == (COUNT, "random")
    assert "identity" not in dataclasses.replace(DATA, identity=None).facts()


@pytest.mark.parametrize(("key", "value"), [("identity", 1), ("identity", 0), ("identity_at_test", "none")])
def test_what_makes_no_sense_is_refused_by_its_name(key: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        dataclasses.replace(DATA, **{key: value})
    assert caught.value.key == key
