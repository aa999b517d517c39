"""Alarms of real runs, and that an interruption does not change them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import metarun
from metarun.types import Batch, EpisodeSpec, Task

TINY = ["train.tasks=4", "train.log_every=2", "train.eval_every=10", "train.checkpoint_every=10", "val.tasks=4"]
TINY += ["test.tasks=2", "test.steps=1", "device.compile=false", "device.threads=1", "report=false"]
UNSTABLE = ["algo.inner_lr=1", "diagnostics.alarms.patience=3", "diagnostics.alarms.window=8"]


def started(folder: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
    config = metarun.compose([*TINY, *overrides])
    config.resume = str(folder) if resume else None
    return metarun.run(config, folder).summary


def test_a_resumed_run_has_the_alarms_of_an_uninterrupted_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = started(tmp_path / "whole", *UNSTABLE, "train.steps=40")["alarms"]
    assert {"unstable_inner_rate", "no_adaptation"} <= set(whole)
    assert whole["unstable_inner_rate"]["first"] < 10 < whole["no_adaptation"]["first"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        part = started(tmp_path / "parts", *UNSTABLE, "train.steps=10")["alarms"]
        resumed = started(tmp_path / "parts", *UNSTABLE, "train.steps=40", resume=True)["alarms"]
    assert part["unstable_inner_rate"]["count"] < resumed["unstable_inner_rate"]["count"]
    assert resumed == whole
    told = [line.split()[1] for line in caplog.messages if line.startswith("alarm: ")]
    assert sorted(told) == sorted(whole)
    assert json.loads((tmp_path / "parts/summary.json").read_text())["alarms"] == whole


def test_a_run_that_stops_for_a_nonfinite_loss_has_diverged(tmp_path: Path) -> None:
    summary = started(tmp_path / "run", "algo.inner_lr=1e30", "train.steps=10")
    assert summary["status"] == "diverged"
    assert summary["alarms"]["diverged"]["count"] == 1
    assert "non-finite loss or meta-gradient at step 0" in summary["alarms"]["diverged"]["message"]


def test_a_healthy_run_has_no_alarms_and_an_evaluation_has_none_to_raise(tmp_path: Path) -> None:
    assert started(tmp_path / "run", "train.steps=20", "train.tasks=25")["alarms"] == {}
    assert started(tmp_path / "off", *UNSTABLE, "train.steps=20", "diagnostics=off")["alarms"] == {}
    config = metarun.compose(["job=evaluate", f"run={tmp_path / 'run'}", "report=false"])
    evaluated = metarun.run(config, tmp_path / "again").summary
    assert "alarms" not in evaluated


class Flat:
    """Targets of a function whose inputs are all 1."""

    kind = "regression"

    def episodes(self, split: str, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = [torch.Generator().manual_seed(1000 * seed + 100 * step + task) for task in tasks]
        rows = spec.shots + spec.queries
        y = torch.stack([torch.randn(rows, 1, generator=generator) for generator in drawn])
        x = torch.ones_like(y)
        return Task(Batch(x[:, : spec.shots], y[:, : spec.shots]), Batch(x[:, spec.shots :], y[:, spec.shots :]))


def test_inputs_that_are_all_equal_are_an_alarm_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = metarun.compose(["data=own", *TINY, "train.steps=4"])
    summary = metarun.run(config, tmp_path / "run", dataset=Flat()).summary
    assert summary["alarms"]["constant_inputs"]["first"] == 0
    assert "alarm: constant_inputs at step 0: all inputs are equal" in capsys.readouterr().out
    off = metarun.run(
        metarun.compose(["data=own", *TINY, "diagnostics=off", "train.steps=2"]), tmp_path / "off", dataset=Flat()
    )
    assert "constant_inputs" not in off.summary["alarms"]
