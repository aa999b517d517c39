"""What a run's records say of its convergence: hand-made curves, exact power laws, and records with holes in them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from metarun.report.statistics.convergence import (
    Cost,
    Crossing,
    Curve,
    area_under_curve,
    convergence_summary,
    default_thresholds,
    find_crossing,
    fit_trend,
    validation_curve,
)

EXACT = 1e-12
Record = dict[str, Any]


def validations(values: list[float | None], every: int = 100) -> list[Record]:
    return [{"kind": "val", "step": every * (k + 1), "mean": v, "ci95": 0.01} for k, v in enumerate(values)]


def clocks(count: int, every: int = 100, each: float = 2.0) -> list[Record]:
    return [{"kind": "val", "step": every * (k + 1), "seconds": each * (k + 1)} for k in range(count)]


def curve_of(values: list[float | None]) -> Curve:
    """4 tasks a step, 3 gradients a task, 2 seconds per 100 steps."""
    return validation_curve(validations(values), clocks(len(values)), 4, 3)


def probes(norms: list[float | None]) -> list[Record]:
    return [{"kind": "probe", "step": 10 * (k + 1), "true_grad_norm2": v} for k, v in enumerate(norms)]


def summarise(records: list[Record], timing: list[Record] | None = None, **settings: Any) -> Record:
    settings = {"tasks_per_step": 4, "higher_is_better": True} | settings
    return convergence_summary(records, timing or [], **settings)


def test_a_curve_has_the_costs_of_every_validation() -> None:
    records = [{"kind": "train", "step": 50, "loss": 1.0}, *validations([0.5, 0.75])]
    timing = [{"kind": "train", "step": 100, "seconds": 99.0}, *clocks(2)]
    found = validation_curve(records, timing, tasks_per_step=4, gradients_per_task=3)
    expected = {"values": [0.5, 0.75], "steps": [100, 200], "tasks": [400, 800]}
    for name, numbers in (expected | {"inner_gradients": [1200, 2400], "seconds": [2, 4]}).items():
        np.testing.assert_array_equal(getattr(found, name), numbers)


def test_a_curve_is_in_order_of_steps_and_the_later_line_of_a_step_counts() -> None:
    records = [*reversed(validations([0.5, 0.75])), {"kind": "val", "step": 100, "mean": 0.6}]
    np.testing.assert_array_equal(validation_curve(records, [], 1).values, [0.6, 0.75])


def test_what_is_not_known_is_missing_from_the_curve() -> None:
    records: list[Record] = [
        *validations([None, 0.5, math.inf]),
        {"kind": "val"},
        {"kind": "val", "step": None, "mean": 1.0},
        {"kind": "val", "step": 400, "mean": "0.5"},
        {"kind": "val", "step": 500},
    ]
    found = validation_curve(records, clocks(1), 4)
    np.testing.assert_array_equal(found.values, [math.nan, 0.5, math.nan, math.nan, math.nan])
    np.testing.assert_array_equal(found.seconds, [2, math.nan, math.nan, math.nan, math.nan])
    assert np.isnan(found.inner_gradients).all()


VALUES: list[float | None] = [0.2, 0.7, 0.4, 0.8, 0.9, 0.6]


@pytest.mark.parametrize(
    ("threshold", "smooth", "hold", "k"),
    [
        (0.7, 1, 1, 1),  # at the threshold counts
        (0.71, 1, 1, 3),
        (0.7, 1, 2, 3),  # 0.7 does not hold: 0.4 comes next
        (0.6, 1, 3, 3),  # the first of the three, not the last
        (0.6, 2, 1, 3),  # means of two: -, 0.45, 0.55, 0.6, 0.85, 0.75
        (0.6, 2, 3, 3),
        (0.5, 3, 1, 3),  # means of three: -, -, 0.433, 0.633, 0.7, 0.767
    ],
)
def test_a_threshold_is_crossed_where_the_smoothed_curve_gets_there_and_stays(
    threshold: float, smooth: int, hold: int, k: int
) -> None:
    found = find_crossing(curve_of(VALUES), threshold, True, smooth, hold)
    step = 100 * (k + 1)
    assert found == Crossing(Cost(step, 4 * step, 12 * step, step / 50), None)


@pytest.mark.parametrize(
    ("threshold", "smooth", "hold"),
    [(0.95, 1, 1), (0.85, 1, 2), (0.2, 7, 1), (0.1, 1, 7), (0.6, 1, 4)],
)
def test_a_threshold_never_held_is_censored_at_the_last_evaluation(threshold: float, smooth: int, hold: int) -> None:
    found = find_crossing(curve_of(VALUES), threshold, True, smooth, hold)
    assert found == Crossing(None, Cost(600, 2400, 7200, 12.0))


def test_an_error_crosses_from_above() -> None:
    errors = curve_of([None if v is None else 1 - v for v in VALUES])
    assert find_crossing(errors, 0.29, False).at == find_crossing(curve_of(VALUES), 0.71, True).at


def test_a_missing_value_breaks_what_is_held_and_every_mean_it_is_in() -> None:
    broken = curve_of([0.9, None, 0.9, 0.9, 0.9])
    found = [find_crossing(broken, 0.5, True, smooth, hold).at for smooth, hold in ((1, 1), (1, 2), (2, 1))]
    assert [cost and cost.steps for cost in found] == [100, 300, 400]


def test_no_curve_is_neither_crossed_nor_censored() -> None:
    assert find_crossing(curve_of([]), 0.5, True) == Crossing(None, None)


def test_unknown_costs_stay_unknown() -> None:
    assert find_crossing(validation_curve(validations([0.9]), [], 4), 0.5, True).at == Cost(100, 400, None, None)


@pytest.mark.parametrize(("smooth", "hold"), [(0, 1), (1, 0)])
def test_windows_of_no_evaluation_are_refused(smooth: int, hold: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        find_crossing(curve_of(VALUES), 0.5, True, smooth, hold)


def test_area_by_hand() -> None:
    """0.2 up to 100, 0.6 at 200, 0.8 at 300: (20 + 40 + 70) / 300; up to 150, where it is 0.4: (20 + 15) / 150."""
    found = curve_of([0.2, 0.6, 0.8])
    assert area_under_curve(found, "steps") == pytest.approx(130 / 300, rel=EXACT)
    assert area_under_curve(found, "steps", budget=150) == pytest.approx(35 / 150, rel=EXACT)
    assert area_under_curve(found, "inner_gradients", budget=1800) == pytest.approx(35 / 150, rel=EXACT)
    assert area_under_curve(found, "seconds", budget=1) == pytest.approx(0.2, rel=EXACT)
    assert area_under_curve(found, "tasks") == pytest.approx(130 / 300, rel=EXACT)


def test_area_in_seconds_follows_the_clock() -> None:
    """0.2 for 10 s, then to 0.6 within 1 s."""
    timing = [{"kind": "val", "step": 100, "seconds": 10.0}, {"kind": "val", "step": 200, "seconds": 11.0}]
    found = validation_curve(validations([0.2, 0.6]), timing, 4)
    assert area_under_curve(found, "seconds") == pytest.approx((2 + 0.4) / 11, rel=EXACT)


def test_area_passes_over_missing_values_and_needs_one() -> None:
    assert area_under_curve(curve_of([0.2, None, 0.6]), "steps") == pytest.approx((20 + 80) / 300, rel=EXACT)
    assert area_under_curve(curve_of([0.4]), "steps") == pytest.approx(0.4, rel=EXACT)
    assert area_under_curve(curve_of([None]), "steps") is None
    assert area_under_curve(curve_of([]), "steps") is None
    assert area_under_curve(validation_curve(validations([0.2]), [], 4), "seconds") is None
    start = validation_curve([{"kind": "val", "step": 0, "mean": 0.3}], [], 4)
    assert area_under_curve(start, "steps") == 0.3


@pytest.mark.parametrize("budget", [-1, 0, 301])
def test_there_is_no_area_over_a_budget_that_was_not_used(budget: float) -> None:
    assert area_under_curve(curve_of([0.2, 0.6, 0.8]), "steps", budget) is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.9, 0.1, 0.21, 0.29, 0.41, 0.5], "rising"),
        ([0.0, 0.5, 0.41, 0.29, 0.21, 0.1], "falling"),
        ([0.0, 0.5, 0.52, 0.49, 0.51, 0.5], "flat"),
        ([0.0, 0.1, 0.1, 0.1, 0.1, 0.1], "flat"),
    ],
)
def test_the_trend_is_of_the_last_evaluations_alone(values: list[float | None], verdict: str) -> None:
    found = fit_trend(curve_of(values), window=5)
    assert found is not None
    assert (found.verdict, found.points) == (verdict, 5)


def test_the_trend_is_per_step_and_passes_over_missing_values() -> None:
    found = fit_trend(curve_of([0.1, None, 0.3, 0.4]))
    assert found is not None
    assert found.slope == pytest.approx(0.001, rel=EXACT)
    assert found.half == pytest.approx(0, abs=1e-15)
    assert found.verdict == "rising"
    assert fit_trend(curve_of([0.1, None, 0.3])) is None


def test_trends_of_noise_are_called_flat_in_95_percent() -> None:
    """Independent noise without a trend, 10 evaluations, 400 curves: 3 binomial standard errors are 3.3 %."""
    generator = np.random.default_rng(1)
    found = [fit_trend(curve_of(list(generator.normal(size=10)))) for _ in range(400)]
    assert np.mean([f is not None and f.verdict == "flat" for f in found]) == pytest.approx(0.95, abs=0.033)


def test_default_thresholds_are_named_shares_of_the_way() -> None:
    rising, falling = curve_of([0.3, 0.2, 0.8, 0.7]), curve_of([4.0, 1.0, 2.0])
    assert default_thresholds(rising, True, chance=0.2) == pytest.approx(
        {"midpoint_chance_best": 0.5, "90_percent_first_best": 0.75}
    )
    assert default_thresholds(falling, False) == pytest.approx(
        {"midpoint_first_best": 2.5, "90_percent_first_best": 1.3}
    )


def test_a_run_that_never_improved_has_no_default_thresholds() -> None:
    assert default_thresholds(curve_of([]), True) == {}
    assert default_thresholds(curve_of([None]), True) == {}
    assert default_thresholds(curve_of([0.3, 0.2]), True) == {}
    assert default_thresholds(curve_of([0.3]), True, chance=0.5) == {}
    assert list(default_thresholds(curve_of([0.3]), True, chance=0.2)) == ["midpoint_chance_best"]


def test_the_summary_holds_all_of_it() -> None:
    records = validations([0.2, 0.6, 0.8, 0.7]) + probes([8.0, 4.0, 2.0, 1.0, 0.5])
    found = summarise(records, clocks(4), gradients_per_task=3, thresholds=[0.6, 0.95])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    figures = {"evaluations": 4, "missing": 0, "first": 0.2, "best": 0.8, "best_step": 300, "last": 0.7}
    assert {k: found[k] for k in figures} == figures
    assert found["budget"] == {"steps": 400, "tasks": 1600, "inner_gradients": 4800, "seconds": 8}
    reached = {"steps": 200, "tasks": 800, "inner_gradients": 2400, "seconds": 4}
    assert found["thresholds"] == [
        {"name": "0.6", "value": 0.6, "reached": True, "at": reached, "censored_at": None},
        {"name": "0.95", "value": 0.95, "reached": False, "at": None, "censored_at": found["budget"]},
    ]
    assert found["area"] == pytest.approx(dict.fromkeys(found["area"], (20 + 40 + 70 + 75) / 400))
    assert list(found["area"]) == ["steps", "tasks", "inner_gradients", "seconds"]
    assert (found["trend"]["verdict"], found["trend"]["points"]) == ("flat", 4)
    assert (found["rate"]["points"], found["stationarity"]["smallest"]) == (5, 0.5)


def test_the_summary_of_a_regression_counts_downwards() -> None:
    found = summarise(validations([4.0, 1.0, 2.0]), higher_is_better=False)
    assert (found["best"], found["best_step"]) == (1.0, 200)
    assert [(t["name"], t["at"]["steps"]) for t in found["thresholds"]] == [
        ("midpoint_first_best", 200),
        ("90_percent_first_best", 200),
    ]


NOTHING: Record = {
    "first": None,
    "best": None,
    "best_step": None,
    "last": None,
    "thresholds": [],
    "trend": None,
    "rate": None,
}


@pytest.mark.parametrize("records", [[], [{"kind": "train", "step": 1, "loss": None}]], ids=["empty", "train only"])
def test_the_summary_of_a_run_without_validation_is_empty_and_not_an_error(records: list[Record]) -> None:
    found = summarise(records)
    assert {k: found[k] for k in NOTHING} == NOTHING
    assert (found["evaluations"], found["budget"], found["stationarity"]) == (0, None, None)
    assert set(found["area"].values()) == {None}


def test_the_summary_of_one_validation_has_what_one_can_say() -> None:
    found = summarise(validations([0.4]), chance=0.2, thresholds=[0.5])
    assert (found["first"], found["best"], found["last"]) == (0.4, 0.4, 0.4)
    assert found["thresholds"][0]["censored_at"]["steps"] == 100
    assert (found["area"]["steps"], found["area"]["seconds"], found["trend"]) == (0.4, None, None)


def test_the_summary_of_a_diverged_run_counts_what_is_missing_and_censors_at_its_end() -> None:
    records = validations([0.4, 0.5, None, None]) + probes([1.0, None, None])
    found = summarise(records, clocks(4), thresholds=[0.9])
    assert (found["evaluations"], found["missing"], found["last"]) == (2, 2, 0.5)
    assert found["thresholds"][0]["censored_at"]["steps"] == found["budget"]["steps"] == 400
    assert found["stationarity"] == {"smallest": 1.0, "step": 10, "epsilon": 1.0}
    json.dumps(found, allow_nan=False)


def test_the_summary_of_nothing_but_missing_values_has_a_budget_and_no_figure() -> None:
    found = summarise(validations([None, None]), clocks(2))
    assert (found["evaluations"], found["missing"], found["best"]) == (0, 2, None)
    assert found["budget"]["steps"] == 200
    assert found["thresholds"] == []
