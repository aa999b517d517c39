"""What the benchmark against other libraries compares: every side computes the same loss, gradient and update."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.loop import COLUMNS, FEWEST_STEPS, measure
from benchmarks.peers import peer_loop, peer_metarun, table, tasks
from benchmarks.peers.cases import CASES, Case, grid
from benchmarks.peers.measure import Disagreement, Expected, Failed, gradient_error, prepared, summary
from benchmarks.peers.tasks import Work

SMALL = ("train.tasks=2",)
SMALL_IMAGES = ("model.filters=4", "data.image_size=16", "data.ways=3")
BY_NAME = {case.name: case for case in CASES}
SECOND_ORDER = ("sinusoid-maml-5", "omniglot-maml-1q-5")
COMPARED = [n for n in BY_NAME if not n.endswith("60w")]
SOME = ("sinusoid-maml-5", "sinusoid-imaml-5", "sinusoid-reptile-5", "omniglot-maml-1q-1", "omniglot-protonet-20w")
FEW_WAYS = ("omniglot-protonet-20w", "omniglot-matchingnet-20w")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "IMAGES", {"drawings": (25, 16, 16), "photos": (20, 17, 16)})
        for kind in tasks.IMAGES:
            tasks.synthesise(kind, folder / kind)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def tiny(name: str) -> Case:
    case = BY_NAME[name]
    own = ("algo.train_ways=6",) if name in FEW_WAYS else ()
    # Where it meets negative curvature, metarun's conjugate gradient stops and the loop's goes on.
    own += ("algo.cg_damping=30",) if "imaml" in name else ()
    return replace(case, overrides=(*case.overrides, *SMALL, *(SMALL_IMAGES if case.images else ()), *own))


def drawn(name: str, images: Path) -> tuple[Case, Work]:
    case = tiny(name)
    return case, tasks.draw(case, images, threads=1, dtype="float64")


def metarun_side(case: Case, images: Path) -> tasks.Side:
    return peer_metarun.build(case, images, 1, "float64", "device.compile=false")


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    assert gradient_error(found[1], expected[1]) < 1e-8


@pytest.mark.parametrize("name", [n if n in SOME else pytest.param(n, marks=pytest.mark.long) for n in COMPARED])
def test_metarun_and_the_plain_loop_compute_and_step_the_same(name: str, images: Path) -> None:
    case, work = drawn(name, images)
    ours, loop = metarun_side(case, images), peer_loop.build(work)
    assert_same(ours.gradient(), loop.gradient())
    ours.step(), loop.step()
    assert_same(ours.gradient(), loop.gradient())


@pytest.mark.parametrize("name", ["omniglot-maml-1q-1", "omniglot-protonet-20w"])
def test_the_torch_module_as_metaruns_network_computes_and_steps_the_same(name: str, images: Path) -> None:
    case = tiny(name)
    ours, module = (
        build(case, images, 1, "float64", "device.compile=false")
        for build in (peer_metarun.build, peer_metarun.build_module)
    )
    assert_same(module.gradient(), ours.gradient())
    module.step(), ours.step()
    assert_same(module.gradient(), ours.gradient())


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.parametrize("peer", ["higher", "torchopt"])
def test_torch_libraries_compute_and_step_the_same(peer: str, name: str, images: Path) -> None:
    pytest.importorskip(peer, reason=f"{peer} is not installed (extra bench)")
    _, work = drawn(name, images)
    side, loop = importlib.import_module(f"benchmarks.peers.peer_{peer}").build(work), peer_loop.build(work)
    assert_same(side.gradient(), loop.gradient())
    side.step(), loop.step()
    assert_same(side.gradient(), loop.gradient())


@pytest.mark.parametrize("form", ["vmap", "map", "unrolled", "patches"])
@pytest.mark.parametrize("name", ["sinusoid-maml-5", "omniglot-maml-1q-1"])
def test_every_form_of_jax_computes_the_same(name: str, form: str, images: Path) -> None:
    pytest.importorskip("optax", reason="jax and optax are not installed (extra bench)")
    peer_jax = importlib.import_module("benchmarks.peers.peer_jax")
    _, work = drawn(name, images)
    assert_same(peer_jax.build(work, form).gradient(), peer_loop.build(work).gradient())


class Answers:
    """A process with its answers to commands, or that fails."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def ask(self, *command: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer[command[0]]


EXACT = Expected((1.0, {"w": np.array([3.0, 4.0])}), [1.0, 0.5])
NO_WORK: Any = (None, None)


def test_a_side_that_disagrees_ends_the_benchmark() -> None:
    def check(loss: float, w: list[float], *losses: float) -> Any:
        process: Any = Answers({"exact": (loss, {"w": np.array(w)}), "build": {"losses": losses, "first_s": 0.1}})
        return prepared("higher", process, NO_WORK, EXACT, lambda line: None)

    assert check(1.0, [3.0, 4.000001], 1.00001, 0.501)["gradient_error"] == pytest.approx(2e-7, rel=1e-3)
    for wrong in (
        (1.0, [3.0, 4.0001], 1.0, 0.5),
        (1.1, [3.0, 4.0], 1.0, 0.5),
        (1.0, [3.0], 1.0, 0.5),
        (1.0, [3.0, 4.0], 1.01, 0.5),
        (1.0, [3.0, 4.0], 1.0, 1.0),
        (1.0, [3.0, 4.0], 1.0, float("nan")),
    ):
        with pytest.raises(Disagreement, match="higher: "):
            check(*wrong)


def test_a_peer_that_is_not_there_is_named_in_the_table() -> None:
    missing: Any = Answers(Failed("not installed: higher"))
    found = prepared("higher", missing, NO_WORK, EXACT, lambda line: None)
    assert table.row("higher", found, 25).split(maxsplit=1) == ["higher", "not installed: higher"]
    with pytest.raises(Failed):
        prepared("metarun", missing, NO_WORK, EXACT, lambda line: None)


def test_ratios_are_taken_round_by_round() -> None:
    found = summary([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert found["metarun_is_faster_by"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert found["step_s"]["median"] == 4.0


def test_the_grid_has_every_cell_once_the_smallest_first() -> None:
    names = [case.name for case in grid()]
    assert len(names) == len(set(names)) == 48
    assert names[0] == "5w1s1q-4t-32f"


def test_an_earlier_run_is_shown_as_a_table() -> None:
    def found(*seconds: float) -> dict[str, Any]:
        return summary(list(seconds), [0.1, 0.2]) | {"peak_mb": 300.0}

    sides = {"metarun": found(0.1, 0.2), "loop": found(0.3, 0.4), "jax": {"why": "not installed: jax"}}
    shown = table.markdown({"results": [{"title": "a case", "tasks": 25, "sides": sides}]})
    assert shown[0] == "| work | metarun, ms | tasks/s | MB | jax | loop |"
    assert shown[2] == "| a case | 150 | 167 | 300 | cannot | 2.5x (2-3) |"


def test_the_loop_is_measured_with_its_records_and_checkpoints() -> None:
    small = ["train.tasks=2", "train.log_every=1", "train.checkpoint_every=1", "device.compile=false"]
    found = measure("maml", "sinusoid", 0.0, small)
    assert found["steps"] == FEWEST_STEPS
    assert {"meta-gradient", *COLUMNS} <= found.keys()
