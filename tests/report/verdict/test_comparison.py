"""The verdict on several runs, its intervals against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from helpers.report_folders import read_runs

from metarun.report.statistics.student import t_quantile
from metarun.report.verdict.comparison import difference_over_seeds, difference_over_tasks
from metarun.report.verdict.judge import judge
from metarun.report.verdict.sentence import APART, BETTER, SPREAD

A, B = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[2.0, 2.5, 4.5, 5.0]])


def test_the_interval_over_tasks_is_paired_and_wider_for_several_pairs() -> None:
    one, three = (difference_over_tasks(A, B, heavy=False, pairs=m) for m in (1, 3))
    d = (A - B)[0]
    error = d.std(ddof=1) / 2
    assert tuple(one) == pytest.approx((-1.0, -1.0 - 1.96 * error, -1.0 + 1.96 * error), rel=1e-4)
    assert three.high - three.estimate == pytest.approx(NormalDist().inv_cdf(1 - 0.025 / 3) * error, rel=1e-4)


def test_of_heavy_tails_the_median_of_the_differences_counts() -> None:
    x, y = np.arange(20.0)[None], np.arange(20.0)[None] + 1
    y[0, 0] = 1e9
    found = difference_over_tasks(x, y, heavy=True)
    assert tuple(found) == (-1.0, -1.0, -1.0)


def test_over_seeds_the_interval_is_welchs() -> None:
    a, b = np.array([[1.0], [2.0], [3.0]]), np.array([[4.0], [8.0]])
    found = difference_over_seeds(a, b)
    assert found is not None
    u, v = 1 / 3, 8 / 2
    df = (u + v) ** 2 / (u**2 / 2 + v**2 / 1)
    assert df == pytest.approx(1.1696, abs=1e-3)
    assert found.estimate == -4.0
    assert found.high - found.estimate == pytest.approx(t_quantile(0.975, df) * math.sqrt(u + v))
    assert difference_over_seeds(a, b[:1]) is None


def texts(folder: Path, *changes: dict) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for sentence in judge(read_runs(folder, *changes)):
        found.setdefault(sentence.question, []).append(sentence.text)
    return found


def test_the_better_learner_is_named_with_difference_interval_and_episodes(tmp_path: Path) -> None:
    low = {"algo": "x", "scores": [[0.1, 0.2, 0.3, 0.4]] * 4, "mean": 0.25, "choices.algo": "x"}
    found = texts(tmp_path, {"scores": [[1.1, 1.3, 1.3, 1.3]] * 4, "mean": 1.25}, low)[BETTER]
    best = "On sinusoid 10-shot x has the best result of 2: test MSE 0.25, mean over the same 4 test tasks."
    assert found[0] == best
    assert found[1] == "Better than maml by 1 (0.92 to 1.08); better on 100 % of the tasks, worse on 0 %."
    assert "Of a single seed they are for its weights" in found[2]


def test_groups_that_cannot_be_told_apart(tmp_path: Path) -> None:
    a, b = {"scores": [[1.0, 2.0, 3.0, 4.0]] * 4}, {"algo": "x", "scores": [[4.0, 2.0, 3.0, 1.5]] * 4}
    assert texts(tmp_path, a, b)[BETTER][1].startswith("Not told apart from x: the difference is ")


def test_seeds_have_their_spread_and_decide_with_welchs_interval(tmp_path: Path) -> None:
    changes = [{"seed": s, "mean": 1.0 + s, "scores": [[1.0 + s] * 4] * 4} for s in range(3)]
    changes += [{"algo": "x", "seed": s, "mean": 1.1 + s, "scores": [[1.1 + s] * 4] * 4} for s in range(3)]
    found = texts(tmp_path, *changes)
    assert found[SPREAD][0] == "maml on sinusoid 10-shot: 3 seeds, standard deviation 1, 1 to 3."
    assert found[BETTER][1].endswith("(Welch's t), so that other seeds may turn it round.")


def test_what_does_not_compare_is_one_sentence_for_each_reason(tmp_path: Path) -> None:
    untested = [{"algo": name, "mean": None, "status": "interrupted", "scores": None} for name in ("u", "v")]
    found = texts(tmp_path, {}, {"algo": "x"}, {"algo": "y", "episodes_sha256": "ff"}, *untested)[APART]
    assert found[0] == "sinusoid 10-shot: y: tested on other episodes than the rest."
    assert found[1] == "sinusoid 10-shot: u, v: not tested (status: interrupted)."


def test_runs_of_different_length_are_named(tmp_path: Path) -> None:
    found = texts(tmp_path, {}, {"algo": "x", "steps_done": 400})[BETTER]
    assert "different numbers of outer steps: maml 40, x 400" in found[-1]
