"""Numbers at their limits: a step leaves finite meta-parameters, or is refused and leaves them as they were."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from image_files import png
from runs import TINY

import metarun
from metarun import catalogue
from metarun.errors import NonFinite
from metarun.experiment import Experiment, assemble
from metarun.metagradient import batched_meta_gradient
from metarun.session import Follower
from metarun.trainer import outer_step
from metarun.types import Batch, Task

IMAGES = ["data=folder", "data.image_size=16", "data.ways=3", "data.shots=1", "data.queries=1", "data.test_queries=1"]
IMAGES += ["model.filters=4"]
SCALES = (0.0, 1e-20, *(pytest.param(s, marks=pytest.mark.long) for s in (1e-10, 1e10)), 1e20)


class OneBad:
    """A data set in which one number of one task is not finite."""

    def __init__(self, data: object, value: float) -> None:
        self.data, self.value = data, value

    def episodes(self, *arguments: object) -> Task:
        support, query = self.data.episodes(*arguments)  # type: ignore[attr-defined]
        x = support.x.clone()
        x[1].view(-1)[0] = self.value
        return Task(Batch(x, support.y), query)

    def __getattr__(self, name: str) -> object:
        return getattr(self.data, name)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images a class, all of them of the same grey: no variance anywhere, all logits equal."""
    place = tmp_path_factory.mktemp("flat")
    for label in range(15):
        (place / f"class{label:02d}").mkdir()
        for number in range(2):
            (place / f"class{label:02d}/{number}.png").write_bytes(png(np.full((16, 16, 3), 90, np.uint8)))
    return place


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def built(algo: str, flat: Path, *more: str) -> Experiment:
    images = [*IMAGES, f"data.root={flat}"] if algo in ("protonet", "matchingnet") or "images" in more else []
    return assemble(
        metarun.compose([f"algo={algo}", *TINY, *images, *(m for m in more if m not in ("images", "default"))])
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("where", ["images", "default"])
@pytest.mark.parametrize("algo", catalogue.options("algo"))
def test_weights_of_any_size_stay_finite_or_the_step_is_refused(
    algo: str, where: str, scale: float, flat: Path
) -> None:
    trainer = built(algo, flat, where, *(["algo.train_shots=1"] if algo == "reptile" else [])).trainer()
    state = trainer.start()
    for value in state.params.values():
        value.mul_(scale)
    before = {name: value.clone() for name, value in state.params.items()}
    try:
        outer_step(trainer, state, batched_meta_gradient(trainer), Follower())
    except NonFinite:
        assert scale > 1
        assert all(value.equal(before[name]) for name, value in state.params.items())
    assert all(value.isfinite().all() for value in state.params.values())


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.long), 1e38])
@pytest.mark.parametrize("algo", catalogue.options("algo"))
def test_a_bad_number_in_the_data_is_refused_with_its_task(algo: str, value: float, flat: Path) -> None:
    trainer = built(algo, flat, *(["algo.train_shots=1"] if algo == "reptile" else [])).trainer()
    trainer = dataclasses.replace(trainer, dataset=OneBad(trainer.dataset, value))
    state = trainer.start()
    before = {name: value.clone() for name, value in state.params.items()}
    if value == 1e38:  # normalisation may take it: then all is finite
        with contextlib.suppress(NonFinite):
            outer_step(trainer, state, batched_meta_gradient(trainer), Follower())
    else:
        with pytest.raises(NonFinite, match="at step 0, task 1"):
            outer_step(trainer, state, batched_meta_gradient(trainer), Follower())
        assert all(value.equal(before[name]) for name, value in state.params.items())
    assert all(value.isfinite().all() for value in state.params.values())
