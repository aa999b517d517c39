"""Penalties in the report: terms, shares and zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers.report_folders import train_record, write_run

from metarun.algorithms.objective import Regularization, Schedule, Term
from metarun.jobs.summary import describe_penalties, describe_sparsity
from metarun.regularizers.l1 import L1
from metarun.regularizers.l2 import L2
from metarun.report.page.run import run_sections
from metarun.report.read.runs import read_run
from metarun.report.tables.penalties import format_penalties, format_zeros, penalty_tables
from metarun.storage.text import NOTHING


def term(penalty: Any, weight: float = 0.3, where: str = "outer", name: str = "p", **schedule: Any) -> Term:
    return Term(name, penalty, Schedule(weight, **schedule), where)


def test_the_report_shows_terms_shares_and_zeros(tmp_path: Path) -> None:
    regularization = Regularization((term(L1(), 0.01, "both", "l1"), term(L2(), name="l2", shape="linear", steps=9)))
    logged = {"penalty/l1.inner": 0.5, "penalty/l1.outer": 0.25, "penalty_share/l1.inner": 0.125, "penalty/l2": 3.0}
    params = {"block0.weight": torch.tensor([[0.0, 1e-4, 1.0, 0.0]]), "block0.shift": torch.zeros(1)}
    lines = [train_record(step, **{k: v / step for k, v in logged.items()}) for step in (1, 2)]
    summary = {
        "regularization": describe_penalties(regularization, lines),
        "sparsity": describe_sparsity(params, regularization),
    }
    run = read_run(write_run(tmp_path / "run", summary, lines=lines))
    assert format_penalties(run) == "l1: weight 0.01, both, prox; l2: weight 0.3 to 0, outer"
    assert format_zeros(run) == ("50.00 %", "of 4 penalised weights; 60.00 % of all weights")
    terms, layers = penalty_tables(run)
    assert terms.rows[0] == (
        "l1",
        "L1",
        "0.01",
        "both",
        "constant",
        "prox",
        "inner 0.25, outer 0.125",
        f"inner 0.0625, outer {NOTHING}",
    )
    assert layers.rows[-1] == ("all", "5", "60.00 %", "80.00 %", "1", "0 of 1")
    sections = {s.title: s for s in run_sections(run)}
    assert [d.name for d in sections["Penalties"].drawings] == ["penalties"]
    assert not any("penalty" in d.alt for d in sections["Layers"].drawings)


def test_a_run_without_penalties_has_no_section_on_them_and_a_damaged_summary_costs_nothing_else(
    tmp_path: Path,
) -> None:
    plain = read_run(write_run(tmp_path / "plain"))
    assert "Penalties" not in {s.title for s in run_sections(plain)}
    for at, broken in enumerate([{"regularization": 3, "sparsity": 4}, {"regularization": [{}, 2], "sparsity": {}}]):
        run = read_run(write_run(tmp_path / str(at), broken))
        assert not any("could not be made" in s.missing for s in run_sections(run))
