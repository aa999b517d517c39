"""The bound by information of trained runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers.analyses import QUICK, Run, analyse, make_context, refusal, run_in_context, train

from metarun.analyses.information_bound import InformationBound
from metarun.data.pool import TaskPool
from metarun.diagnostics.membership import bound_gap


def test_each_draw_trains_on_one_of_every_pair(tmp_path: Path) -> None:
    context = make_context(tmp_path, "algo=maml", "data=sinusoid", "data.queries=3", "data.test_queries=3")
    rows, summary = run_in_context(context, InformationBound(3, 4, 0.5))
    assert [row["draw"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        experiment = context.assemble({"train.pool": 3, "train.pool_choice": row["draw"]})
        pool = experiment.dataset
        assert isinstance(pool, TaskPool)
        candidates, tasks = pool.candidates(experiment.train_spec, 6), pool.tasks(experiment.train_spec)
        for i, bit in enumerate(row["chosen"]):
            assert torch.equal(tasks.query.y[i], candidates.query.y[i + 3 * bit])
        failed = torch.tensor(row["failed"], dtype=torch.float64)
        assert failed.shape == (2, 3, 3)
        own = sum(float(failed[bit, i].mean()) for i, bit in enumerate(row["chosen"])) / 3
        assert row["own"] == pytest.approx(own)
        assert row["other"] == pytest.approx(2 * float(failed.mean()) - own)
    bound = bound_gap(torch.tensor([r["failed"] for r in rows]), torch.tensor([r["chosen"] for r in rows]))
    assert (summary["bound"], summary["plugin_bound"]) == (bound.corrected, bound.plugin)
    assert summary["message"].startswith("3 training tasks: ")


def test_a_query_has_failed_above_the_threshold(tmp_path: Path) -> None:
    context = make_context(tmp_path, "algo=maml", "data=sinusoid", "data.queries=3", "data.test_queries=3")
    for threshold, expected in ((1e-12, 1.0), (1e12, 0.0)):
        rows, _ = run_in_context(context, InformationBound(2, 4, threshold))
        assert {row["own"] for row in rows} == {expected}
        (tmp_path / "results.jsonl").unlink()


@pytest.mark.parametrize(
    ("settings", "analysis", "expected"),
    [
        ([], InformationBound(3, 4, None), "analysis.threshold=None: must be a squared error .*this is a regression"),
        (["data.shots=3", "algo=maml"], None, "threshold=-1"),
    ],
)
def test_wrong_settings(settings: list[str], analysis: InformationBound | None, expected: str, tmp_path: Path) -> None:
    context = make_context(tmp_path, "data=sinusoid", *settings)
    message = refusal(lambda: run_in_context(context, analysis or InformationBound(3, 4, -1)))
    assert re.search(expected, message)


def test_a_classifier_fails_where_it_takes_another_class(folder: Path, photographs: list[str]) -> None:
    run: Run = train(folder / "run", "algo=protonet", *photographs)
    summary, rows, _ = analyse(run, "information_bound", "analysis.pool=2", "analysis.draws=4", *QUICK)
    assert len(rows) == 4
    assert 0 <= summary["bound"] <= 1.18
    assert rows[0]["failed"][0][0].__class__ is list
