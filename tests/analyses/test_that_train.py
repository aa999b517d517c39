"""Analyses that train: replaced tasks, amounts of data, seeds, maps of stability, inner loops against one another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metarun.analyses.analysis import Context, run_analysis
from metarun.analyses.data_amount import DataAmount, fit_gap
from metarun.analyses.inner_loops import InnerLoops
from metarun.analyses.replace_one import ReplaceOne
from metarun.analyses.seeds import Seeds, find_source_run
from metarun.analyses.stability import (
    Outcome,
    choose_replaced,
    compare_outcomes,
    evaluate_last_weights,
    generalisation_gap,
)
from metarun.analyses.stability_map import StabilityMap
from metarun.cli.main import compose
from metarun.config.components import build
from metarun.errors import SettingError, UserError
from metarun.jobs.train import train_job
from metarun.statistics.components import variance_components
from metarun.storage.run_folder import RunFolder
from metarun.training.evaluation import adaptation_curves

TINY = ["train.steps=4", "train.tasks=2", "train.log_every=2", "train.eval_every=2", "val.tasks=3", "test.tasks=5"]
TINY += ["test.steps=2", "device.compile=false", "device.threads=1", "report=false", "algo.test_inner_steps=2"]
TINY += ["model.hidden=[8]"]


def context_of(folder: Path, *more: str) -> Context:
    return Context(compose([*TINY, *more]), None, folder, train_job)


def said(line: str) -> None:
    """Where progress goes."""


def rows_of(context: Context, analysis: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    results = run_analysis(analysis, context, said)
    assert (context.folder / "figure.png").stat().st_size > 5000
    return results["rows"], results["summary"]


# What is measured of two runs


def some(new: list[float], own: list[float] | None = None, weight: float = 0.0) -> Outcome:
    losses = torch.tensor(new, dtype=torch.float64)
    owned = None if own is None else torch.tensor(own, dtype=torch.float64)
    return Outcome({"w": torch.tensor([3.0, 4.0 + weight])}, losses, losses, owned, owned)


def test_the_change_between_two_runs_is_that_of_weights_and_of_each_tasks_loss() -> None:
    found = compare_outcomes(some([1.0, 2.0, 5.0, 4.0, 0.0]), some([1.5, 2.0, 2.0, 5.0, 0.0], weight=2.0))
    assert found["distance"] == pytest.approx(2.0)
    assert found["relative"] == pytest.approx(2.0 / 5.0)
    assert found["mean"] == pytest.approx((0.5 + 0 + 3 + 1 + 0) / 5)
    assert (found["sup"], found["median"]) == (3.0, 0.5)
    assert all(math.isnan(v) for v in compare_outcomes(None, some([1.0])).values())


def test_the_gap_is_new_tasks_less_own_ones_with_the_interval_of_the_new_ones(tmp_path: Path) -> None:
    experiment = context_of(tmp_path).assemble({"train.pool": 2})
    found = generalisation_gap(experiment, some([1.0, 2.0, 6.0], own=[0.5, 1.5]))
    assert found["gap"] == pytest.approx(3.0 - 1.0)
    assert found["gap_half"] == pytest.approx(1.96 * np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert generalisation_gap(experiment, some([1.0, 2.0]))["gap"] is None
    other = context_of(tmp_path, "algo.train_shots=3").assemble({"train.pool": 2})
    assert generalisation_gap(other, some([1.0], own=[1.0]))["gap"] is None  # losses on 3 and on 10 shots are no pair


def test_losses_are_those_of_the_last_weights_on_the_test_tasks_and_on_the_pool(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    changes = {"train.pool": 3}
    run, experiment = context.train("one", changes), context.assemble(changes)
    found = evaluate_last_weights(experiment, run, 5)
    assert found is not None
    stored = torch.load(run.folder.last, weights_only=True)["params"]
    assert all(torch.equal(found.params[k], stored[k]) for k in stored)
    pool = experiment.dataset.tasks(experiment.train_spec)  # type: ignore[attr-defined]
    test = experiment.dataset.episodes("test", 0, 0, range(5), experiment.test_spec)
    for tasks, losses in ((pool, found.own), (test, found.new)):
        assert losses is not None
        by_hand, _ = adaptation_curves(experiment.algorithm, stored, tasks, (2,), None)
        torch.testing.assert_close(losses, by_hand[:, 0].double())


def test_exchanged_tasks_are_spread_through_the_pool() -> None:
    assert choose_replaced(3, 30) == [0, 10, 20]
    assert choose_replaced(2, 2) == [0, 1]
    assert choose_replaced(1, 7) == [0]


# replace_one


def test_an_identical_run_changes_nothing_and_a_replaced_task_does(tmp_path: Path) -> None:
    rows, summary = rows_of(context_of(tmp_path), ReplaceOne(pools=(2, 3), replaced=2, tasks=5))
    assert [(r["pool"], r["run"], r["task"]) for r in rows if r["pool"] == 2] == [
        (2, "again", None), (2, "seed", None), (2, "replaced", 0), (2, "replaced", 1),
    ]  # fmt: skip
    for row in rows:
        numbers = [row[k] for k in ("distance", "relative", "mean", "sup", "median")]
        assert all(n == 0 for n in numbers) if row["run"] == "again" else all(n > 0 for n in numbers)
        assert ("gap" in row) == (row["run"] == "again")
    assert summary["repeatable"]
    two = [r for r in rows if r["pool"] == 2 and r["run"] == "replaced"]
    assert summary["pools"][0]["sup"] == max(r["sup"] for r in two)
    assert summary["pools"][0]["mean"] == pytest.approx(np.mean([r["mean"] for r in two]))
    assert "message" in summary


def test_runs_on_a_pool_and_on_its_neighbour_differ_in_that_task_alone(tmp_path: Path) -> None:
    """A task that the few outer steps never drew changes nothing at all."""
    context = context_of(tmp_path, "train.steps=1", "train.tasks=1")
    rows, _ = rows_of(context, ReplaceOne(pools=(3,), replaced=3, tasks=4))
    moved = [r["distance"] > 0 for r in rows if r["run"] == "replaced"]
    assert moved.count(True) == 1


def test_an_unrepeatable_run_is_told(tmp_path: Path) -> None:
    analysis, context = ReplaceOne((2,), 1, 5), context_of(tmp_path)
    rows, _ = rows_of(context, analysis)
    rows[0]["distance"] = 1e-9
    summary = analysis.summarise(context, rows)
    assert not summary["repeatable"]
    assert "did not give the same weights" in summary["message"]


# data_amount


def test_amounts_of_tasks_give_both_figures_and_their_gap(tmp_path: Path) -> None:
    rows, summary = rows_of(context_of(tmp_path), DataAmount(of="tasks", amounts=(2, 4), seeds=2, tasks=5))
    assert [(r["amount"], r["seed"]) for r in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    for row in rows:
        assert row["gap"] == pytest.approx(row["test"] - row["train"])
    assert summary["amounts"][0]["test"] == pytest.approx(np.mean([r["test"] for r in rows[:2]]))
    configs = [yaml.safe_load(p.read_text()) for p in sorted(tmp_path.glob("runs/*/config.yaml"))]
    assert [(c["train"]["pool"], c["train"]["pool_seed"], c["seed"]) for c in configs] == [
        (2, 0, 0), (2, 1, 1), (4, 0, 0), (4, 1, 1),
    ]  # fmt: skip


def test_the_reference_line_is_fitted_by_least_squares() -> None:
    n = [4.0, 16.0, 100.0]
    exact = fit_gap([(k, 3.0 * k**-0.5) for k in n])
    assert exact["c"] == pytest.approx(3.0)
    assert exact["exponent"] == pytest.approx(-0.5)
    noisy = [(4.0, 1.0), (16.0, 1.0), (100.0, 0.2)]
    c = np.linalg.lstsq(np.array(n)[:, None] ** -0.5, np.array([1.0, 1.0, 0.2]), rcond=None)[0][0]
    assert fit_gap(noisy)["c"] == pytest.approx(c)
    assert fit_gap([(4.0, -1.0), (16.0, 1.0)])["exponent"] is None
    assert fit_gap([]) == {"c": None, "exponent": None, "exponent_half": None}


def test_amounts_that_cannot_be_had_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"analysis.of=classes: these data are regression"):
        run_analysis(DataAmount("classes", (2,), 1, 5), context_of(tmp_path), said)
    with pytest.raises(UserError, match=r"training tasks are .* 3-shot"):
        run_analysis(DataAmount("tasks", (2,), 1, 5), context_of(tmp_path, "algo.train_shots=3"), said)
    assert not (tmp_path / "runs").exists()


# seeds


def test_seeds_give_the_run_in_question_its_place_and_train_the_others(tmp_path: Path) -> None:
    source = RunFolder(tmp_path / "run")
    config = compose([*TINY, "seed=1"])
    train_job(config, source, quiet=True)
    context = Context(config, source, tmp_path / "analysis", train_job)
    rows, summary = rows_of(context, Seeds(seeds=3))
    assert [r["seed"] for r in rows] == [1, 0, 2]
    assert sorted(p.name for p in (tmp_path / "analysis/runs").iterdir()) == ["seed-0", "seed-2"]
    assert rows[0]["mean"] == source.read_summary()["mean"]
    means = [r["mean"] for r in rows]
    assert summary["mean"] == pytest.approx(np.mean(means))
    assert summary["half"] == pytest.approx(4.302653 * np.std(means, ddof=1) / math.sqrt(3), rel=1e-5)
    scores = np.array([r["scores"] for r in rows])
    assert scores.mean(1) == pytest.approx(means, rel=1e-5)
    assert summary["components"]["seed_raw"] == pytest.approx(variance_components(scores).seed_raw)
    if summary["convergence"]:  # some seed improved in its two validations
        assert len(summary["convergence"]["steps"]) == 3


def test_a_run_with_other_settings_or_without_an_end_is_not_taken_for_the_seed(tmp_path: Path) -> None:
    source = RunFolder(tmp_path / "run")
    train_job(compose(TINY), source, quiet=True)

    def found(*more: str, seed: int = 0) -> bool:
        return find_source_run(Context(compose([*TINY, *more]), source, tmp_path, train_job), seed) is not None

    assert found()
    assert not found("optim.lr=0.5")
    assert not found(seed=1)
    summary = source.read_summary()
    source.write_json("summary.json", summary | {"status": "interrupted"})
    assert not found()


def test_diverged_seeds_are_counted_and_left_out(tmp_path: Path) -> None:
    """An inner rate of 1e20 leaves no finite loss."""
    rows, summary = rows_of(context_of(tmp_path, "algo.inner_lr=1e20"), Seeds(seeds=2))
    assert all(r["diverged"] for r in rows)
    assert (summary["diverged"], summary["message"]) == (2, "every seed diverged")
    analysis, context = Seeds(2), context_of(tmp_path)
    sound = context_of(tmp_path / "sound")
    more, _ = rows_of(sound, analysis)
    mixed = analysis.summarise(context, [*more, rows[0]])
    assert (mixed["seeds"], mixed["diverged"]) == (3, 1)
    assert mixed["mean"] == pytest.approx(np.mean([r["mean"] for r in more]))


# stability_map


def test_the_map_has_each_rate_by_each_number_of_steps_and_says_what_diverged(tmp_path: Path) -> None:
    analysis = StabilityMap(rates=(1.0, 1e22), steps=(1, 2), seeds=2, train_steps=3, tasks=5)
    rows, summary = rows_of(context_of(tmp_path), analysis)
    assert [(r["inner_lr"], r["inner_steps"], r["diverged"]) for r in rows] == [
        (0.01, 1, 0.0), (0.01, 2, 0.0), (1e20, 1, 1.0), (1e20, 2, 1.0),
    ]  # fmt: skip
    sound, broken = rows[0], rows[2]
    assert broken["figure"] is None
    assert sound["rate_curvature"] > 0
    configs = [yaml.safe_load(p.read_text()) for p in (tmp_path / "runs").glob("rate-0.01-steps-2-*/config.yaml")]
    assert [(c["train"]["steps"], c["algo"]["inner_steps"], c["algo"]["test_inner_steps"]) for c in configs] == [
        (3, 2, 2), (3, 2, 2),
    ]  # fmt: skip
    assert summary["sound"] == 2
    assert summary["best"]["figure"] == min(r["figure"] for r in rows[:2])


@pytest.mark.usefixtures("elsewhere")
def test_learners_without_inner_loop_have_no_map_but_fewer_classes(tmp_path: Path, place: Path) -> None:
    small = ["algo=protonet", "data=folder", f"data.root={place}", "data.ways=2", "data.image_size=16"]
    small += ["data.queries=1", "data.test_queries=1", "train.steps=1", "train.tasks=1", "val.tasks=2", "test.tasks=2"]
    context = Context(compose([*small, "device.threads=1", "report=false"]), None, tmp_path / "analysis", train_job)
    with pytest.raises(UserError, match="has no inner loop with a rate to change"):
        StabilityMap((1.0,), (1,), 1, 1, 2).cells(context)
    rows, _ = rows_of(context, DataAmount(of="classes", amounts=(2, 3), seeds=1, tasks=4))
    for row in rows:
        assert row["gap"] == pytest.approx(row["train"] - row["test"])  # of an accuracy
    split = json.loads((tmp_path / "analysis/runs/classes-2-seed-0/split.json").read_text())
    assert len(split["train"]) == 2
    with pytest.raises(UserError, match=r"data.train_classes=99: must be 1 to"):
        run_analysis(DataAmount("classes", (2, 99), 1, 4), context, said)


# inner_loops

SMALL = ["experiment=stability_study", *TINY[:-2], "model.hidden=[8]", "analysis.seeds=2", "analysis.tasks=5"]
SMALL += ["analysis.pool=3", "analysis.replaced=2"]
TWO = [
    {"name": "descent", "learner": "maml", "settings": {"inner_steps": 2, "test_inner_steps": 2}},
    {"name": "prox, λ=1", "learner": "imaml", "settings": {"inner_steps": 3, "test_inner_steps": 3, "prox": 1.0}},
]


def inner_loops(folder: Path, **changes: Any) -> tuple[Context, InnerLoops]:
    config = compose(SMALL)
    config.analysis |= {"variants": TWO, **changes}
    return Context(config, None, folder, train_job), build("analysis", config.analysis)


def test_inner_loops_are_measured_on_the_same_tasks_with_their_cost(tmp_path: Path) -> None:
    context, analysis = inner_loops(tmp_path)
    rows, summary = rows_of(context, analysis)
    assert [(r["variant"], r["seed"]) for r in rows] == [(v["name"], s) for v in TWO for s in (0, 1)]
    assert [(r["inner_gradients"], r["hessian_products"]) for r in rows[::2]] == [(2, 2), (3, 5)]
    configs = {p.parent.name: yaml.safe_load(p.read_text()) for p in (tmp_path / "runs").glob("*/config.yaml")}
    assert len(configs) == 2 * 2 * (1 + 2 + 1)
    assert {c["train"]["pool"] for c in configs.values()} == {3}
    chosen = configs["descent-seed-1-replaced-1"]
    assert (chosen["seed"], chosen["train"]["pool_seed"], chosen["train"]["pool_replaced"]) == (1, 1, 1)
    assert chosen["algo"]["inner_lr"] == 0.01
    floor = configs["prox_λ=1-seed-1-floor"]
    assert (floor["seed"], floor["train"]["pool_seed"], floor["train"]["pool_replaced"]) == (1001, 1, None)
    assert floor["algo"]["_target_"].endswith("IMAML")
    for row in rows:
        assert row["gap"] == pytest.approx(row["new_loss"] - row["own_loss"])
        assert row["change_sup"] >= row["change_mean"] > 0
        assert (row["runs"], row["diverged"]) == (4, 0)
        assert row["cpu_seconds"] > 0
        assert row["rate_curvature"] > 0
    assert [v["name"] for v in summary["variants"]] == [v["name"] for v in TWO]
    assert summary["variants"][0]["test"]["mean"] == pytest.approx(np.mean([r["test"] for r in rows[:2]]))
    assert (tmp_path / "gap.png").exists()


def test_a_change_is_the_mean_over_exchanged_tasks_and_its_supremum_the_largest(tmp_path: Path) -> None:
    context, analysis = inner_loops(tmp_path, seeds=1, variants=TWO[:1])
    (row,), _ = rows_of(context, analysis)
    changes = analysis.changes(TWO[0], 0)
    experiment = context.assemble(changes)
    state = {k: evaluate_last_weights(experiment, context.train(f"descent-seed-0-{k}", changes), 5)
             for k in ("base", "replaced-0", "replaced-1", "floor")}  # fmt: skip
    both = [compare_outcomes(state["base"], state[k]) for k in ("replaced-0", "replaced-1")]
    assert row["change_mean"] == pytest.approx(np.mean([c["mean"] for c in both]))
    assert row["change_sup"] == max(c["sup"] for c in both)
    assert row["floor_mean"] == compare_outcomes(state["base"], state["floor"])["mean"]


def test_variants_that_diverge_are_told_and_drawn(tmp_path: Path) -> None:
    context, analysis = inner_loops(tmp_path, shared={"inner_lr": 1e20}, seeds=1)
    rows, summary = rows_of(context, analysis)
    assert all(r["diverged"] == 4 and r.get("test") is None for r in rows)
    assert summary["message"] == "every variant diverged"


def refused(folder: Path, variants: list[dict[str, Any]]) -> None:
    context, analysis = inner_loops(folder, variants=variants)
    run_analysis(analysis, context, said)


def test_wrong_variants_are_refused_before_the_first_training(tmp_path: Path) -> None:
    wrong = {
        "did you mean imaml or maml": [{"name": "a", "learner": "immaml"}],
        "must have names of their own": [TWO[0], TWO[0]],
        "algo.proxx=1: this run has no such setting": [{"name": "a", "learner": "maml", "settings": {"proxx": 1}}],
        "is no name of a variant": [{"learner": "maml"}],
    }
    for message, variants in wrong.items():
        with pytest.raises(UserError, match=message):
            refused(tmp_path, variants)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["stability_map", "replace_one", "data_amount", "seeds", "inner_loops"])
def test_shipped_settings_build(name: str) -> None:
    config = compose([f"analysis={name}"])
    assert build("analysis", config.analysis)
    assert json.dumps(config.analysis)
