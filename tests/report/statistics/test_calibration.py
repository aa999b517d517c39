"""Calibration against predictions whose calibration is known, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarun.report.statistics.calibration import describe_calibration, squared_error
from metarun.training.evaluation import read_probabilities


def draw(tasks: int, queries: int, gap: float, seed: int = 0, shared: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences in [0.6, 0.9], right with a probability that is lower by `gap`, and by +-`shared` in a whole task."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.6, 0.9, (tasks, queries))
    side = shared * rng.choice([-1, 1], (tasks, 1))
    return confidence, (rng.random((tasks, queries)) < confidence - gap + side).astype(float)


def test_without_bias_the_error_is_0_for_a_calibrated_classifier_also_where_tasks_are_alike() -> None:
    """Mean of E2 over 300 tests of 20 tasks: 0 within four standard errors; the plain one is far above."""
    for shared in (0.0, 0.1):
        found = [squared_error(*draw(20, 30, 0.0, seed, shared))[:2] for seed in range(300)]
        unbiased, plain = np.array(found).T
        assert abs(unbiased.mean()) < 4 * unbiased.std() / np.sqrt(300)
        assert plain.mean() > 10 * unbiased.std() / np.sqrt(300)


def test_the_error_and_the_overconfidence_are_the_gap() -> None:
    confidence, correct = draw(2000, 30, 0.1)
    zeros = np.zeros(2000)
    found = describe_calibration(confidence, correct, zeros, zeros, zeros)
    assert found["error"] == pytest.approx(0.1, abs=0.005)
    assert found["overconfidence"] == pytest.approx(0.1, abs=2 * found["overconfidence_ci95"])
    assert found["overconfidence_ci95"] < 0.005
    assert len(found["bins"]) == 15
    assert all(row["confidence"] - row["accuracy"] == pytest.approx(0.1, abs=0.03) for row in found["bins"])


def test_two_tasks_by_hand() -> None:
    """One bin: d = (0.9 - 1 + 0.7 - 0) / 2 = 0.3 and (0.8 - 1 + 0.8 - 1) / 2 = -0.2; E2 = 2 d1 d2 / 2."""
    confidence, correct = np.array([[0.9, 0.7], [0.8, 0.8]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    unbiased, plain, rows = squared_error(confidence, correct, bins=1)
    assert unbiased == pytest.approx(0.3 * -0.2)
    assert plain == pytest.approx(0.05**2)
    assert rows == [{"confidence": pytest.approx(0.8), "accuracy": 0.75}]


def test_fewer_predictions_than_bins_have_a_bin_each() -> None:
    confidence = np.array([[0.8, 0.6], [0.9, 0.7]])
    _, plain, rows = squared_error(confidence, np.ones((2, 2)))
    assert [row["confidence"] for row in rows] == [0.6, 0.7, 0.8, 0.9]
    assert plain == pytest.approx(np.mean((1 - confidence) ** 2))


def test_what_is_read_off_logits() -> None:
    p = torch.tensor([[[0.5, 0.3, 0.2], [0.95, 0.03, 0.02], [0.6, 0.35, 0.05]]])
    found = read_probabilities(p.log(), torch.tensor([[1, 0, 2]]))
    assert found["confidence"].tolist() == [pytest.approx([0.5, 0.95, 0.6])]
    assert found["correct"].tolist() == [[False, True, False]]
    brier = [0.25 + 0.49 + 0.04, 0.05**2 + 0.03**2 + 0.02**2, 0.36 + 0.35**2 + 0.95**2]
    assert float(found["brier"]) == pytest.approx(np.mean(brier))
    assert float(found["set_size"]) == pytest.approx((3 + 1 + 2) / 3)  # 0.9 of the probability: 3, 1 and 2 classes
    assert float(found["covered"]) == pytest.approx(2 / 3)
