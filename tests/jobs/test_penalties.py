"""Penalties of real runs: what is logged, what stands in the summary, and what the console prints at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import metarun
from metarun.algorithms.objective import Regularization, Schedule, Term
from metarun.jobs.summary import describe_sparsity
from metarun.regularizers.l1 import L1
from metarun.storage.loggers.tables import sparsity_lines


def term(penalty: Any, weight: float = 0.3, where: str = "outer", name: str = "p", **schedule: Any) -> Term:
    return Term(name, penalty, Schedule(weight, **schedule), where)


TINY = ["model.hidden=[6]", "train.tasks=4", "train.log_every=2", "train.eval_every=6", "train.checkpoint_every=6"]
TINY += ["val.tasks=2", "test.tasks=2", "test.steps=1", "device.compile=false", "device.threads=1", "report=false"]
TERMS = [
    "algo.inner_steps=2",
    "reg=[l1,prox_l2]",
    "reg.l1.weight=0.01",
    "reg.l1.schedule=linear",
    "reg.prox_l2.learned=true",
]


def started(folder: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
    config = metarun.compose([*TINY, *overrides])
    config.resume = str(folder) if resume else None
    return metarun.run(config, folder).summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with two terms, one of them scheduled and proximal, the other inner and learned."""
    folder = tmp_path_factory.mktemp("penalties") / "run"
    return folder, started(folder, *TERMS, "train.steps=12")


def test_a_run_logs_and_sums_up_its_penalties(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = whole
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    l1, prox = summary["regularization"]
    assert (l1["name"], l1["class"], l1["weight"], l1["where"], l1["schedule"]) == ("l1", "L1", 0.01, "outer", "linear")
    assert (l1["final_weight"], l1["method"], prox["method"], prox["final_weight"]) == (0.0, "prox", None, None)
    assert l1["value"] == {"outer": last["penalty/l1"]}
    assert prox["share"] == {"inner": last["penalty_share/prox_l2"]}
    assert last["penalty_weight/l1"] == pytest.approx(0.01 / 12)
    assert last["penalty_factor/prox_l2"] != 1
    found = summary["sparsity"]
    assert found["threshold"] == 1e-3
    assert found["penalised"]["parameters"] == 12
    assert found["total"]["parameters"] == 6 + 6 + 6 + 1
    assert set(found["layers"]) == {"block0", "head"}


def test_a_resumed_run_logs_the_same(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    started(tmp_path / "parts", *TERMS, "train.steps=12", "train.max_minutes=1e-9")  # stops after the first step
    resumed = started(tmp_path / "parts", *TERMS, "train.steps=12", resume=True)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert resumed["regularization"] == whole[1]["regularization"]
    assert resumed["sparsity"] == whole[1]["sparsity"]


def test_a_run_without_measures_or_penalties_says_so(tmp_path: Path) -> None:
    off = started(tmp_path / "off", *TERMS, "train.steps=2", "diagnostics=off")
    assert off["regularization"][0]["value"] == {"outer": None}
    none = started(tmp_path / "none", "train.steps=2")
    assert none["regularization"] == []
    assert none["sparsity"]["penalised"] is None
    assert sparsity_lines(none["sparsity"]) == []


def test_the_end_says_how_many_penalised_weights_are_zero() -> None:
    regularization = Regularization((term(L1()),))
    params = {"block0.weight": torch.tensor([[0.0, 1e-4, 1.0, 0.0]]), "block0.shift": torch.zeros(1)}
    found = describe_sparsity(params, regularization)
    assert sparsity_lines(found) == ["zeros: 50.00 % of 4 penalised weights; 75.00 % are at most 0.001"]
    inner = Regularization((term(L1(), where="inner"),))
    assert describe_sparsity(params, inner)["penalised"] is None
