"""Every regularizer with every algorithm, wherever it can stand: its meta-gradient is right and it trains, or one line
says why not.

The rows are the YAML files of conf/algo and conf/reg, so that a new one of either is met here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainers import RecordingObserver
from PIL import Image

import metarun
from metarun.compute.linalg import axpy, dot
from metarun.config import catalogue
from metarun.config.components import component_class, locate
from metarun.config.schema import Config
from metarun.errors import UserError
from metarun.training.experiment import Experiment, assemble
from metarun.training.loop import train
from metarun.training.meta_gradient import MetaGradient, build_meta_gradient
from metarun.types import Params

ALGORITHMS = catalogue.list_options("algo")
REGULARIZERS = [name for name in catalogue.list_options("reg") if name != "none"]
SMALL = [
    "train.tasks=2",
    "train.steps=1",
    "device.precision=float64",
    "device.compile=false",
    "device.chunk_size=null",
    "recipe=absent",
    "val.tasks=2",
    "diagnostics=off",
]
EPISODES = ["data.ways=2", "data.shots=1", "data.queries=2", "data.test_queries=1", "data.image_size=8"]
IMAGES = (*EPISODES, "model.filters=2", "model.pool=stride", "model.norm=batch")
SINUSOIDS = ("data.shots=3", "data.queries=4", "model.hidden=[5,4]")
ROBOT = ("data=point_robot", "data.horizon=3", "data.train_goals=4", "model.hidden=[5,4]", "algo.batch=4")
MORE = {"information": ["reg.encoder=[block0]"]}
INNER = {
    **{algo: ["algo.inner_steps=2", "algo.test_inner_steps=2"] for algo in ("maml", "fomaml", "reptile")},
    "imaml": ["algo.inner_steps=2", "algo.test_inner_steps=2", "algo.cg_steps=2"],
    **{f"information-{algo}": ["algo.adapted=[block1,head]"] for algo in ("maml", "fomaml", "imaml")},
}
ALIKE = ("fomaml", "matchingnet", "mamlpp", "cnp", "cvae")
"""Algorithms that enter penalties by the same code as another one does."""

SAMPLE = ("group", "kl", "coherence", "information")
"""Of the pairs `make test` has these, one for each way in which a penalty enters."""

TRUE_GRADIENT = ("maml", "protonet", "matchingnet")
"""The algorithms whose meta-gradient is that of an objective, at any adapted weights."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in folders of classes, three of each split."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in range(3):
            (root / split / f"{split}{label}").mkdir(parents=True)
            for i in range(4):
                pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"{split}{label}" / f"{i}.png")
    return root


def pairs() -> Iterable[Any]:
    for algo in ALGORITHMS:
        for reg in REGULARIZERS:
            for where in ("inner", "outer"):
                sampled = reg in SAMPLE and algo not in ALIKE
                marks = [] if sampled else [pytest.mark.long]
                yield pytest.param(algo, reg, where, id=f"{algo}-{reg}-{where}", marks=marks)


EVERY_PAIR = pytest.mark.parametrize(("algo", "reg", "where"), list(pairs()))


@functools.cache
def composed(*overrides: str) -> Config:
    """Composing takes longer than a step, and few of the settings differ from pair to pair."""
    return metarun.compose(overrides)


def settings(algo: str, reg: str, where: str, data: tuple[str, ...], **changed: Any) -> Config:
    """The pair's, with these settings of the regularizer changed."""
    inner = [*INNER.get(algo, []), *INNER.get(f"{reg}-{algo}", [])]
    config = composed(*data, f"algo={algo}", *SMALL, *inner)
    node = composed(f"reg={reg}", *MORE.get(reg, [])).reg | {"where": where, "weight": 0.3} | changed
    return replace(config, reg=node, choices=config.choices | {"reg": reg})


def assembled(config: Config) -> Experiment | None:
    """The experiment, or None if it is refused as a user would be told: in one line that names what was chosen."""
    try:
        return assemble(config)
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    assert "reg" in line
    assert any(word in line for word in ("choose", "choices", "needs", "must"))
    return None


def found_at(experiment: Experiment, params: Params) -> MetaGradient:
    trainer = experiment.trainer()
    return build_meta_gradient(trainer)(params, trainer.tasks(0))


def away_from_zero(experiment: Experiment) -> Params:
    """The meta-parameters moved a little, since penalties may have kinks at zero."""
    generator = torch.Generator().manual_seed(0)
    start = experiment.trainer().start().params
    return {k: v + 0.1 * torch.randn(v.shape, generator=generator).to(v) for k, v in start.items()}


def experiments(algo: str, reg: str, where: str, pictures: Path, **changed: Any) -> Iterable[Experiment]:
    """The pair on each kind of data that the algorithm learns from, where it is not refused."""
    kinds = component_class(locate("algo", composed(f"algo={algo}").algo)).kinds
    data = {
        "classification": ("data=folder", f"data.root={pictures}", *IMAGES),
        "regression": SINUSOIDS,
        "control": ROBOT,
    }
    for kind in sorted(kinds, reverse=True):  # those of vectors first: they are the fastest
        experiment = assembled(settings(algo, reg, where, data[kind], **changed))
        if experiment is not None:
            yield experiment


@EVERY_PAIR
def test_a_pair_is_right_or_refused_in_one_line(algo: str, reg: str, where: str, pictures: Path) -> None:
    """Where the meta-gradient is that of an objective, it is compared with its differences; elsewhere it trains."""
    if algo not in TRUE_GRADIENT:
        for experiment in experiments(algo, reg, where, pictures):
            state = experiment.trainer().start()
            assert train(experiment.trainer(), state, RecordingObserver()) == "completed"
            assert all(v.isfinite().all() for v in state.params.values())
        return
    smooth = {"method": "subgradient"} if "method" in composed(f"reg={reg}").reg[reg] else {}
    for experiment in experiments(algo, reg, where, pictures, **smooth):
        compare_with_differences(experiment)


@pytest.mark.parametrize("reg", REGULARIZERS)
def test_every_regularizer_is_accepted_with_maml_somewhere(reg: str, pictures: Path) -> None:
    """A pair that is refused passes the test above, so that one which is always refused would not be noticed there."""
    assert any(True for where in ("inner", "outer") for _ in experiments("maml", reg, where, pictures))


def compare_with_differences(experiment: Experiment) -> None:
    """Of the mean loss and all penalties, central, along a random direction."""
    params, generator = away_from_zero(experiment), torch.Generator().manual_seed(1)
    along = {k: torch.randn(v.shape, generator=generator).to(v) for k, v in params.items()}
    ends = [objective(found_at(experiment, axpy(s * 1e-6, along, params))) for s in (1, -1)]
    found = found_at(experiment, params)
    slope = float(dot(found.mean, {k: along[k] for k in found.mean}))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


def objective(found: MetaGradient) -> float:
    return float(found.metrics["loss"].mean() + found.penalty)


@pytest.mark.parametrize(
    ("algo", "reg", "where", "changed", "line"),
    [
        ("protonet", "prox_l2", "inner", {}, "this algorithm has no inner loop"),
        ("protonet", "l1", "inner", {}, "this algorithm has no inner loop"),
        ("reptile", "prox_l2", "inner", {"learned": True}, "a learned weight needs a meta-gradient that sees"),
        ("fomaml", "kl", "outer", {}, "a penalty on phi - theta has no gradient"),
        ("maml", "prox_l2", "outer", {"learned": True}, "nothing opposes a learned factor's fall to 0"),
        ("maml", "l1", "outer", {"targets": ["haed"]}, "targets=haed: no tensor begins so; choices: block0"),
        ("maml", "entropy", "inner", {}, "reg.where=inner: this one has choices: outer"),
    ],
)
def test_what_means_nothing_is_refused(
    algo: str, reg: str, where: str, changed: dict[str, Any], line: str, pictures: Path
) -> None:
    """So that the others' passing means something."""
    config = settings(algo, reg, where, ("data=folder", f"data.root={pictures}", *IMAGES), **changed)
    with pytest.raises(UserError, match=re.escape(line)):
        assemble(config)
