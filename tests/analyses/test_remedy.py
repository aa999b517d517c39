"""Remedies of alarms: which changes are tried, how an outcome is judged, and a run whose inner rate is too large."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.analyses import Run, analyse, refusal, train

import metarun
from metarun.analyses.remedy import CHANGES, CLIP, OUTCOMES, UP, WHOLE, Change, Trained, describe_change, list_values
from metarun.diagnostics.alarms import RULES
from metarun.storage.run_folder import RunFolder

TRIED_BY_NO_ONE = {"data.shots"}  # another task, whose metric does not compare
SHORT = ["train.steps=20", "train.tasks=4", "train.log_every=2", "train.eval_every=20", "val.tasks=4", "test.tasks=8"]
SHORT += ["data=sinusoid", "data.test_queries=8", "test.steps=1", "algo.test_inner_steps=1", "model.hidden=[8]"]
SHORT += ["device.compile=false", "device.threads=1", "report=false"]
SOON = ["diagnostics.alarms.patience=2", "diagnostics.alarms.window=4"]


@pytest.mark.parametrize("name", sorted({rule.name for rule in RULES}))
def test_the_changes_of_an_alarm_are_those_of_its_advice(name: str) -> None:
    advice = " ".join(rule.advice for rule in RULES if rule.name == name)
    advised = set(re.findall(r"\b(?:algo|optim|train|data)\.\w+", advice)) - TRIED_BY_NO_ONE
    tried = {change.key for change in CHANGES[name]}
    assert advised <= tried
    assert tried - advised <= {"train.pool", "data.train_classes"}  # "train on more tasks or classes"


def values(change: Change, *settings: str, factors: tuple[float, ...] = (3.0, 30.0)) -> list[Any]:
    return [value for _, value in list_values(metarun.compose(list(settings)), change, factors, clip=2.5)]


def test_a_setting_changes_by_each_factor_as_far_as_the_run_has_it() -> None:
    assert values(Change("algo.inner_lr", "down"), "algo.inner_lr=1") == [0.3333, 0.03333]
    assert values(Change("algo.inner_lr", UP), "algo.inner_lr=0.01") == [0.03, 0.3]
    assert values(Change("algo.inner_lr", UP), "algo=protonet", "data=omniglot") == []
    assert values(Change("algo.inner_steps", "down"), "algo.inner_steps=10") == [3, 1]
    assert values(Change("algo.inner_steps", "down"), "algo.inner_steps=1") == []
    assert values(Change("train.tasks", UP), "train.tasks=5") == [15]  # a step costs as many times more
    assert values(Change("train.pool", UP), "train.pool=4") == [12, 120]
    assert values(Change("train.pool", UP)) == []
    assert values(Change("algo.cg_damping", UP), "algo=imaml") == [1.0]
    assert values(Change("algo.curvature", "gauss_newton"), "algo=imaml") == []
    assert values(Change("algo.curvature", "gauss_newton"), "algo=imaml", "algo.curvature=hessian") == ["gauss_newton"]
    assert values(Change("algo.curvature", "gauss_newton"), "algo=maml") == []
    assert values(Change("optim.clip", CLIP)) == values(Change("optim.clip", CLIP), "optim.clip=3") == [2.5]
    assert values(Change("optim.clip", CLIP), "optim.clip=2") == []


def test_whole_numbers_stay_whole() -> None:
    config = metarun.compose(["algo=imaml", "train.pool=4"])
    whole = {change.key for changes in CHANGES.values() for change in changes if _is_whole(config, change.key)}
    assert whole == set(WHOLE)


def _is_whole(config: Any, key: str) -> bool:
    group, name = key.split(".")
    node = getattr(config, group)
    value = node.get(name) if isinstance(node, dict) else getattr(node, name)
    return isinstance(value, int) and not isinstance(value, bool)


def trained(scores: list[float] | None, *alarms: str) -> Trained:
    found = None if scores is None else torch.tensor(scores, dtype=torch.float64)
    return Trained({name: {"count": 2, "first": 1} for name in alarms}, found)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (trained([4, 5, 6, 7], "a"), trained([1, 2.1, 3, 3.9]), "helps"),
        (trained([4, 5, 6, 7], "a"), trained([5, 4, 7, 6.1]), "gone"),
        (trained([4, 5, 6, 7], "a"), trained([7, 8.1, 9, 9.9]), "worse"),
        (trained([4, 5, 6, 7], "a"), trained([5, 4, 7, 6.1], "b"), "others"),
        (trained([4, 5, 6, 7], "a"), trained([1, 2.1, 3, 3.9], "b"), "helps"),  # the metric decides
        (trained([4, 5, 6, 7], "a", "b"), trained([1, 2.1, 3, 3.9], "b"), "helps"),
        (trained([4, 5, 6, 7], "a"), trained([1, 2.1, 3, 3.9], "a"), "remains"),
        (trained([4, 5, 6, 7], "b"), trained([1, 2.1, 3, 3.9]), "not_seen"),
        (trained(None, "a"), trained([1, 2, 3, 4]), "helps"),
        (trained([1, 2, 3, 4], "a"), trained(None), "worse"),
        (trained(None, "a"), trained(None), "gone"),
        (trained([np.nan] * 4, "a"), trained([1, 2, 3, np.nan]), "gone"),  # 3 of 3: less than 1.96 roots of 3
        (trained([np.nan] * 5, "a"), trained([1, 2, 3, 4, np.nan]), "helps"),  # 4 of 4
        (trained([1, 2, 3, 4, np.nan], "a"), trained([np.nan] * 5), "worse"),
    ],
)
def test_the_outcome_of_a_change(before: Trained, after: Trained, outcome: str) -> None:
    assert outcome in OUTCOMES
    assert describe_change("a", before, after, higher_is_better=False)["outcome"] == outcome


def test_numbers_of_a_change_are_those_of_the_paired_scores() -> None:
    before, after = [0.1, 0.5, 0.3, 0.4], [0.2, 0.5, 0.6, 0.3]
    row = describe_change("a", trained(before, "a"), trained(after), higher_is_better=True)
    d = np.subtract(after, before)
    assert row["before"] == pytest.approx(0.325)
    assert row["difference"] == pytest.approx(0.075)
    assert row["half"] == pytest.approx(1.96 * d.std(ddof=1) / 2)
    assert (row["wins"], row["raised_before"], row["raised_after"], row["others"]) == (0.5, 2, 0, "")


@pytest.fixture(scope="module")
def unstable(folder: Path) -> Run:
    return train(folder / "unstable", "algo.inner_lr=1", *SHORT, *SOON)


def test_a_lower_inner_rate_ends_the_alarm_of_one_that_is_too_large(unstable: Run) -> None:
    _, folder = unstable
    summary, rows, results = analyse(unstable, "remedy", "analysis.factors=[100]", "analysis.tasks=40")
    at = {(row["alarm"], row["key"], row["value"]): row for row in rows}
    low = at["unstable_inner_rate", "algo.inner_lr", 0.01]
    assert low["raised_before"] > 0 == low["raised_after"]
    assert low["outcome"] == "helps"
    assert low["difference"] < -low["half"] < 0
    assert summary["alarms"]["unstable_inner_rate"] == {"change": "algo.inner_lr=0.01", "outcome": "helps"}
    assert "unstable_inner_rate: algo.inner_lr=0.01 helps; MSE" in summary["message"]
    # an alarm's changes are trained once, also where two alarms recommend the same
    names = {path.name for path in (results / "runs").iterdir()}
    assert names == {"unchanged", *(f"{row['key']}-{row['value']}" for row in rows)}
    # as long as the run, the unchanged training is the run again
    assert summary["train_steps"] == 20
    unchanged, own = (read_losses(path) for path in (results / "runs/unchanged", folder))
    assert unchanged == own


def read_losses(folder: Path) -> list[Any]:
    return [record["loss"] for record in RunFolder(folder).read_records() if record["kind"] == "train"]


def test_a_run_without_alarms_and_settings_alone_are_refused(folder: Path) -> None:
    healthy = train(folder / "healthy", *SHORT, "train.steps=4", "diagnostics=off")
    assert "raised no alarm" in refusal(lambda: analyse(healthy, "remedy"))
    alone = metarun.compose([*SHORT, "job=analyze", "analysis=remedy"])
    assert "needs a run with alarms" in refusal(lambda: metarun.run(alone, folder / "alone"))
    assert "must be above 1" in refusal(lambda: analyse(healthy, "remedy", "analysis.factors=[0.5]"))
