"""Whether a curve has settled, on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from metarun.report.statistics.trend import judge_course

STEPS = np.arange(1, 61) * 100.0


def noise(scale: float, alike: float = 0.0, seed: int = 1) -> np.ndarray:
    drawn, values = np.random.default_rng(seed).standard_normal(160), np.zeros(160)
    for at in range(1, 160):
        values[at] = alike * values[at - 1] + drawn[at]
    return scale * values[100:]


def test_a_curve_that_falls_to_its_end_is_falling_by_its_slope() -> None:
    course = judge_course(STEPS, 3 - 1e-4 * STEPS + noise(0.005))
    assert course is not None
    assert course.verdict == "falling"
    assert abs(course.slope + 1e-4) < course.half < 2e-5
    assert course.since == 4100  # the last third: from 100 + 2/3 of 5900 on
    rising = judge_course(STEPS, 1e-4 * STEPS + noise(0.005))
    assert rising is not None
    assert rising.verdict == "rising"


def test_a_curve_that_levels_off_is_flat_from_there_on() -> None:
    course = judge_course(STEPS, 3 * np.exp(-STEPS / 300) + noise(0.01))
    assert course is not None
    assert course.verdict == "flat"
    assert 900 <= course.since <= 2000  # where 3 exp(-s/300) is within the noise
    assert abs(course.slope) < course.half


def test_a_curve_that_is_noise_alone_is_unclear_rather_than_flat() -> None:
    course = judge_course(STEPS, noise(1.0))
    assert course is not None
    assert course.verdict == "unclear"


def test_neighbours_that_resemble_each_other_do_not_make_a_trend() -> None:
    """The line's own t interval calls about half of such curves rising or falling; at most one in ten may be."""
    verdicts = [judge_course(STEPS, noise(1.0, 0.8, seed)) for seed in range(60)]
    assert sum(course is not None and course.verdict in ("rising", "falling") for course in verdicts) <= 6


@pytest.mark.parametrize("points", [0, 7, 14])
def test_too_few_values_in_the_last_half_give_no_answer(points: int) -> None:
    assert judge_course(STEPS[:points], STEPS[:points]) is None
    assert judge_course(STEPS, np.where(np.arange(60) < points, STEPS, np.nan)) is None


def test_a_line_without_noise_has_its_slope() -> None:
    course = judge_course(STEPS, -STEPS)
    assert course is not None
    assert (course.verdict, course.slope) == ("falling", pytest.approx(-1.0))
    constant = judge_course(STEPS, np.ones(60))
    assert constant is not None
    assert (constant.verdict, constant.since) == ("flat", 100)
