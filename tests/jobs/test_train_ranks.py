"""Several processes train one run: torchrun's, on this machine, held against the same run in one process."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bad_steps import bad
from helpers.colours import class_folders
from helpers.ranks import ENDLESS, FEW, ROOT, start_ranks

import metarun
from metarun.compute import distributed
from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.training import checkpoint

pytestmark = pytest.mark.xdist_group("parallel")  # what they compare with is made once
WORKER = ROOT / "tests/helpers/rank_worker.py"
LONG = ["train.steps=20", "train.log_every=10", "train.eval_every=10", "train.checkpoint_every=10", *FEW]
SHORT = ["train.steps=6", "train.log_every=3", "train.eval_every=3", "train.checkpoint_every=3", *FEW]
PROBES = ["diagnostics=full", "diagnostics.every=6", "diagnostics.probe_tasks=3", "diagnostics.lanczos_steps=3"]
PROBES += ["diagnostics.tasks=3", "diagnostics.unroll_steps=5"]
IMAGES = [
    "data=folder",
    "data.image_size=16",
    "data.ways=3",
    "data.queries=2",
    "data.test_queries=2",
    "model.filters=4",
]
EXACT = ["device.precision=float64"]

NOISE = ["reg=information", "reg.form=activations", "reg.encoder=[block0,block1]", "algo.adapted=[block2,head]"]
NOISE += ["model.hidden=[8,4,8]", "model.linear_blocks=[1]"]

CASES: dict[str, list[str]] = {
    "maml": ["algo=maml", "train.tasks=4", *LONG],
    "maml in float64": ["algo=maml", "train.tasks=5", *LONG, *EXACT],
    "probes": ["algo=maml", "train.tasks=4", *SHORT, *PROBES, *EXACT],
    "reptile": ["algo=reptile", "train.tasks=5", *LONG, *EXACT],
    "imaml": ["algo=imaml", "train.tasks=2", *SHORT, *PROBES, *EXACT],
    "pool": ["algo=maml", "train.tasks=3", "train.pool=5", *SHORT, *EXACT],
    "penalties": [
        "algo=maml", "train.tasks=4", "reg=[coherence,l1,prox_l2]", "reg.coherence.weight=0.1", "reg.l1.weight=1e-3",
        *SHORT, *EXACT,
    ],
    "noise": ["algo=maml", "train.tasks=5", *NOISE, *SHORT, *EXACT],
    "protonet": ["algo=protonet", *IMAGES, "train.tasks=3", *SHORT, *EXACT],
    "augmented": ["algo=maml", *IMAGES, "data.crop=2", "data.flip=true", "train.tasks=3", *SHORT, *EXACT],
    "skipped": ["algo=maml", "train.tasks=4", "algo.inner_lr=1e200", "train.on_nonfinite=skip", *SHORT, *EXACT],
    "rewound": ["algo=maml", "train.tasks=4", "train.on_nonfinite=rewind", *bad(4), *SHORT, *EXACT],
    "diverged": ["algo=maml", "train.tasks=4", "algo.inner_lr=1e200", *SHORT, *EXACT],
}  # fmt: skip
HALF = [s.replace("steps=20", "steps=10") for s in CASES["maml in float64"]]
SAMPLE = ("maml in float64", "protonet", "diverged")
NAMES = [pytest.param(name, marks=[] if name in SAMPLE else [pytest.mark.long]) for name in CASES]
WITH_THREE = ("imaml", "noise", "penalties")
"""Five tasks do not divide by three, and of two one rank has none."""

CLOSE = {"maml": 1e-6, "protonet": 1e-10}
NEARLY_EXACT = 1e-12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("images"), [f"class{i:02d}" for i in range(15)], each=5)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


def settings_of(name: str, images: Path) -> list[str]:
    return [*CASES[name], f"data.root={images}"] if "data=folder" in CASES[name] else CASES[name]


def work(processes: int, cases: Sequence[dict], place: Path) -> None:
    """Run the cases in that many processes."""
    (place / "ranks").mkdir(parents=True)
    (place / "cases.json").write_text(json.dumps(cases))
    process = start_ranks(processes, str(WORKER), "cases.json", cwd=place)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> list[str]:
    """The cases of the tests that are run, and those that all others look at."""
    named = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    return [name for name in CASES if name in SAMPLE or name in named]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, images: Path, asked: list[str]) -> dict[str, Path]:
    """Every case in one process; what it left."""
    place, found = tmp_path_factory.mktemp("alone"), {}
    for name in asked:
        metarun.run(metarun.compose(settings_of(name, images)), place / name)
        found[name] = place / name
    return found


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, images: Path, asked: list[str], alone: dict[str, Path]) -> Path:
    place = tmp_path_factory.mktemp("two")
    cases: list[dict] = [{"name": n, "settings": settings_of(n, images), "folder": str(place / n)} for n in asked]
    cases.append(half_done_by_one(place))
    cases.append({"name": "half", "settings": HALF, "folder": str(place / "half")})
    cases.append({"name": "late", "settings": [*ENDLESS, "train.max_minutes=0.01"], "folder": str(place / "late")})
    cases.append({"name": "profile", "settings": ["job=profile"], "folder": str(place / "profile")})
    evaluated = ["job=evaluate", f"run={alone['maml in float64']}", *CASES["maml in float64"]]
    cases.append({"name": "evaluated", "settings": evaluated, "folder": str(place / "evaluated")})
    work(2, cases, place)
    return place


def half_done_by_one(place: Path) -> dict:
    """A run of one process that two resume."""
    metarun.run(metarun.compose(HALF), place / "resumed")
    folder = str(place / "resumed")
    return {"name": "resumed", "settings": CASES["maml in float64"], "folder": folder, "resume": folder}


@pytest.fixture(scope="module")
def by_three(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    place = tmp_path_factory.mktemp("three")
    work(3, [{"name": n, "settings": settings_of(n, images), "folder": str(place / n)} for n in WITH_THREE], place)
    return place


def read(folder: Path, name: str) -> Any:
    text = (folder / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)


def difference(one: dict, other: dict) -> float:
    """The largest among all parameters."""
    assert list(one) == list(other)
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def assert_same_run(one: Path, other: Path, within: float) -> None:
    kept = [folder / "checkpoints/last.pt" for folder in (one, other)]
    assert kept[0].exists() == kept[1].exists()
    if kept[0].exists():
        first, second = (checkpoint.load(path) for path in kept)
        assert first["step"] == second["step"]
        assert difference(first["params"], second["params"]) <= within
    for a, b in zip(read(one, "metrics.jsonl"), read(other, "metrics.jsonl"), strict=True):
        assert_same_record(a, b, within)
    for key in ("episodes_sha256", "status", "steps_done", "best_step", "tasks_seen", "rewinds"):
        assert read(one, "summary.json").get(key) == read(other, "summary.json").get(key)
    if (one / "test.json").exists():
        scores, others = (rows_of(read(folder, "test.json")["scores"]) for folder in (one, other))
        torch.testing.assert_close(scores, others, rtol=1e3 * within, atol=1e3 * within, equal_nan=True)


def rows_of(scores: list[list[float | None]]) -> torch.Tensor:
    return torch.tensor([[math.nan if x is None else x for x in row] for row in scores])


def assert_same_record(a: dict, b: dict, within: float) -> None:
    """Measures are ratios of small numbers, with a rounding of their own."""
    assert list(a) == list(b)
    for key, value in a.items():
        if isinstance(value, float) and math.isfinite(value):
            assert b[key] == pytest.approx(value, rel=1e6 * within, abs=1e5 * within), (key, a["step"])
        else:
            assert b[key] == value, (key, a["step"])


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_the_same_run(name: str, alone: dict[str, Path], by_two: Path) -> None:
    assert_same_run(alone[name], by_two / name, CLOSE.get(name, NEARLY_EXACT))


@pytest.mark.long
@pytest.mark.parametrize("name", WITH_THREE)
def test_three_processes_train_the_same_run(name: str, alone: dict[str, Path], by_three: Path) -> None:
    assert_same_run(alone[name], by_three / name, CLOSE.get(name, NEARLY_EXACT))


@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_end_with_the_same_bits_and_one_owns_the_folder(name: str, by_two: Path) -> None:
    first, second = (read(by_two / "ranks", f"{name}-{rank}.json") for rank in range(2))
    assert first == second
    assert first["params_sha256"] == read(by_two / name, "summary.json").get("params_sha256", first["params_sha256"])
    assert not list(by_two.glob("*-of-rank-*"))


def test_a_task_that_is_not_finite_is_named_by_its_number_among_all(alone: dict[str, Path], by_two: Path) -> None:
    one, two = (read(folder / "diverged", "summary.json") for folder in (alone["diverged"].parent, by_two))
    assert one["status"] == two["status"] == "diverged"
    assert one["reason"] == two["reason"]
    assert "task 0" in two["reason"]
    assert "3 more of 4 tasks" in two["reason"]


def test_two_processes_resume_what_one_began(alone: dict[str, Path], by_two: Path) -> None:
    assert_same_run(alone["maml in float64"], by_two / "resumed", NEARLY_EXACT)


def test_one_process_resumes_what_two_began(alone: dict[str, Path], by_two: Path) -> None:
    config = metarun.compose(CASES["maml in float64"])
    config.resume = str(by_two / "half")
    metarun.run(config, by_two / "half")
    assert_same_run(alone["maml in float64"], by_two / "half", NEARLY_EXACT)


def test_the_first_ranks_clock_ends_the_run_of_all(by_two: Path) -> None:
    first, second = (read(by_two / "ranks", f"late-{rank}.json") for rank in range(2))
    assert first == second
    assert first["status"] == "time is up"
    assert read(by_two / "late", "summary.json")["steps_done"] > 0


def test_two_processes_evaluate(alone: dict[str, Path], by_two: Path) -> None:
    one, two = read(alone["maml in float64"], "summary.json"), read(by_two / "evaluated", "summary.json")
    assert two["mean"] == pytest.approx(one["mean"], rel=1e-5)
    assert (two["episodes_sha256"], two["params_sha256"]) == (one["episodes_sha256"], one["params_sha256"])
    assert (one["processes"], two["processes"]) == (1, 2)


def test_other_jobs_are_refused_in_several_processes(by_two: Path) -> None:
    for rank in range(2):
        error = read(by_two / "ranks", f"profile-{rank}.json")["error"]
        assert error == "job=profile: runs in one process, not in 2; start it without torchrun"


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_neighbours_that_make_up_all_tasks(count: int, size: int) -> None:
    shares = [ProcessGroup(rank, size).share(count) for rank in range(size)]
    assert [task for share in shares for task in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    whole = sum(
        ProcessGroup(rank, size).pad(torch.arange(count)[share.start :], count) for rank, share in enumerate(shares)
    )
    assert torch.equal(whole, torch.arange(count))  # type: ignore[arg-type]


def test_one_process_exchanges_nothing() -> None:
    tensors = {"a": torch.ones(3)}
    assert SINGLE_PROCESS.sum(tensors) is tensors
    assert SINGLE_PROCESS.gather(tensors, 3) is tensors
    assert not torch.distributed.is_initialized()


def test_what_ranks_join_keeps_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros with a sign, and NaNs with a content, of several dtypes."""
    nan = torch.tensor(0x7FC00123, dtype=torch.int32).view(torch.float32)
    numbers = torch.tensor([-0.0, float(nan), 1.5])
    three = {"a": numbers, "b": torch.tensor([True, False, True]), "c": torch.tensor([-1, 2, 3])}
    rows = [{name: x[:2] for name, x in three.items()}, three]
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(distributed, "_all_reduce", lambda flat: sent.append(flat) or sum(sent))
    for rank in (0, 1):
        found = ProcessGroup(rank, 2).gather(rows[rank], 5)
    for name, x in found.items():
        assert x.dtype == rows[0][name].dtype
        assert x.numpy().tobytes() == torch.cat([rows[0][name], rows[1][name]]).numpy().tobytes()
