"""Drawing several steps ahead changes no episode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarun.compute.random import bits_of_steps, random_bits
from metarun.data.prefetch import AHEAD
from metarun.data.sinusoid import Sinusoid
from metarun.types import EpisodeSpec, Task

SPEC = EpisodeSpec(1, 3, 4)
SETTINGS = {"plain": {}, "noise": {"noise": 0.3}, "identity": {"identity": 5}}


def sinusoid(**settings: float) -> Sinusoid:
    return Sinusoid(**{"amplitude": (0.1, 5.0), "phase": (0.0, 3.1), "x_range": (-5.0, 5.0), "noise": 0.0, **settings})


def equal(a: Task, b: Task) -> bool:
    pairs = zip((*a.support, *a.query), (*b.support, *b.query), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("words", [1, 4, 23])
def test_the_words_of_several_steps_are_those_of_each(words: int) -> None:
    steps, tasks = range(7, 12), range(2, 5)
    each = np.concatenate([random_bits("val", 3, step, tasks, words) for step in steps])
    assert np.array_equal(bits_of_steps("val", 3, steps, tasks, words), each)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_episodes_drawn_ahead_are_those_drawn_one_by_one(settings: dict[str, float]) -> None:
    training = sinusoid(**settings)
    for step in range(3, 3 + 2 * AHEAD + 2):
        ahead = training.episodes("train", 1, step, range(5), SPEC)
        assert equal(ahead, sinusoid(**settings).episodes("train", 1, step, range(5), SPEC)), step
    assert len(training._prefetcher.steps) == AHEAD


def test_another_split_seed_size_or_step_in_between_changes_no_episode() -> None:
    training = sinusoid()
    asked = [("train", 1, s, range(5), SPEC) for s in range(4)]
    asked += [("val", 0, 0, range(5), SPEC), ("train", 2, 4, range(5), SPEC), ("train", 1, 4, range(6), SPEC)]
    asked += [("train", 1, 4, range(5), SPEC), ("train", 1, 2, range(5), SPEC), ("train", 1, 2, range(5, 7), SPEC)]
    for key in asked:
        assert equal(training.episodes(*key), sinusoid().episodes(*key)), key
