"""Alarms where losses may be below 0, as of likelihoods: rules add logarithms where others multiply."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metarun.config.schema import AlarmConfig, DiagnosticsConfig
from metarun.diagnostics.alarms import Alarms, Baseline
from metarun.diagnostics.chance import Chance

LIKELIHOOD = Baseline(Chance(-1.4, 1.4), "log_likelihood", higher_is_better=True, best=0.0, signed=True)


def raised(*records: tuple[str, dict[str, Any]], run: Baseline = LIKELIHOOD) -> set[str]:
    alarms = Alarms(DiagnosticsConfig(alarms=AlarmConfig()), run)
    for step, (kind, values) in enumerate(records, 1):
        alarms.observe(kind, step, values)
    return set(alarms.raised)


def losses(*values: float) -> list[tuple[str, dict[str, Any]]]:
    return [("train", {"loss": value}) for value in values]


def val(mean: float, ci95: float = 0.001) -> tuple[str, dict[str, Any]]:
    return "val", {"mean": mean, "ci95": ci95, "improved": False}


def test_a_healthy_run_below_zero_raises_none() -> None:
    falling = losses(*(1.4 - 0.1 * k for k in range(25)))
    assert raised(*falling, *(val(-1.3 + 0.2 * k) for k in range(8))) == set()
    assert raised(*losses(*(-1.0, -0.7) * 20), *(val(1.0),) * 6) == set()


@pytest.mark.parametrize("first", [-3.0, 1.4])
def test_a_negative_loglikelihood_has_diverged_log_3_above_chance(first: float) -> None:
    """However low it began: 1.4 + log 3 = 2.4986."""
    assert "diverged" not in raised(*losses(first, *(2.49,) * 5))
    assert "diverged" in raised(*losses(first, *(2.51,) * 5))
    assert "diverged" in raised(*losses(2.0, *(3.2,) * 5))  # 2 + log 3 = 3.0986
    assert "diverged" not in raised(*losses(2.0, *(3.0,) * 5))


def test_a_negative_loglikelihood_spikes_by_differences() -> None:
    """Median -0.9, MAD 0.1, so that spike=8 allows up to -0.1; a calm window allows log 2."""
    window = losses(*(-1.0, -0.8) * 10)
    assert raised(*window, *losses(-0.11)) == set()
    assert raised(*window, *losses(-0.09)) == {"loss_spike"}
    calm = losses(*(-1.0,) * 20)
    assert raised(*calm, *losses(-1 + math.log(2) - 0.01)) == set()
    assert raised(*calm, *losses(-1 + math.log(2) + 0.01)) == {"loss_spike"}


def test_a_likelihood_is_stuck_where_a_constant_gaussian_would_do_as_well() -> None:
    """1 % of chance is log(1 / 0.99) = 0.01005 nats."""
    assert raised(*(val(-1.4),) * 5) == {"stuck_at_chance"}
    assert raised(*(val(-1.391),) * 5) == {"stuck_at_chance"}
    assert raised(*(val(-1.389),) * 5) == set()
    assert raised(*(val(-1.389, 0.05),) * 5) == {"stuck_at_chance"}
    assert raised(*(val(0.5),) * 5) == set()
    assert raised(*(val(-1.45 + 0.0026 * k) for k in range(5))) == set(), "on its way"


def test_a_chance_of_zero_is_a_level_like_any_other() -> None:
    at_zero = LIKELIHOOD._replace(chance=Chance(0.0, 0.0))
    assert raised(*(val(-0.2),) * 5, run=at_zero) == {"stuck_at_chance"}
    assert raised(*(val(0.1),) * 5, run=at_zero) == set()
    perfect = Baseline(Chance(0.0, 0.0), "mse", higher_is_better=False)  # nothing is better than an error of 0
    assert raised(*(val(0.0),) * 5, run=perfect) == set()


def test_training_tasks_are_memorised_log_10_below_chance_where_new_ones_are_not_half_way() -> None:
    """Solved: a loss of 1.4 - log 10 = -0.903; unsolved: an error above 1.4 + log 0.3 = 0.196."""
    assert raised(*losses(*(-0.91,) * 5), val(-0.21)) == {"memorisation"}
    assert raised(*losses(*(-0.89,) * 5), val(-0.21)) == set()
    assert raised(*losses(*(-0.91,) * 5), val(-0.19)) == set()
    assert raised(*losses(*(-0.91,) * 5), val(-0.21, 0.03)) == set()
