"""The probe as a whole: what it measures for which learner, that it is a function of theta alone, and real runs."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import metarun
from metarun.compute.device import Placement
from metarun.config.schema import DiagnosticsConfig
from metarun.diagnostics.probe import Probe
from metarun.diagnostics.task_sample import network_weights
from metarun.testing.episodes import Blobs
from metarun.training.experiment import assemble, build_learner
from metarun.types import EpisodeSpec, Params, Split, Task

SMALL = ["diagnostics=full", "diagnostics.probe_tasks=3", "diagnostics.lanczos_steps=4", "diagnostics.unroll_steps=3"]
SMALL += ["model.hidden=[6,5]", "data.shots=4", "data.queries=3", "device.threads=1"]

RATE = 0.01
"""Of the outer step."""
OF_OBJECTIVE = {"probe_loss", "true_grad_norm2", "true_grad_norm2_raw", "sharpness", "smoothness"}
OF_OBJECTIVE |= {"outer_rate_curvature", "outer_hessian_residual"}
OF_BIAS = {"first_order_cosine", "first_order_ratio", "meta_grad_cosine", "meta_grad_ratio", "meta_grad_error"}
OF_CURVATURE = {f"hessian_{end}_{at}" for end in ("max", "min") for at in ("theta", "phi")}
OF_CURVATURE |= {f"hessian_residual_{end}_{at}" for end in ("max", "min") for at in ("theta", "phi")}
OF_RATE = {"rate_curvature", "rate_curvature_max"}
OF_JACOBIAN = {"jacobian_growth", "jacobian_norm"}
OF_LAYERS = {"cka/block0", "cka/block1", "cka/features"}
OF_INNER_LOOP = OF_BIAS | OF_CURVATURE | OF_RATE | OF_JACOBIAN | OF_LAYERS | {"gain_from_body"}
OF_PROX = {"implicit_error", "implicit_cosine", "unroll_stationarity", "prox_margin"}


def probe_of(*overrides: str) -> tuple[Probe, Params]:
    experiment = assemble(metarun.compose([*SMALL, *overrides]))
    return experiment.probe(), experiment.initial_params()


@cache
def on_sinusoids(*overrides: str) -> dict[str, float]:
    probe, params = probe_of(*overrides)
    return probe(params, RATE)


def on_blobs(*overrides: str, chunk: Any = None) -> Probe:
    """Small images, a small Conv4 and three tasks."""
    config = metarun.compose(["model=conv4", "model.filters=4", "model.norm=batch", *overrides])
    dataset, spec = Blobs(), EpisodeSpec(3, 2, 2)
    placement = Placement(torch.device("cpu"), torch.float64, chunk, compile=False)
    settings = DiagnosticsConfig(probe_tasks=3, lanczos_steps=3, unroll_steps=2)
    return Probe(build_learner(config, dataset, 3), dataset, spec, placement, settings)


def start(probe: Probe) -> Params:
    return probe.placement.move_params(probe.algorithm.init(0))


@pytest.mark.parametrize("algo", ["maml", "fomaml", "reptile", "imaml"])
def test_an_inner_loop_on_regression_has_everything_but_what_is_of_classes(algo: str) -> None:
    fixed_rate = ["algo.inner_solver=gradient"] if algo == "imaml" else []  # else no rate times curvature
    found = on_sinusoids(f"algo={algo}", *fixed_rate)
    prox = OF_PROX if algo == "imaml" else set()
    assert set(found) == OF_OBJECTIVE | OF_INNER_LOOP | prox | {"full_mse", "head_only_mse"}
    assert all(type(v) is float and math.isfinite(v) for v in found.values())


@pytest.mark.parametrize(
    "overrides",
    [
        ("algo=metasgd",),
        ("algo=metasgd", "algo.adapted=[block0]"),  # the head stays
        ("algo=mamlpp", "algo.inner_steps=2"),
        ("algo=reptile", "algo.inner_optimizer=adam", "algo.inner_steps=2", "algo.moments=carried"),
        ("algo=maml", "reg=prox_l2", "reg.learned=true"),
        (
            "algo=imaml",
            "algo.inner_solver=gradient",
            "algo.inner_steps=2",
            "reg=l2",
            "reg.where=inner",
            "reg.schedule=linear",
        ),
    ],
    ids=" ".join,
)
def test_meta_parameters_that_are_not_weights_are_constants_of_every_measure(overrides: tuple[str, ...]) -> None:
    probe, params = probe_of(*overrides)
    assert set(network_weights(params)) < set(params)
    found = probe(params, RATE)
    prox = OF_PROX if "algo=imaml" in overrides else set()
    rate = OF_RATE if "reg=prox_l2" in overrides or "reg=l2" in overrides else set()  # else no plain gradient descent
    assert set(found) == OF_OBJECTIVE | (OF_INNER_LOOP - OF_RATE) | rate | prox | {"full_mse", "head_only_mse"}
    assert all(math.isfinite(v) for v in found.values())


@pytest.mark.parametrize("algo", ["maml", "imaml", "reptile"])
def test_a_meta_parameter_that_nothing_reads_changes_no_measure(algo: str) -> None:
    """As an entry of theta it would add an eigenvalue of 0 (or lambda) to spectra, and 1 to the Jacobian's."""
    probe, params = probe_of(f"algo={algo}")
    assert probe({**params, "reg.l2.weight": torch.tensor(0.5)}, RATE) == on_sinusoids(f"algo={algo}")


def test_learned_rates_that_are_all_inner_lr_measure_as_maml_does() -> None:
    rates, plain = on_sinusoids("algo=metasgd", "algo.inner_lr=0.02"), on_sinusoids("algo=maml", "algo.inner_lr=0.02")
    assert rates == {name: pytest.approx(value, rel=1e-5, abs=1e-7) for name, value in plain.items() if name in rates}
    assert set(plain) - set(rates) == OF_RATE


@pytest.mark.parametrize("algo", ["maml", "imaml", "reptile", "protonet", "matchingnet"])
def test_on_images_learners_with_and_without_an_inner_loop_have_what_exists_for_them(algo: str) -> None:
    inner = {
        "imaml": ["algo.inner_steps=2", "algo.inner_solver=gradient"],
        "reptile": ["algo.inner_steps=2", "algo.inner_optimizer=adam"],
    }
    probe = on_blobs(f"algo={algo}", *inner.get(algo, []))
    found = probe(start(probe), RATE)
    expected = OF_OBJECTIVE | {"class_separation"}
    if algo not in ("protonet", "matchingnet"):
        layers = {f"cka/{layer}" for layer in ("block0", "block1", "block2", "block3", "features")}
        expected |= OF_INNER_LOOP - OF_LAYERS | layers | {"full_accuracy", "head_only_accuracy", "nil_accuracy"}
        expected -= OF_RATE if algo == "reptile" else set()  # its inner loop is Adam's
        expected |= OF_PROX if algo == "imaml" else set()
    assert set(found) == expected
    assert all(math.isfinite(v) for v in found.values())


def test_mamls_meta_gradient_is_that_of_the_true_objective_and_fomamls_is_the_first_order_one() -> None:
    maml, fomaml = on_sinusoids("algo=maml"), on_sinusoids("algo=fomaml")
    assert (maml["meta_grad_cosine"], maml["meta_grad_ratio"]) == pytest.approx((1, 1), abs=1e-6)
    assert maml["meta_grad_error"] < 1e-6
    assert fomaml["meta_grad_cosine"] == pytest.approx(maml["first_order_cosine"], abs=1e-6)
    assert fomaml["meta_grad_ratio"] == pytest.approx(maml["first_order_ratio"], rel=1e-5)
    same = set(maml) - OF_BIAS
    assert {k: maml[k] for k in same} == {k: fomaml[k] for k in same}


@pytest.mark.parametrize(
    ("algo", "norm"),
    [
        ("maml", "support"),
        pytest.param("imaml", "population", marks=pytest.mark.long),
        pytest.param("reptile", "batch", marks=pytest.mark.long),
        ("protonet", "batch"),
    ],
)
def test_tasks_together_by_vmap_are_measured_as_one_by_one(algo: str, norm: str) -> None:
    steps = [] if algo == "protonet" else ["algo.inner_steps=2"]
    together, alone = (on_blobs(f"algo={algo}", f"model.norm={norm}", *steps, chunk=chunk) for chunk in (None, 1))
    first, second = together(start(together), RATE), alone(start(alone), RATE)
    assert list(first) == list(second)
    for name, value in first.items():
        assert value == pytest.approx(second[name], rel=1e-6, abs=1e-9), name


def test_a_probe_is_a_function_of_theta_alone() -> None:
    probe, params = probe_of()
    before = {k: v.clone() for k, v in params.items()}
    first = probe(params, RATE)
    torch.manual_seed(1)
    assert probe(params, RATE) == first
    assert all(torch.equal(v, before[k]) for k, v in params.items())
    other, _ = probe_of("seed=5", "train.tasks=7", "val.tasks=3")
    assert other(params, RATE) == first
    assert probe({k: v + 0.01 for k, v in params.items()}, RATE) != first


def test_probe_tasks_are_drawn_once_from_the_training_split_apart_from_training() -> None:
    asked = []

    class Watched(Blobs):
        def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
            asked.append((split, seed, step, tasks, spec))
            return super().episodes(split, seed, step, tasks, spec)

    plain = on_blobs("algo=protonet")
    probe = Probe(plain.algorithm, Watched(), plain.spec, plain.placement, plain.settings)
    assert asked == []
    for _ in range(2):
        probe(start(probe), RATE)
    assert asked == [("train", 0, 2**40, range(3), EpisodeSpec(3, 2, 2))]


def test_images_on_a_cpu_are_probed_one_task_at_a_time_unless_told_otherwise() -> None:
    assert on_blobs("algo=maml", chunk="auto").tasks.chunk == 1
    assert on_blobs("algo=maml", chunk=2).tasks.chunk == 2
    assert on_blobs("algo=maml", chunk=None).tasks.chunk is None
    assert probe_of()[0].tasks.chunk is None  # inputs of a few numbers: all at once


@pytest.mark.parametrize("algo", ["maml", "imaml", "reptile"])
@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_weights_that_are_not_finite_or_huge_are_measured_without_an_error(algo: str, value: float) -> None:
    probe, params = probe_of(f"algo={algo}")
    found = probe({k: torch.full_like(v, value) for k, v in params.items()}, RATE)
    assert set(found) == set(on_sinusoids(f"algo={algo}"))
    assert not math.isfinite(found["probe_loss"])


@pytest.mark.parametrize(
    "changed", ["model.norm=batch", "algo.inner_steps=3", "diagnostics.probe_tasks=1", "diagnostics.lanczos_steps=500"]
)
def test_other_settings_are_measured_too(changed: str) -> None:
    found = on_sinusoids("algo=maml", changed)
    expected = set(on_sinusoids("algo=maml")) - ({"true_grad_norm2"} if "probe_tasks" in changed else set())
    assert set(found) == expected
    assert all(math.isfinite(v) for v in found.values())


TINY = [*SMALL, "train.tasks=2", "train.log_every=4", "train.eval_every=4", "train.checkpoint_every=4", "val.tasks=2"]
TINY += ["test.tasks=2", "test.steps=1", "device.compile=false", "report=false", "diagnostics.every=4"]


def trained(folder: Path, steps: int, *overrides: str, resume: bool = False) -> Path:
    config = metarun.compose([*TINY, f"train.steps={steps}", *overrides])
    config.resume = str(folder) if resume else None
    assert metarun.run(config, folder).status == "completed"
    return folder / "metrics.jsonl"


def probes_in(path: Path) -> dict[int, dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {r["step"]: r for r in records if r["kind"] == "probe"}


def test_a_run_probes_every_so_many_steps_and_at_the_last(tmp_path: Path) -> None:
    found = probes_in(trained(tmp_path, 10))
    assert list(found) == [4, 8, 10]
    assert len({record["probe_loss"] for record in found.values()}) == 3


@pytest.mark.parametrize("algo", [["algo=maml"], ["algo=imaml", "algo.test_inner_steps=1", "optim.schedule=constant"]])
def test_a_run_that_is_continued_has_the_same_bytes(algo: list[str], tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 12, *algo).read_bytes()
    trained(tmp_path / "part", 8, *algo)
    assert trained(tmp_path / "part", 12, *algo, resume=True).read_bytes() == whole
    assert whole.count(b'"kind": "probe"') == 3


def test_probing_changes_nothing_else(tmp_path: Path) -> None:
    full = trained(tmp_path / "full", 8)
    basic = trained(tmp_path / "basic", 8, "diagnostics.level=basic")
    assert probes_in(basic) == {}
    others = [line for line in full.read_text().splitlines() if json.loads(line)["kind"] != "probe"]
    assert others == basic.read_text().splitlines()
