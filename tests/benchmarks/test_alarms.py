"""The tables on alarms: which runs count for precision and recall, and which threshold is chosen."""

from __future__ import annotations

import pytest

from benchmarks.alarms import FAULTS, THRESHOLDS, BrokenSinusoid, Case, Count, Recorded, choose, count, list_cases
from metarun.config.schema import AlarmConfig, DiagnosticsConfig
from metarun.diagnostics.alarms import RULES, Baseline
from metarun.diagnostics.chance import Chance
from metarun.types import EpisodeSpec

RUN = Baseline(Chance(4.0, 4.0), "mse", higher_is_better=False)
SMALL, LARGE = "inner rate too small", "inner rate too large"


def recorded(fault: str | None, gain: float) -> Recorded:
    """A run whose query loss falls from 1 by `gain` in each of 20 records."""
    record = {"kind": "train", "step": 1, "query_loss/0": 1.0, "adaptation_gain": gain}
    return Recorded(Case("a run", fault, 0, []), RUN, DiagnosticsConfig(), [record] * 20, frozenset())


RUNS = [recorded(SMALL, 0.004), recorded(SMALL, 0.015), recorded(LARGE, -1.0), recorded(None, 0.008), recorded(None, 1)]


def test_an_alarm_is_right_where_its_own_fault_or_one_that_leads_to_it_is() -> None:
    """no_adaptation holds up to a gain of 0.01: in the first (own), third (of another fault) and fourth (healthy)."""
    found = count("no_adaptation", RUNS)
    assert found == Count(found=1, own=2, right=2, raised=3)
    assert found.f1 == pytest.approx(2 / (2 + 3 / 2))


def test_the_threshold_with_the_best_f1_is_chosen_and_the_default_where_it_is_as_good() -> None:
    """Twice the default finds the second run as well: recall 1 of 1, precision 3 of 4. Half of it loses nothing else
    than the healthy one: recall 1/2, precision 1."""
    assert choose("no_adaptation", RUNS) == {"no_gain": 0.02}
    assert choose("no_adaptation", RUNS[-1:]) == {"no_gain": AlarmConfig().no_gain}


def test_every_alarm_has_a_fault_of_its_own_and_every_fault_is_in_both_halves() -> None:
    assert {fault.alarm for fault in FAULTS.values()} == {rule.name for rule in RULES} | {"constant_inputs"}
    cases = list(list_cases())
    assert len({case.name for case in cases}) == len(cases)
    for fault in (None, *FAULTS):
        assert {case.half for case in cases if case.fault == fault} == {0, 1}
    assert set(THRESHOLDS) <= {rule.name for rule in RULES}


def test_broken_data_are_those_of_some_training_steps() -> None:
    sound = BrokenSinusoid((1.0, 1.0), (0.0, 0.0), (-5.0, 5.0), 0.0)
    broken = BrokenSinusoid((1.0, 1.0), (0.0, 0.0), (-5.0, 5.0), 0.0, first=3, steps=2, times=10.0)
    spec = EpisodeSpec(1, 4, 4)
    for split, step, times in (("train", 2, 1), ("train", 3, 10), ("train", 4, 10), ("train", 5, 1), ("val", 3, 1)):
        one, other = (data.episodes(split, 0, step, range(2), spec).query.y for data in (sound, broken))  # type: ignore[arg-type]
        assert (other == times * one).all()
