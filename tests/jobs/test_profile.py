"""job=profile: phases, parts, operators, memory and operations, against hand counts and made-up traces."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.colours import class_folders
from torch.func import grad, vmap
from torch.nn.functional import conv2d

import metarun
from metarun.config.schema import Config
from metarun.data.sinusoid import Sinusoid
from metarun.errors import SettingError
from metarun.jobs.profile.flops import operations
from metarun.jobs.profile.inside import traced
from metarun.jobs.profile.marks import META, PREFIX, inside, marked, marked_loop, region, regions_of
from metarun.jobs.profile.parts import group_of, groups, kind_of, part_of, parts
from metarun.jobs.profile.phases import REST, Phase, Stopwatch, loop_phases, outside_share, step_seconds
from metarun.jobs.profile.trace import ROOT, Event, Spent, memory_peak, nested, read_trace, spent_in
from metarun.training.experiment import assemble
from metarun.training.loop import outer_step
from metarun.training.meta_gradient import build_meta_gradient

TINY = ["model.hidden=[6,5]", "algo.inner_steps=2", "val.tasks=2", "train.tasks=3", "profile.steps=2"]
NODE = "autograd::engine::evaluate_function: MulBackward0"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.jobs.profile.phases.LONG_ENOUGH", 0.0)
    monkeypatch.setattr("metarun.jobs.profile.flops.SECONDS", 0.0)


def config(*more: str) -> Config:
    return metarun.compose([*TINY, "device.compile=false", *more])


# ---------------------------------------------------------------- operations


def test_a_convolution_is_counted_as_written_out_by_hand() -> None:
    """B = 3 images, 2 -> 5 channels, 3x3 kernel, 8x8 -> 4x4: 2 * 3 * 5 * 16 * 2 * 9, and the same for each gradient."""
    x, w = torch.randn(3, 2, 8, 8), torch.randn(5, 2, 3, 3)
    forward = 2 * 3 * 5 * 16 * 2 * 9

    def loss(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return conv2d(x, w, stride=2, padding=1).square().sum()

    assert operations(lambda: loss(x, w)) == forward
    assert operations(lambda: grad(loss, argnums=1)(x, w)) == 2 * forward
    assert operations(lambda: grad(loss, argnums=(0, 1))(x, w)) == 3 * forward


def test_tasks_folded_into_groups_of_channels_are_counted_as_tasks_one_by_one() -> None:
    x, w = torch.randn(4, 3, 2, 8, 8), torch.randn(4, 5, 2, 3, 3)

    def second_order(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        inner = grad(lambda w: conv2d(x, w, padding=1).square().sum())
        return grad(lambda w: inner(w).square().sum())(w)

    together = operations(lambda: vmap(second_order)(w, x))
    assert together == 4 * operations(lambda: second_order(w[0], x[0])) > 0


def test_a_matrix_product_has_two_operations_for_each_of_its_products() -> None:
    assert operations(lambda: torch.randn(3, 4) @ torch.randn(4, 5)) == 2 * 3 * 4 * 5


# ---------------------------------------------------------------- marks


def test_marked_values_are_of_their_class_keep_their_fields_and_copy_with_their_marks() -> None:
    seen: list[str] = []
    plain = Sinusoid((0.1, 5.0), (0.0, 3.0), (-5.0, 5.0), 0.0)

    def mark(name: str) -> Any:
        seen.append(name)
        return region(name)

    watched = marked(plain, {"input_shape": "shape"}, mark)
    copied = dataclasses.replace(watched, noise=1.0)
    assert isinstance(watched, Sinusoid)
    assert dataclasses.asdict(watched) == dataclasses.asdict(plain)
    assert (watched.input_shape(), copied.input_shape(), plain.input_shape()) == ((1,), (1,), (1,))
    assert seen == ["shape", "shape"]


@pytest.mark.parametrize("algo", ["maml", "fomaml", "reptile", "imaml"])
def test_regions_do_not_change_a_meta_gradient(algo: str) -> None:
    trainer = assemble(config(f"algo={algo}")).trainer()
    params, tasks = trainer.start().params, trainer.tasks(0)
    seen = dataclasses.replace(trainer, algorithm=regions_of(trainer.algorithm))
    plain, watched = (build_meta_gradient(t)(params, tasks) for t in (trainer, seen))
    assert all(torch.equal(plain.grads[name], watched.grads[name]) for name in plain.grads)


class Unwatched:
    pass


def test_profiled_steps_are_the_steps_of_training() -> None:
    """With marks around its phases the loop ends in the same weights."""
    trainer = assemble(config()).trainer()
    plain, state = trainer.start(), trainer.start()
    observer: Any = Unwatched()  # never told: no step is logged
    watch = Stopwatch(torch.device("cpu"))
    loop = marked_loop(trainer, state, build_meta_gradient(trainer), observer, watch)
    for _ in range(4):
        loop.step()
        outer_step(trainer, plain, build_meta_gradient(trainer), observer)
    assert all(torch.equal(plain.params[name], loop.state.params[name]) for name in plain.params)
    assert {"sampling", "to the device", "meta-gradient", "optimizer"} <= set(watch.spent)


# ---------------------------------------------------------------- phases


def test_a_lap_shares_its_time_out_and_gives_the_rest_to_no_phase() -> None:
    watch = Stopwatch(torch.device("cpu"))

    def action() -> None:
        for _ in range(2):
            with watch("sleeping"):
                time.sleep(0.02)
        time.sleep(0.01)

    lap = watch.lap(action)
    assert 0.04 <= lap["sleeping"] < 0.06
    assert 0.01 <= lap[REST] < 0.03


def test_rare_phases_are_spread_over_the_steps_between_them_and_validation_is_no_overhead() -> None:
    phases = [Phase(META, 0.8, 1), Phase("sampling", 0.1, 1), Phase("measures", 1.0, 10), Phase("validation", 9, 100)]
    assert step_seconds(phases) == pytest.approx(1.0)
    assert outside_share(phases) == pytest.approx(0.2)


def test_sampling_of_several_steps_at_once_is_spread_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A median would be that of the steps that found their tasks drawn."""
    found = [{"sampling": 0.8, META: 1.0}, {"sampling": 0.0, META: 3.0}, {"sampling": 0.1, META: 2.0}]
    monkeypatch.setattr("metarun.jobs.profile.phases.laps", lambda *_: found)
    monkeypatch.setattr("metarun.jobs.profile.phases._logged", lambda *_: [])
    monkeypatch.setattr("metarun.jobs.profile.phases._occasional", lambda *_: [])
    trainer = assemble(config()).trainer()
    phases = loop_phases(trainer, trainer.start(), build_meta_gradient(trainer), Unwatched(), 3)  # type: ignore
    assert {phase.name: phase.seconds for phase in phases} == pytest.approx({"sampling": 0.3, META: 2.0})


# ---------------------------------------------------------------- traces


def x(name: str, start: float, length: float, thread: int = 1, cat: str = "cpu_op", **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": length, "tid": thread, "args": args}


def test_own_times_leave_out_what_an_event_encloses_and_add_up_to_the_whole() -> None:
    events = [Event(*e, 1, None) for e in (("a", 0, 100), ("b", 10, 50), ("c", 20, 30), ("d", 50, 60), ("e", 100, 105))]
    own = {path: time for _, path, time in nested(events)}
    assert own == {("a",): 50, ("a", "b"): 30, ("a", "b", "c"): 10, ("a", "d"): 10, ("e",): 5}


def test_times_on_a_cpu_are_the_own_times_below_the_meta_gradient() -> None:
    trace = [
        x("aten::before", 0, 10),
        x(ROOT, 10, 100, cat="user_annotation"),
        x("aten::mul", 20, 30),
        x("aten::copy_", 30, 5),
        x("aten::elsewhere", 20, 30, thread=2),
    ]
    found = {spent.path[-1]: spent.own for spent in spent_in(trace)}
    assert found == {ROOT: 70, "aten::mul": 25, "aten::copy_": 5}


def test_times_on_a_gpu_are_those_of_the_kernels_that_an_event_launched() -> None:
    """The backward pass runs in a thread of its own and belongs to the region in which the main thread waits for it."""
    task = PREFIX + "meta_grad"
    trace = [
        x(ROOT, 0, 100, cat="user_annotation"),
        x(task, 10, 80, cat="user_annotation"),
        x(PREFIX + "adapt", 20, 40, cat="user_annotation"),
        x("aten::mul", 21, 2, **{"External id": 7}),
        x(NODE, 30, 10, thread=2),
        x("aten::mul", 31, 2, thread=2, **{"External id": 8}),
        x("kernel", 50, 40, thread=9, cat="kernel", **{"External id": 7}),
        x("kernel", 90, 60, thread=9, cat="kernel", **{"External id": 8}),
    ]
    rows = {part.name: part for part in parts(spent_in(trace))}
    assert (rows["inner loop"].rest, rows["inner loop"].backward) == pytest.approx((0.4, 0.6))
    assert rows["outer objective"].total == 0


def test_memory_at_its_most_is_the_largest_sum_of_what_is_alive() -> None:
    def change(at: float, size: int, device: int = 0) -> dict[str, Any]:
        return {"name": "[memory]", "ts": at, "args": {"Bytes": size, "Device Type": device}}

    trace = [x(ROOT, 10, 100, cat="user_annotation"), x(PREFIX + "meta_grad", 40, 20, cat="user_annotation")]
    trace += [change(5, 1000), change(20, 100), change(30, -60), change(50, 70), change(70, -110), change(80, 90, 1)]
    peak = memory_peak(trace)
    assert (peak.bytes, peak.path) == (110, (ROOT, PREFIX + "meta_grad"))


def test_a_real_trace_has_the_memory_of_the_tensors_that_were_alive_together(tmp_path: Path) -> None:
    size = 2**18

    def hold() -> None:
        first = torch.zeros(size)
        del first
        second, third = torch.zeros(size), torch.zeros(2 * size)
        del second, third

    loop: Any = SimpleNamespace(step=inside(hold, META, region))
    traced(loop, torch.device("cpu"), tmp_path / "trace.json.gz")
    assert memory_peak(read_trace(tmp_path / "trace.json.gz")).bytes == pytest.approx(3 * 4 * size, rel=0.01)


# ---------------------------------------------------------------- parts and operators


@pytest.mark.parametrize(
    ("inner", "part", "kind"),
    [
        (["adapt", "forward"], "inner loop", "forward"),
        (["adapt", NODE], "inner loop", "backward"),
        (["adapt"], "inner loop", "rest"),
        (["predict", "forward"], "outer objective", "forward"),
        ([NODE], "outer objective", "backward"),
        ([NODE, "adapt", "forward"], "inner loop", "backward"),  # computed again on the way back
        (["_pulled_back", NODE], "pulled back", "backward"),
        ([], "outer objective", "rest"),
    ],
)
def test_parts_are_by_the_outermost_method_and_kinds_by_autograd_node_or_network(
    inner: list[str], part: str, kind: str
) -> None:
    path = (ROOT, PREFIX + "meta_grad", *(n if n == NODE else PREFIX + n for n in inner), "aten::mul")
    assert (part_of(path), kind_of(path)) == (part, kind)
    assert part_of((ROOT, "aten::mean")) == "around the tasks"


def test_methods_that_take_no_time_count_as_the_outer_objective() -> None:
    task = (ROOT, PREFIX + "meta_grad")
    spent = [Spent((*task, PREFIX + "_small"), 0.5), Spent((*task, PREFIX + "_large"), 60), Spent(task, 39.5)]
    assert {part.name: part.total for part in parts(spent)} == pytest.approx({"outer objective": 0.4, "large": 0.6})


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::convolution_backward", "convolution"),
        ("aten::addmm", "matrix product"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::max_pool2d_with_indices", "pooling"),
        ("aten::index_select", "indexing"),
        ("aten::sum", "reductions"),
        ("aten::_to_copy", "copies and layout"),
        ("aten::t", "copies and layout"),
        ("aten::sub", "element by element"),
        ("aten::threshold_backward", "element by element"),
        ("graph_0_cpp_fused_add_mul_3", "fused kernels"),
        (NODE, "Python and autograd"),
        ("MmBackward0", "Python and autograd"),
        (ROOT, "Python and autograd"),
    ],
)
def test_operators_are_grouped_by_what_they_do(name: str, group: str) -> None:
    assert group_of(name) == group


def test_an_operator_inside_of_one_of_its_kind_is_no_further_call() -> None:
    spent = [Spent((ROOT, "aten::conv2d"), 1), Spent((ROOT, "aten::conv2d", "aten::convolution"), 3)]
    (found,) = groups(spent, steps=1)
    assert (found.name, found.calls, found.share) == ("convolution", 1, 1.0)


# ---------------------------------------------------------------- the job


def test_the_job_leaves_tables_a_profile_and_a_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = metarun.run(config("job=profile", "algo=maml", "diagnostics=full", "diagnostics.probe_tasks=2"), tmp_path)
    found = json.loads((tmp_path / "profile.json").read_text())
    names = [phase["name"] for phase in found["phases"]]
    assert {"sampling", META, "optimizer", "measures", "checkpoint", "validation", "probes"} <= set(names)
    assert sum(phase["share"] for phase in found["phases"]) == pytest.approx(1)
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert sum(group["share"] for group in found["operators"]) == pytest.approx(1)
    rows = {part["name"]: part for part in found["parts"]}
    assert min(rows["inner loop"][f"{kind}_milliseconds"] for kind in ("forward", "backward", "rest")) > 0
    assert found["memory"]["peak_bytes"] > 0
    assert found["arithmetic"]["gflop"] > 0
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        assert any(e.get("name") == PREFIX + "adapt" for e in json.load(file)["traceEvents"])
    assert not list(tmp_path.glob("scratch-*"))
    told = capfd.readouterr()
    assert "ui.perfetto.dev" in told.out
    assert "outside of the meta-gradient" in told.out
    assert "profiler" not in told.err
    assert result.status == "completed"


@pytest.mark.parametrize(("algo", "part"), [("imaml", "pulled back"), ("reptile", "inner loop")])
def test_each_algorithm_has_parts_of_its_own(tmp_path: Path, algo: str, part: str) -> None:
    result = metarun.run(config("job=profile", f"algo={algo}", "profile.trace=false"), tmp_path)
    assert part in [row["name"] for row in result.summary["parts"]]
    assert not (tmp_path / "trace.json.gz").exists()


def test_a_learner_without_an_inner_loop_has_the_outer_objective_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    images = class_folders(tmp_path / "images", [f"class{i:02d}" for i in range(15)], each=5)
    size = ["data.image_size=16", "data.ways=3", "data.queries=2", "data.test_queries=2", "model.filters=4"]
    common = ["job=profile", "algo=protonet", "data=folder", f"data.root={images}", *size]
    settings = [*common, "train.tasks=2", "val.tasks=2", "profile.steps=2", "report=false"]
    found = metarun.run(metarun.compose(settings), tmp_path / "run").summary
    assert "inner loop" not in [row["name"] for row in found["parts"]]
    assert found["operators"][0]["share"] > 0
    assert found["episode"] == "3-way 1-shot 2-query"


def test_a_compiled_meta_gradient_is_one_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    settings = [*TINY, "job=profile", "device.compile=true"]
    found = metarun.run(metarun.compose(settings), tmp_path).summary
    assert (found["compiled"], found["parts"], found["memory"]["peak_at"]) == (True, [], None)
    assert "compiled, one region" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["profile.steps", "profile.warmup"])
def test_nothing_to_time_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(SettingError, match=f"{key}=0: must be at least 1"):
        metarun.run(metarun.compose(["job=profile", f"{key}=0"]), tmp_path)
