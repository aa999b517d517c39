"""job=profile: phases, parts, operators, memory and operations, against hand counts and traces that were made up."""

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
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.func import grad, vmap
from torch.nn.functional import conv2d

import metarun
from metarun.config.schema import Config
from metarun.data.sinusoid import Sinusoid
from metarun.errors import SettingError
from metarun.jobs.profile.job import count_operations
from metarun.jobs.profile.phases import (
    META,
    REST,
    Phase,
    Stopwatch,
    add_marks,
    describe_phases,
    mark_loop,
    time_phases,
    wrap_function,
)
from metarun.jobs.profile.trace import (
    PREFIX,
    ROOT,
    OwnTime,
    collect_own_times,
    find_memory_peak,
    group_of,
    kind_of,
    mark_methods,
    part_of,
    read_allocations,
    record_trace,
    region,
    tabulate_operators,
    tabulate_parts,
)
from metarun.training.experiment import assemble
from metarun.training.loop import outer_step
from metarun.training.meta_gradient import build_meta_gradient

TINY = ["model.hidden=[6,5]", "algo.inner_steps=2", "val.tasks=2", "train.tasks=3", "profile.steps=2"]
NODE = "autograd::engine::evaluate_function: MulBackward0"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.jobs.profile.phases.LONG_ENOUGH", 0.0)
    monkeypatch.setattr("metarun.jobs.profile.job.SECONDS", 0.0)


def config(*more: str) -> Config:
    return metarun.compose([*TINY, "device.compile=false", *more])


# ---------------------------------------------------------------- operations


def test_a_convolution_is_counted_as_written_out_by_hand() -> None:
    """B = 3 images, 2 -> 5 channels, 3x3 kernel, 8x8 -> 4x4: 2 * 3 * 5 * 16 * 2 * 9, and the same for each gradient."""
    x, w = torch.randn(3, 2, 8, 8), torch.randn(5, 2, 3, 3)
    forward = 2 * 3 * 5 * 16 * 2 * 9

    def loss(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return conv2d(x, w, stride=2, padding=1).square().sum()

    assert count_operations(lambda: loss(x, w)) == forward
    assert count_operations(lambda: grad(loss, argnums=1)(x, w)) == 2 * forward
    assert count_operations(lambda: grad(loss, argnums=(0, 1))(x, w)) == 3 * forward


def test_tasks_folded_into_groups_of_channels_are_counted_as_tasks_one_by_one() -> None:
    x, w = torch.randn(4, 3, 2, 8, 8), torch.randn(4, 5, 2, 3, 3)

    def second_order(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        inner = grad(lambda w: conv2d(x, w, padding=1).square().sum())
        return grad(lambda w: inner(w).square().sum())(w)

    together = count_operations(lambda: vmap(second_order)(w, x))
    assert together == 4 * count_operations(lambda: second_order(w[0], x[0])) > 0


def test_a_matrix_product_has_two_operations_for_each_of_its_products() -> None:
    assert count_operations(lambda: torch.randn(3, 4) @ torch.randn(4, 5)) == 2 * 3 * 4 * 5


# ---------------------------------------------------------------- marks


def test_marked_values_are_of_their_class_keep_their_fields_and_copy_with_their_marks() -> None:
    seen: list[str] = []
    plain = Sinusoid((0.1, 5.0), (0.0, 3.0), (-5.0, 5.0), 0.0)

    def mark(name: str) -> Any:
        seen.append(name)
        return region(name)

    watched = add_marks(plain, {"input_shape": "shape"}, mark)
    copied = dataclasses.replace(watched, noise=1.0)
    assert isinstance(watched, Sinusoid)
    assert dataclasses.asdict(watched) == dataclasses.asdict(plain)
    assert (watched.input_shape(), copied.input_shape(), plain.input_shape()) == ((1,), (1,), (1,))
    assert seen == ["shape", "shape"]


@pytest.mark.parametrize("algo", ["maml", "fomaml", "reptile", "imaml"])
def test_regions_do_not_change_a_meta_gradient(algo: str) -> None:
    trainer = assemble(config(f"algo={algo}")).trainer()
    params, tasks = trainer.start().params, trainer.tasks(0)
    seen = dataclasses.replace(trainer, algorithm=mark_methods(trainer.algorithm))
    plain, watched = (build_meta_gradient(t)(params, tasks) for t in (trainer, seen))
    assert all(torch.equal(plain.grads[name], watched.grads[name]) for name in plain.grads)


class Silent:
    """The part of an observer that is marked."""

    def on_log(self, *_: Any) -> None:
        raise AssertionError("no step is logged")

    def save_checkpoint(self, *_: Any) -> None:
        pass


def test_profiled_steps_are_the_steps_of_training() -> None:
    """With marks around its phases the loop ends in the same weights."""
    trainer = assemble(config()).trainer()
    plain, state = trainer.start(), trainer.start()
    observer: Any = Silent()
    watch = Stopwatch(torch.device("cpu"))
    loop = mark_loop(trainer, state, build_meta_gradient(trainer), observer, watch)
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
    found = describe_phases(phases, tasks=4)
    assert found["step_milliseconds"] == pytest.approx(1000)
    assert found["tasks_per_second"] == pytest.approx(4)
    assert found["outside_share"] == pytest.approx(0.2)
    assert [row["training"] for row in found["phases"]] == [True, True, True, False]


def test_sampling_of_several_steps_at_once_is_spread_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A median would be that of the steps that find their tasks drawn."""
    found = [{"sampling": 0.8, META: 1.0}, {"sampling": 0.0, META: 3.0}, {"sampling": 0.1, META: 2.0}]
    monkeypatch.setattr(Stopwatch, "laps", lambda *_: found)
    trainer = assemble(config()).trainer()
    observer: Any = Silent()
    phases = time_phases(trainer, trainer.start(), build_meta_gradient(trainer), observer, 3)
    seconds = {phase.name: phase.seconds for phase in phases}
    assert (seconds["sampling"], seconds[META]) == pytest.approx((0.3, 2.0))


# ---------------------------------------------------------------- traces


def event(name: str, start: float, length: float, thread: int = 1, kernels: tuple[float, ...] = ()) -> FunctionEvent:
    """An event of the host, with kernels of these microseconds."""
    made = FunctionEvent(0, name, thread, start, start + length, use_device="cuda" if kernels else None)
    for duration in kernels:
        made.append_kernel("kernel", 0, duration)
    return made


def tree(*events: FunctionEvent) -> EventList:
    found = EventList(events)
    found._build_tree()
    return found


def test_times_on_a_cpu_are_the_own_times_below_the_meta_gradient_and_add_up_to_it() -> None:
    events = tree(
        event("aten::before", 0, 10),
        event(ROOT, 10, 100),
        event("aten::mul", 20, 30),
        event("aten::copy_", 30, 5),
        event("aten::elsewhere", 20, 30, thread=2),
    )
    own = dict(collect_own_times(events))
    assert own == {(ROOT,): 70, (ROOT, "aten::mul"): 25, (ROOT, "aten::mul", "aten::copy_"): 5}


def test_times_on_a_gpu_are_those_of_the_kernels_that_an_event_launched() -> None:
    """The backward pass runs in a thread of its own and belongs to the region in which the main thread waits for it.
    What a region of the host spans on the GPU is no kernel."""
    adapt = event(PREFIX + "adapt", 20, 40)
    adapt.append_kernel(PREFIX + "adapt", 0, 100)
    events = tree(
        event(ROOT, 0, 100),
        event(PREFIX + "meta_grad", 10, 80),
        adapt,
        event("aten::mul", 21, 2, kernels=(30, 10)),
        event(NODE, 30, 10, thread=2),
        event("aten::mul", 31, 2, thread=2, kernels=(60,)),
    )
    own = collect_own_times(events)
    assert sum(time for _, time in own) == 100
    rows = {row["name"]: row for row in tabulate_parts([OwnTime(path, time / 100) for path, time in own], seconds=1.0)}
    inner = rows["inner loop"]
    assert (inner["rest_milliseconds"], inner["backward_milliseconds"]) == pytest.approx((400, 600))
    assert rows["outer objective"]["share"] == 0


def test_memory_at_its_most_is_the_largest_sum_of_what_is_alive() -> None:
    events = tree(event(ROOT, 10, 100), event(PREFIX + "meta_grad", 40, 20))
    changes = [(5.0, 1000), (20.0, 100), (30.0, -60), (50.0, 70), (70.0, -110)]
    assert find_memory_peak(events, changes) == (110, (ROOT, PREFIX + "meta_grad"))


@pytest.mark.parametrize(("device", "size"), [("cpu", 70), ("cuda", 90)])
def test_memory_is_that_of_the_device(device: str, size: int) -> None:
    def change(at: int, size: int, kind: DeviceType, name: str = "[memory]") -> Any:
        members = {"name": name, "start_ns": at, "nbytes": size, "device_type": kind}
        return SimpleNamespace(**{name: lambda value=value: value for name, value in members.items()})

    changes = [change(3000, 70, DeviceType.CPU), change(3000, 90, DeviceType.CUDA), change(1, 1, DeviceType.CPU, "x")]
    results = SimpleNamespace(trace_start_ns=lambda: 1000, events=lambda: changes)
    profiler: Any = SimpleNamespace(profiler=SimpleNamespace(kineto_results=results))
    assert read_allocations(profiler, torch.device(device)) == [(2.0, size)]


def test_a_real_trace_has_the_memory_of_the_tensors_that_were_alive_together(tmp_path: Path) -> None:
    size = 2**18

    def hold() -> None:
        first = torch.zeros(size)
        del first
        second, third = torch.zeros(size), torch.zeros(2 * size)
        del second, third

    cpu = torch.device("cpu")
    profiler = record_trace(wrap_function(hold, META, region), cpu, tmp_path / "trace.json.gz")
    peak, _ = find_memory_peak(profiler.events(), read_allocations(profiler, cpu))
    assert peak == pytest.approx(3 * 4 * size, rel=0.01)


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
        (["_pull_back", NODE], "pull back", "backward"),
        ([], "outer objective", "rest"),
    ],
)
def test_parts_are_by_the_outermost_method_and_kinds_by_autograd_node_or_network(
    inner: list[str], part: str, kind: str
) -> None:
    path = (ROOT, PREFIX + "meta_grad", *(n if n == NODE else PREFIX + n for n in inner), "aten::mul")
    assert (part_of(path), kind_of(path)) == (part, kind)
    assert part_of((ROOT, "aten::mean")) == "all tasks together"


def test_methods_that_take_no_time_count_as_the_outer_objective() -> None:
    task = (ROOT, PREFIX + "meta_grad")
    times = [((*task, PREFIX + "_small"), 0.005), ((*task, PREFIX + "_large"), 0.6), (task, 0.395)]
    rows = tabulate_parts([OwnTime(*time) for time in times], seconds=1.0)
    assert {row["name"]: row["share"] for row in rows} == pytest.approx({"outer objective": 0.4, "large": 0.6})


def test_what_runs_in_no_method_is_the_descent_of_a_learner_that_has_one_outside_of_adapt(tmp_path: Path) -> None:
    """Checkpointed and multi-step meta-gradients do not call `adapt`; only the forward pass on the queries is apart."""
    common = ["job=profile", "algo=maml", "profile.trace=false"]
    for number, setting in enumerate(["algo.inner_checkpoint=true", "algo.step_weights=[0.3,0.7]"]):
        found = metarun.run(config(*common, setting), tmp_path / str(number)).summary
        rows = {row["name"]: row for row in found["parts"]}
        assert list(rows) == ["inner loop and its derivative", "outer objective", "all tasks together"]
        assert (
            min(rows["inner loop and its derivative"][f"{kind}_milliseconds"] for kind in ("forward", "backward")) > 0
        )
        assert rows["outer objective"]["forward_milliseconds"] > 0


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
        ("aten::sub", "elementwise"),
        ("aten::threshold_backward", "elementwise"),
        ("graph_0_cpp_fused_add_mul_3", "fused kernels"),
        (NODE, "Python and autograd"),
        ("MmBackward0", "Python and autograd"),
        (ROOT, "Python and autograd"),
    ],
)
def test_operators_are_grouped_by_what_they_do(name: str, group: str) -> None:
    assert group_of(name) == group


def test_an_operator_inside_of_one_of_its_kind_is_no_further_call() -> None:
    times = [((ROOT, "aten::conv2d"), 0.25), ((ROOT, "aten::conv2d", "aten::convolution"), 0.75)]
    (row,) = tabulate_operators([OwnTime(*time) for time in times], seconds=2.0, steps=1)
    assert row == {"name": "convolution", "calls": 1, "share": 1.0, "milliseconds": 2000}


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
    printed = capfd.readouterr()
    assert "ui.perfetto.dev" in printed.out
    assert "outside of the meta-gradient" in printed.out
    assert "profiler" not in printed.err
    assert result.status == "completed"


@pytest.mark.parametrize(("algo", "part"), [("imaml", "pull back"), ("reptile", "inner loop")])
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
