"""The number that a sweeper minimises."""

from __future__ import annotations

import pytest

from metarun.storage.status import WORST, objective


@pytest.mark.parametrize(
    ("status", "error", "number"),
    [("completed", 0.2, 0.2), ("diverged", 0.2, WORST), ("completed", None, WORST), ("x", float("nan"), WORST)],
)
def test_a_sweeper_gets_a_finite_number(status: str, error: float | None, number: float) -> None:
    assert objective(status, error) == number
