"""The result of a test: what stands beside the mean of an error measure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import metarun
from metarun.jobs.summary import describe_curve, describe_errors
from metarun.report.statistics.heavy_tails import median_interval
from metarun.training.evaluation import Evaluation

CHECKPOINT = Path(__file__).parents[2] / "docs/checkpoints/sinusoid_maml"


def evaluation(scores: Tensor, higher_is_better: bool = False) -> Evaluation:
    """Of scores [R, T]; the last row is the result."""
    return Evaluation(tuple(range(len(scores))), scores, scores, len(scores) - 1, higher_is_better, "")


def test_a_task_failed_that_is_worse_than_before_or_not_finite() -> None:
    inf, nan = math.inf, math.nan
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, inf, 2.0], [0.5, 1.0, 1.5, nan, inf, 1.0]])
    found = describe_errors(evaluation(scores), 1)
    assert (found["failed"], found["not_finite"], found["heavy"]) == (3, 2, True)
    assert describe_errors(evaluation(scores), 0)["failed"] == 1
    rows = describe_curve(evaluation(scores))
    assert [row["median"] for row in rows] == [1.0, 1.25]
    assert "median" not in describe_curve(evaluation(scores, higher_is_better=True))[0]


@pytest.mark.parametrize("shots", [5, 10])
def test_the_median_of_600_tasks_holds_that_of_many_and_the_mean_does_not(shots: int, tmp_path: Path) -> None:
    """The shipped learner on 6 000 fresh tasks, of which 500 samples of 600 are drawn with replacement: the median's
    interval holds the median of all in 95 %, the normal interval of the mean holds their mean in less than 93 %."""
    settings = ["job=evaluate", f"run={CHECKPOINT}", f"data.shots={shots}", "test.tasks=6000", "report=false"]
    run = metarun.run(metarun.compose(settings), tmp_path / "run")
    stored = json.loads((run.folder / "test.json").read_text())
    errors = np.array([math.inf if e is None else e for e in stored["scores"][-1]])
    assert stored["result"]["headline"] == run.summary["headline"] == "median"
    assert stored["result"]["errors"]["median"] == np.median(errors)
    rng, samples = np.random.default_rng(0), 500
    drawn = [rng.choice(errors, 600) for _ in range(samples)]
    held = np.mean([i.low <= np.median(errors) <= i.high for i in map(median_interval, drawn)])
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / samples) <= held <= 0.985
    with np.errstate(invalid="ignore"):
        normal = [abs(x.mean() - errors.mean()) <= 1.96 * x.std(ddof=1) / math.sqrt(600) for x in drawn]
    assert np.mean(normal) < 0.93


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["algo=imaml", "algo.cg_damping=0", "algo.curvature=hessian"], None),
        (["algo=imaml", "algo.cg_damping=0.5", "algo.curvature=hessian"], "implicit gradient damped by 0.5"),
        (
            ["algo=imaml", "algo.cg_damping=0", "algo.curvature=gauss_newton", "algo.linear_solver=neumann"],
            "implicit gradient by the Gauss-Newton matrix, by a Neumann series",
        ),
        (["algo=fomaml"], "first-order meta-gradient"),
        (["algo=maml"], None),
    ],
)
def test_the_result_line_says_what_a_meta_gradient_leaves_out(
    settings: list[str], expected: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["train.steps=1", "val.tasks=2", "test.tasks=2", "device.compile=off", "report=false"]
    gradient = ["algo.inner_solver=gradient"] if settings[0] == "algo=imaml" else []
    result = metarun.run(metarun.compose([*settings, *gradient, *short]), tmp_path / "run")
    assert result.summary["approximation"] == expected
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{settings[0][5:]} ({expected}) on sinusoid" in shown if expected else "(implicit" not in shown
