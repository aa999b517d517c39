"""Alarms: each rule at its threshold, on records made by hand; counting; replaying."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from metarun.config.schema import AlarmConfig, Config, DiagnosticsConfig, check
from metarun.diagnostics.alarms import Alarms, Baseline
from metarun.diagnostics.chance import Chance
from metarun.errors import SettingError
from metarun.storage.json_values import replace_nonfinite

FIVE_WAYS = Baseline(Chance(0.2, math.log(5)), "accuracy", higher_is_better=True)
REGRESSION = Baseline(Chance(4.0, 4.0), "mse", higher_is_better=False)
HEALTHY = {
    "loss": 0.5,
    "accuracy": 0.9,
    "adaptation_gain": 1.0,
    "query_loss/0": 1.5,
    "query_loss/1": 0.5,
    "support_loss/0": 1.5,
    "support_loss/1": 0.3,
    "contraction": 0.5,
    "inner_rises": 0.1,
    "cg_residual": 0.1,
    "cg_negative": 0.0,
}


def watching(run: Baseline = FIVE_WAYS, level: str = "basic", **limits: Any) -> Alarms:
    return Alarms(DiagnosticsConfig(level=level, alarms=AlarmConfig(**limits)), run)


def names(run: Baseline, *records: tuple[str, dict[str, Any]], **limits: Any) -> dict[str, int]:
    """How often each alarm was counted when these records came, at steps 1, 2, ..."""
    alarms = watching(run, **limits)
    for step, (kind, values) in enumerate(records, 1):
        alarms.observe(kind, step, values)
    return {name: raised.count for name, raised in alarms.raised.items()}


def train(*changes: dict[str, Any], run: Baseline = FIVE_WAYS, **limits: Any) -> dict[str, int]:
    return names(run, *(("train", HEALTHY | change) for change in changes), **limits)


def losses(*values: float | None) -> list[dict[str, Any]]:
    return [{"loss": value} for value in values]


def val(mean: float | None, ci95: float | None = 0.01) -> tuple[str, dict[str, Any]]:
    return "val", {"mean": mean, "ci95": ci95, "improved": False}


def test_a_healthy_run_raises_none() -> None:
    records = [
        *(("train", HEALTHY),) * 30,
        *(val(0.9),) * 6,
        ("probe", {"rate_curvature": 1.9, "rate_curvature_max": 2.5}),
        val(0.95),
    ]
    assert names(FIVE_WAYS, *records) == {}


@pytest.mark.parametrize("run", [FIVE_WAYS, REGRESSION])
@pytest.mark.parametrize("kind", ["train", "val", "probe", "test", "another"])
def test_records_without_the_numbers_that_rules_ask_for_raise_none(kind: str, run: Baseline) -> None:
    assert names(run, *((kind, {}),) * 30, *((kind, {"loss": 0.5, "distance": 4.0}),) * 30) == {}


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_diverged(loss: float | None) -> None:
    assert train(*losses(0.5, loss)) == {"diverged": 1}


def test_a_loss_has_diverged_where_its_mean_is_above_a_multiple_of_where_it_began() -> None:
    """Five records with a mean of 3.01 times the first loss; at 2.99 times, or before the fifth, nothing."""
    assert train(*losses(10.0, *(29.0,) * 4, 30.0, 31.0)) == {}
    assert train(*losses(10.0, *(29.9,) * 5)) == {}
    assert train(*losses(10.0, *(30.1,) * 5)) == {"diverged": 1}


def test_a_first_loss_that_is_low_by_luck_is_no_measure_of_divergence() -> None:
    """Random tasks may be easy ones: what counts is chance, here 4."""
    assert names(REGRESSION, *(("train", v) for v in losses(0.5, *(11.9,) * 6))) == {}
    assert names(REGRESSION, *(("train", v) for v in losses(0.5, *(12.1,) * 5))) == {"diverged": 1}


def test_a_loss_spikes_above_deviations_of_the_logarithms() -> None:
    """Half of the window at 1, half at e^0.2: median log 0.1, MAD 0.1, so with spike=8 the limit is e^0.9 = 2.46."""
    window = losses(*(1.0, math.exp(0.2)) * 10)
    assert train(*window, *losses(2.44)) == {}
    assert train(*window, *losses(2.48)) == {"loss_spike": 1}
    assert train(*window[1:], *losses(2.48)) == {}, "the window is not full"
    assert train(*window, *losses(2.48), spike=9.0) == {}


def test_a_calm_window_makes_no_spike_of_less_than_a_doubling() -> None:
    assert train(*losses(*(1.0,) * 20, 1.99)) == {}
    assert train(*losses(*(1.0,) * 20, 2.01)) == {"loss_spike": 1}


def test_a_loss_near_zero_does_not_spike_below_a_tenth_of_chance() -> None:
    assert train(*losses(*(1e-6,) * 20, 0.16)) == {}
    assert train(*losses(*(0.0,) * 20, 0.17)) == {"loss_spike": 1}


def accuracies(*values: float | None) -> list[dict[str, Any]]:
    return [{"accuracy": value} for value in values]


def test_progress_is_lost_where_more_than_half_of_what_was_learned_is() -> None:
    """Chance 0.2, the best five records 0.9: half of it is gone at 0.55, as a mean over a window of 20."""
    learned = accuracies(*(0.2, 0.5), *(0.9,) * 5)
    assert train(*learned, *accuracies(*(0.56,) * 40)) == {}
    assert train(*learned, *accuracies(*(0.54,) * 19, 0.9)) == {}
    assert train(*learned, *accuracies(*(0.54,) * 22)) == {"lost_progress": 3}
    assert train(*learned, *accuracies(*(0.56,) * 20), lost=0.4) == {"lost_progress": 4}
    assert train(*learned, *accuracies(*(0.54,) * 20, None)) == {"lost_progress": 1}
    errors = [{"loss": 1.0, "mse": value} for value in (*(0.2,) * 5, *(2.15,) * 20)]
    assert train(*errors, run=REGRESSION) == {"lost_progress": 1}


def test_progress_cannot_be_lost_where_no_validation_was_better_than_chance() -> None:
    """Of noisy records the least five are below the rest: only validations tell whether anything was learned."""
    lucky = [("train", HEALTHY | change) for change in accuracies(*(0.9,) * 5, *(0.2,) * 20)]
    assert "lost_progress" in names(FIVE_WAYS, *lucky)
    assert "lost_progress" not in names(FIVE_WAYS, val(0.205), *lucky)
    assert "lost_progress" in names(FIVE_WAYS, val(0.205), val(0.3), val(0.2), *lucky)
    assert "lost_progress" not in names(FIVE_WAYS, val(math.nan), *lucky)


def test_progress_is_not_lost_by_chance() -> None:
    """Means of 0.5 after one of 1.0, half of it: deviations of 0.5 leave a standard error of 0.11, below 6 of which."""
    assert train(*accuracies(*(1.0,) * 5, *(0.0, 1.0) * 20)) == {}
    assert train(*accuracies(*(1.0,) * 5, *(0.4, 0.6) * 20)) == {"lost_progress": 24}


def test_a_mixture_loses_no_progress_when_fewer_tasks_of_its_easiest_set_are_drawn() -> None:
    records = accuracies(*(0.9,) * 5, *(0.3,) * 20)
    assert "lost_progress" in train(*records)
    assert train(*records, run=FIVE_WAYS._replace(mixed=True)) == {}


def test_losses_of_actor_and_critics_lose_no_progress() -> None:
    acting = Baseline(Chance(0.0, math.inf), "return", higher_is_better=True, best=0.0)
    assert train(*({"return": value} for value in (*(9.0,) * 5, *(1.0,) * 30)), run=acting) == {}


def test_a_classifier_is_stuck_where_no_validation_is_above_chance_by_its_interval() -> None:
    stuck = {"stuck_at_chance": 1}
    assert names(FIVE_WAYS, *(val(0.205),) * 4) == {}
    assert names(FIVE_WAYS, *(val(0.205),) * 5) == stuck
    assert names(FIVE_WAYS, *(val(0.1),) * 5) == stuck, "worse than chance"
    assert names(FIVE_WAYS, *(val(0.215),) * 5) == {}
    assert names(FIVE_WAYS, *(val(0.215, 0.02),) * 5) == stuck
    assert names(FIVE_WAYS, *(val(0.205, None),) * 5) == stuck, "a single task has no interval"
    assert names(FIVE_WAYS, *(val(0.2),) * 4, val(0.3), *(val(0.2),) * 4) == {}, "not in a row"


def test_a_regression_is_stuck_where_a_constant_would_do_as_well() -> None:
    assert names(REGRESSION, *(val(3.9, 0.2),) * 5) == {"stuck_at_chance": 1}
    assert names(REGRESSION, *(val(3.7, 0.2),) * 5) == {}


def test_a_run_that_gets_better_is_not_stuck() -> None:
    """1 % of the error of chance, 0.04, within five validations is progress."""
    assert names(REGRESSION, *(val(3.9 - 0.011 * k, 0.5) for k in range(9))) == {}
    assert names(REGRESSION, *(val(3.9 - 0.009 * k, 0.5) for k in range(5))) == {"stuck_at_chance": 1}


def test_adaptation_must_gain_a_share_of_the_loss_before_it() -> None:
    idle = {"adaptation_gain": 0.0149}  # 1 % of 1.5 is 0.015
    assert train(*(idle,) * 19) == {}
    assert train(*(idle,) * 20) == {"no_adaptation": 1}
    assert train(*({"adaptation_gain": 0.0151},) * 20) == {}
    assert train(*({"adaptation_gain": -0.2}, {"adaptation_gain": 0.3}) * 10) == {}, "noise around a gain of 3 %"


def along(query: list[float], support: list[float]) -> dict[str, float]:
    pairs = zip(("query", "support"), (query, support), strict=True)
    return {f"{name}_loss/{k}": v for name, values in pairs for k, v in enumerate(values)}


def test_the_inner_loop_overfits_where_queries_get_worse_while_the_support_set_gets_better() -> None:
    overfits = along([1.5, 0.5, 0.56], [1.5, 0.4, 0.2])
    assert train(*(overfits,) * 19) == {}
    assert train(*(overfits,) * 20) == {"inner_overfitting": 1}
    assert train(*(along([1.5, 0.5, 0.54], [1.5, 0.4, 0.2]),) * 20) == {}, "8 % above the lowest"
    assert train(*(along([1.5, 0.5, 0.56], [1.5, 0.4, 0.5]),) * 20) == {}, "both get worse"
    assert train(*(along([1.5, 0.01, 0.02], [1.5, 0.4, 0.2]),) * 20) == {}, "less than 1 % of the loss before"
    noise = along([1.5, 0.4, 0.6], [1.5, 0.4, 0.2]), along([1.5, 0.6, 0.4], [1.5, 0.4, 0.2])
    assert train(*noise * 10) == {}, "the lowest of the mean, not the mean of the lowest"


def test_training_tasks_are_memorised_where_they_are_solved_and_new_ones_are_not() -> None:
    """5 ways: solved below 0.1 log 5 = 0.161, new tasks unsolved above an error of 0.3 * 0.8 = 0.24."""
    solved, unsolved = [("train", HEALTHY | {"loss": 0.16})] * 5, [("train", HEALTHY | {"loss": 0.162})] * 5
    assert names(FIVE_WAYS, *solved, val(0.74)) == {"memorisation": 1}
    assert names(FIVE_WAYS, *solved, val(0.755)) == {}, "not clear, given the interval"
    assert names(FIVE_WAYS, *unsolved, val(0.74)) == {}
    assert names(FIVE_WAYS, *solved[:4], val(0.74)) == {}
    assert names(FIVE_WAYS._replace(as_hard=False), *solved, val(0.74)) == {}, "new tasks have fewer shots"
    assert names(REGRESSION, *(("train", {"loss": 0.3}),) * 5, val(1.3, 0.05)) == {"memorisation": 1}
    assert names(REGRESSION, *(("train", {"loss": 0.3}),) * 5, val(1.2, 0.05)) == {}


@pytest.mark.parametrize(("before", "words"), [(0.15, "even before adaptation"), (1.5, "solved (loss 0.1)")])
def test_memorisation_says_whether_support_sets_are_needed(before: float, words: str) -> None:
    alarms = watching()
    for step in range(5):
        alarms.observe("train", step, HEALTHY | {"loss": 0.1, "query_loss/0": before})
    (line,) = alarms.observe("val", 5, val(0.5)[1])
    assert line.startswith("alarm: memorisation at step 5: training tasks are solved")
    assert words in line


@pytest.mark.parametrize(
    ("unstable", "stable"),
    [
        ({"contraction": 1.11}, {"contraction": 1.1}),
        ({"contraction": None}, {"contraction": 0.99}),
        ({"inner_rises": 0.51}, {"inner_rises": 0.5}),
    ],
)
def test_an_inner_rate_is_unstable_where_steps_grow_or_the_support_loss_rises(
    unstable: dict[str, Any], stable: dict[str, Any]
) -> None:
    assert train(*(unstable,) * 7) == {"unstable_inner_rate": 3}
    assert train(*(unstable,) * 4, stable, *(unstable,) * 4) == {}


def test_an_inner_rate_is_unstable_where_curvature_or_validation_says_so() -> None:
    raised = {"unstable_inner_rate": 1}
    assert names(FIVE_WAYS, ("probe", {"rate_curvature": 2.1})) == raised
    assert names(REGRESSION, val(None)) == raised


def test_a_solver_that_fails_is_told_of_at_once() -> None:
    assert train({"cg_residual": 1.0, "cg_negative": 0.0}) == {}
    assert train({"cg_residual": 1.1}) == {"cg_not_converged": 1}
    assert train({"cg_negative": 0.25}) == {"negative_curvature": 1}
    alarms = watching()
    (line,) = alarms.observe("train", 1, {"cg_negative": 0.25})
    assert "25% of this step's tasks" in line


def test_without_diagnostics_only_divergence_is_told() -> None:
    alarms = watching(level="off")
    for step in range(30):
        alarms.observe("train", step, {"loss": 1.0, "contraction": 2.0, "cg_negative": 1.0})
        alarms.observe("val", step, val(0.2)[1])
    assert alarms.raised == {}
    assert len(alarms.observe("train", 31, {"loss": math.nan})) == 1


def test_an_alarm_is_told_once_and_counted_each_time() -> None:
    alarms = watching()
    told = [alarms.observe("train", step, {"cg_residual": step / 10}) for step in range(8, 14)]
    assert [len(lines) for lines in told] == [0, 0, 0, 1, 0, 0]
    message = alarms.summary()["cg_not_converged"]["message"]
    assert told[3] == [f"alarm: cg_not_converged at step 11: {message}"]
    assert "relative residual of 1.1" in message
    assert alarms.summary() == {"cg_not_converged": {"count": 3, "first": 11, "last": 13, "message": message}}


def restless(count: int) -> list[tuple[str, int, dict[str, Any]]]:
    """Records that raise most alarms now and then, with numbers that JSON has no word for."""
    draw = torch.Generator().manual_seed(0)
    found: list[tuple[str, int, dict[str, Any]]] = []
    for step in range(count):
        a, b, c = torch.rand(3, generator=draw, dtype=torch.float64).tolist()
        values = {
            "loss": 0.3 + (20 * a if a > 0.9 else a),
            "contraction": 0.9 + b,
            "inner_rises": 0.3 + c,
            "x": math.inf,
        }
        values |= {"cg_residual": math.inf if a < 0.1 else b, "adaptation_gain": 0.02 * a, "query_loss/0": 1.0}
        found += [("train", step, values)]
        found += [("val", step, {"mean": 0.18 + 0.06 * b, "ci95": 0.02})] if step % 3 == 0 else []
    return found


def test_replaying_stored_records_goes_on_as_if_there_had_been_no_interruption() -> None:
    """Cut anywhere: the same counts, and each alarm told once, before the cut or after it."""
    records = restless(80)
    whole = watching()
    told = [line for record in records for line in whole.observe(*record)]
    assert len(told) == len(whole.raised) >= 5
    for cut in range(0, len(records), 7):
        first, resumed = watching(), watching()
        before = [line for record in records[:cut] for line in first.observe(*record)]
        for kind, step, values in records[:cut]:
            resumed.observe(
                kind, step, json.loads(json.dumps(replace_nonfinite({"kind": kind, "step": step, **values})))
            )
        after = [line for record in records[cut:] for line in resumed.observe(*record)]
        assert before + after == told
        assert resumed.summary() == whole.summary()


def test_the_history_is_bounded_by_the_window() -> None:
    alarms = watching(window=7, patience=3)
    for kind, step, values in restless(50):
        alarms.observe(kind, step, values)
    assert len(alarms.history.train) == 8
    assert len(alarms.history.val) == 8


@pytest.mark.parametrize("key", list(AlarmConfig.__dataclass_fields__))
def test_a_threshold_must_be_positive(key: str) -> None:
    config = Config(diagnostics=DiagnosticsConfig(alarms=AlarmConfig(**{key: 0})))
    with pytest.raises(SettingError, match=f"diagnostics.alarms.{key}=0"):
        check(config)
