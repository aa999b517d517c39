"""Values that pass on the members of another one can be copied, as job=profile does."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from metarun.algorithms.simpleshot import Centred
from metarun.data.own import OwnDataset
from metarun.data.pool import TaskPool
from metarun.data.sinusoid import Sinusoid
from metarun.data.varying import VaryingShots
from metarun.models.conv4 import conv4
from metarun.types import EpisodeSpec

SINUSOIDS = Sinusoid((0.1, 5.0), (0.0, 3.0), (-5.0, 5.0), 0.0)


@pytest.mark.parametrize(
    ("value", "member"),
    [
        (Centred(conv4((1, 8, 8), None, 4, "population", "max", "mean", depth=2)), "features"),
        (OwnDataset(SINUSOIDS, EpisodeSpec(1, 5, 5)), "noise"),
        (TaskPool(SINUSOIDS, 3, 0, None), "noise"),
        (VaryingShots(SINUSOIDS, 1, 2), "noise"),
    ],
)
def test_a_copy_passes_on_the_same_members(value: Any, member: str) -> None:
    for copied in (copy.copy(value), copy.deepcopy(value)):
        assert str(getattr(copied, member)) == str(getattr(value, member))
