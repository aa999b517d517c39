"""Numbers at their limits: a step leaves finite meta-parameters, or is refused and leaves them as they were."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.image_files import png
from helpers.runs import TINY

import metarun
from metarun.algorithms import imaml
from metarun.config import catalogue
from metarun.errors import NonFinite
from metarun.training.experiment import Experiment, assemble
from metarun.training.loop import outer_step, train
from metarun.training.meta_gradient import build_meta_gradient
from metarun.training.recorder import SilentObserver
from metarun.training.run import State
from metarun.types import Batch, Params, Task

IMAGES = ["data=folder", "data.image_size=16", "data.ways=3", "data.shots=1", "data.queries=1", "data.test_queries=1"]
IMAGES += ["model.filters=4", "device.chunk_size=null"]
SCALES = (0.0, *(pytest.param(s, marks=pytest.mark.long) for s in (1e-20, 1e-10, 1e10)), 1e20)


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
    """Two images a class, all but one of the same grey, since data of images of one colour are refused: no
    variance in most episodes, all logits equal."""
    place = tmp_path_factory.mktemp("flat")
    for label in range(15):
        (place / f"class{label:02d}").mkdir()
        for number in range(2):
            (place / f"class{label:02d}/{number}.png").write_bytes(png(np.full((16, 16, 3), 90, np.uint8)))
    pixels = np.full((16, 16, 3), 90, np.uint8)
    pixels[:8] = 200
    (place / "class14/1.png").write_bytes(png(pixels))
    return place


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def built(algo: str, flat: Path, *more: str) -> Experiment:
    of_classes = algo not in catalogue.list_algorithms("regression")
    acting = algo in catalogue.list_algorithms("control")
    images = [*IMAGES, f"data.root={flat}"] if (of_classes and not acting) or "images" in more else []
    robot = ["data=point_robot", "data.horizon=3", "algo.batch=4"] if acting else []
    more = tuple(m for m in more if m not in ("images", "default"))
    return assemble(metarun.compose([f"algo={algo}", *TINY, *images, *robot, *more]))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("algo", "where"),
    [
        *((algo, "default") for algo in catalogue.list_options("algo")),
        *(
            pytest.param(algo, "images", marks=[] if algo in ("maml", "protonet") else [pytest.mark.long])
            for algo in catalogue.list_algorithms("classification")
        ),
    ],
)
def test_weights_of_any_size_stay_finite_or_the_step_is_refused(
    algo: str, where: str, scale: float, flat: Path
) -> None:
    trainer = built(algo, flat, where, *(["algo.train_shots=1"] if algo == "reptile" else [])).trainer()
    state = trainer.start()
    for value in state.params.values():
        value.mul_(scale)
    before = {name: value.clone() for name, value in state.params.items()}
    try:
        outer_step(trainer, state, build_meta_gradient(trainer), SilentObserver())
    except NonFinite:
        assert scale > 1
        assert all(value.equal(before[name]) for name, value in state.params.items())
    assert all(value.isfinite().all() for value in state.params.values())


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.long), 1e38])
@pytest.mark.parametrize(
    "algo", [a for a in catalogue.list_options("algo") if a not in catalogue.list_algorithms("control")]
)
def test_a_bad_number_in_the_data_is_refused_with_its_task(algo: str, value: float, flat: Path) -> None:
    trainer = built(algo, flat, *(["algo.train_shots=1"] if algo == "reptile" else [])).trainer()
    trainer = dataclasses.replace(trainer, dataset=OneBad(trainer.dataset, value))
    state = trainer.start()
    before = {name: value.clone() for name, value in state.params.items()}
    if value == 1e38:  # normalisation may take it: then all is finite
        with contextlib.suppress(NonFinite):
            outer_step(trainer, state, build_meta_gradient(trainer), SilentObserver())
    else:
        with pytest.raises(NonFinite, match="at step 0, task 1"):
            outer_step(trainer, state, build_meta_gradient(trainer), SilentObserver())
        assert all(value.equal(before[name]) for name, value in state.params.items())
    assert all(value.isfinite().all() for value in state.params.values())


PARTS = {"hessian": "gradient_and_hvp", "solver": "conjugate_gradient"}


class Solved:
    """iMAML's Hessian-vector products, or the solution of its system, with a bad number while `bad` is on."""

    def __init__(self, part: str, value: float, patch: pytest.MonkeyPatch) -> None:
        self.value, self.bad = value, False
        self.real = getattr(imaml, PARTS[part])
        patch.setattr(imaml, PARTS[part], getattr(self, part))

    def hessian(self, *arguments: Any) -> Any:
        slope, product = self.real(*arguments)
        return slope, lambda v: self.spoilt(product(v))

    def solver(self, *arguments: Any) -> Any:
        solution = self.real(*arguments)
        return solution._replace(x=self.spoilt(solution.x))

    def spoilt(self, vector: Params) -> Params:
        first = next(iter(vector))
        return vector | ({first: torch.full_like(vector[first], self.value)} if self.bad else {})


class Spoiling:
    """A data set that turns a bad number on for the training steps of its own."""

    def __init__(self, data: object, steps: tuple[int, ...], solved: Solved) -> None:
        self.data, self.steps, self.solved = data, steps, solved

    def episodes(self, split: str, seed: int, step: int, *rest: object) -> Task:
        self.solved.bad = split == "train" and step in self.steps
        return self.data.episodes(split, seed, step, *rest)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self.data, name)


def spoilt_run(policy: str, part: str, value: float, more: str, patch: pytest.MonkeyPatch) -> tuple[State, str]:
    """Ten steps of iMAML of which step 7 is bad; the state in the end, and why it came."""
    solved = Solved(part, value, patch)
    settings = ["algo.inner_steps=2", "algo.test_inner_steps=2", "train.steps=10", f"train.on_nonfinite={policy}", more]
    trainer = assemble(metarun.compose(["algo=imaml", "algo.curvature=hessian", *TINY, *settings])).trainer()
    trainer = dataclasses.replace(trainer, dataset=Spoiling(trainer.dataset, (7,), solved))
    state = trainer.start()
    try:
        return state, train(trainer, state, SilentObserver())
    except NonFinite as error:
        return state, str(error)


@pytest.mark.parametrize(
    ("part", "value", "cg_steps"),
    [(part, float(value), steps) for part in PARTS for value, steps in (("nan", 5), ("inf", 1))]
    + [("hessian", float("nan"), 1), pytest.param("hessian", float("-inf"), 5, marks=pytest.mark.long)],
)
def test_a_bad_number_in_imamls_linear_system_is_refused_under_every_policy(
    part: str, value: float, cg_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stop the state is that of seven steps; with skip and rewind ten are done and one was left out."""
    more = f"algo.cg_steps={cg_steps}"
    stopped, why = spoilt_run("stop", part, value, more, monkeypatch)
    assert why.startswith("non-finite loss or meta-gradient at step 7, task 0, seed 0 (and 1 more of 2 tasks)")
    assert stopped.step == 7
    ends = [stopped]
    for policy in ("skip", "rewind"):
        monkeypatch.undo()
        state, why = spoilt_run(policy, part, value, more, monkeypatch)
        assert (why, state.step) == ("completed", 10)
        assert (state.rewinding.total if state.rewinding else 0) == (policy == "rewind")
        ends.append(state)
    assert all(v.isfinite().all() for state in ends for v in state.params.values())
    assert len({float(next(iter(state.params.values())).sum()) for state in ends}) == 3
