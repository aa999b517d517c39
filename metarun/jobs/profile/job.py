r"""job=profile: where a training step's time and memory go.

profile.json     all of it
trace.json.gz    two steps as torch's profiler saw them, for ui.perfetto.dev (unless `profile.trace=false`)

The phases of the loop are timed without a profiler. The inside of the meta-gradient is then taken from a trace of a few
further steps, whose times are longer for being traced: shares are the trace's, seconds are shares of the untraced time.

Counted operations are those of convolutions and matrix products, a multiplication and an addition as two; elementwise
operators are left out. A convolution of x [B, C, ...] with w [C', C/G, k...] in G groups, out [B, C', o...]:

    F = 2 B C' prod(o) (C/G) prod(k)      forward, and each of the gradients by x and by w

A task axis that vmap folds into the channels makes G groups of the tasks. torch 2.13 counts the gradient by w as if all
channels met each other, G times too much, so that rule is replaced here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from metarun.algorithms.objective import add_noise
from metarun.config.schema import Config, to_dict
from metarun.jobs.profile.phases import META, NEVER, describe_phases, mark_loop, time_phases
from metarun.jobs.profile.trace import KINDS, describe_trace, mark_methods, record_trace, region
from metarun.jobs.result import Result
from metarun.jobs.summary import peak_memory_bytes, versions
from metarun.jobs.terminal import show, small_table
from metarun.jobs.train import build_alarms
from metarun.storage.loggers.jsonl import JsonLines
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import count_nouns
from metarun.training.experiment import NO_PARTS, Experiment, OwnParts, assemble, option_name
from metarun.training.meta_gradient import (
    MetaGradient,
    StepGradient,
    build_meta_gradient,
    build_step_gradient,
    should_compile_step,
)
from metarun.training.recorder import Recorder
from metarun.training.run import State
from metarun.types import GradientLearner

TRACE = "trace.json.gz"
SECONDS = 0.5  # of matrix products
SIDES = {"cpu": 1024}
SIDE = 8192  # of a square matrix on other devices
LEAST = 0.005  # share of the smallest group of operators that is shown


def profile_job(config: Config, record: RunFolder, own: OwnParts = NO_PARTS) -> Result:
    """Write profile.json and a Chrome trace into the run folder, and print the tables."""
    experiment = assemble(config, own)
    record.create(to_dict(config))
    with scratch_recorder(experiment, record) as recorder:
        state = experiment.trainer().start()
        profile = measure(experiment, state, recorder, record)
    record.write_json("profile.json", profile)
    show(*render(profile, record.path))
    return Result("completed", profile, record.path, state.params, experiment)


@contextlib.contextmanager
def scratch_recorder(experiment: Experiment, record: RunFolder) -> Iterator[Recorder]:
    """The recorder of a run, on the disk of the run folder; its files are removed afterwards."""
    with tempfile.TemporaryDirectory(dir=record.path, prefix="scratch-") as scratch:
        folder = RunFolder(Path(scratch))
        sink = JsonLines(folder.path)
        sink.start({})
        try:
            yield Recorder(folder, [sink], experiment.config.train, build_alarms(experiment, folder))
        finally:
            sink.finish({})


def measure(experiment: Experiment, state: State, recorder: Recorder, record: RunFolder) -> dict[str, Any]:
    """All that profile.json holds."""
    settings, trainer, config = experiment.config.profile, experiment.trainer(), experiment.config
    device, plain = trainer.placement.device, build_meta_gradient(trainer)
    compiles_it = should_compile_step(trainer, state.params)
    function = build_step_gradient(trainer, state.params, compiles_it)

    def call(meta_gradient: StepGradient = function) -> MetaGradient:
        """The meta-gradient of the step at hand, which is not made."""
        tasks = trainer.tasks(state.step)
        return meta_gradient(*add_noise(trainer.algorithm, state.params, tasks, trainer.seed, state.step))

    start = time.perf_counter()
    float(call().penalty)  # which waits for the device
    first = time.perf_counter() - start
    for _ in range(settings.warmup - 1):
        call()
    phases = time_phases(trainer, state, function, recorder, settings.steps)
    seconds = next(phase.seconds for phase in phases if phase.name == META)
    marked = dataclasses.replace(trainer, algorithm=mark_methods(trainer.algorithm))
    traced = function if compiles_it else build_meta_gradient(marked)
    loop = mark_loop(trainer, state, traced, recorder, region, log_every=NEVER, on_nonfinite="skip")
    with tempfile.TemporaryDirectory() as scratch:
        profiler = record_trace(loop.step, device, (record.path if settings.trace else Path(scratch)) / TRACE)
    descends = isinstance(trainer.algorithm, GradientLearner)
    inside = describe_trace(profiler, device, compiles_it, descends, seconds)
    if device.type == "cuda":  # more exact than the trace
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        float(call().penalty)
        inside["memory"]["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
    elif device.type != "cpu":  # it does not report its peak
        inside["memory"]["peak_bytes"] = None
    inside["memory"]["process_peak_bytes"] = peak_memory_bytes()
    operations = count_operations(lambda: call(plain))
    speed = measure_matrix_products(device, getattr(torch, config.device.precision))
    return {
        **describe_conditions(experiment, compiles_it),
        "steps": settings.steps,
        "first_call_seconds": first,
        **describe_phases(phases, config.train.tasks),
        **inside,
        "arithmetic": {
            "gflop": operations / 1e9,
            "gflop_per_second": operations / seconds / 1e9,
            "matrix_product_gflop_per_second": speed / 1e9,
            "share": operations / seconds / speed,
        },
        "trace": TRACE if settings.trace else None,
        "versions": versions(),
    }


def describe_conditions(experiment: Experiment, compiled: bool) -> dict[str, Any]:
    """The settings and the machine that the numbers depend on."""
    config, placement, spec = experiment.config, experiment.placement, experiment.train_spec
    device, tasks = placement.device, config.train.tasks
    chunk = placement.chunk(spec, experiment.dataset.input_shape())
    classification = experiment.dataset.kind == "classification"
    return {
        "algo": option_name("algo", config),
        "data": option_name("data", config),
        "tasks": tasks,
        "episode": str(spec) if classification else f"{spec.shots}-shot {spec.queries}-query",
        "chunk": chunk if chunk is not None and chunk < tasks else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "precision": config.device.precision,
        "diagnostics": config.diagnostics.level,
        "compiled": compiled,
    }


def convolution_backward(
    grad_out: Sequence[int], x: Sequence[int], w: Sequence[int], *settings: Any, **kwargs: Any
) -> int:
    """Operations of aten.convolution_backward, from the shapes of its tensors. The last setting selects the gradients:
    by x, w and bias."""
    *_, transposed, _, _, wanted = settings
    positions = x[2:] if transposed else grad_out[2:]
    one = 2 * x[0] * math.prod(positions) * math.prod(w)
    return one * (int(wanted[0]) + int(wanted[1]))


def count_operations(action: Callable[[], Any]) -> int:
    """Operations of the convolutions and matrix products of the action."""
    rules = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=rules) as counter:
        action()
    return counter.get_total_flops()


def measure_matrix_products(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product, the median over half a second."""
    side = SIDES.get(device.type, SIDE)
    a = torch.randn(side, side, device=device, dtype=dtype)
    # `item` waits for the device.
    timer = Timer("(a @ a)[0, 0].item()", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.blocked_autorange(min_run_time=SECONDS).median


def render(profile: dict[str, Any], folder: Path) -> Iterator[str | Table]:
    """All of it, with how to open the trace."""
    yield describe_run(profile)
    phases = small_table("phase", "ms each", "every", "ms a step", "share")
    for row in profile["phases"]:
        times = ms(row["milliseconds"]), str(row["every"]), ms(row["milliseconds_per_step"])
        phases.add_row(row["name"], *times, per_cent(row["share"]))
    yield phases
    outside = f"{per_cent(profile['outside_share'])} of it outside of the meta-gradient (validation and probes aside)"
    yield f"a step: {ms(profile['step_milliseconds'])} ms, {profile['tasks_per_second']:.4g} tasks/s; {outside}"
    yield ""
    if profile["parts"]:
        parts = small_table("inside of the meta-gradient, ms", *KINDS, "share")
        for row in profile["parts"]:
            parts.add_row(row["name"], *(ms(row[f"{kind}_milliseconds"]) for kind in KINDS), per_cent(row["share"]))
        yield parts
    else:
        yield "the meta-gradient is compiled, one region without parts; device.compile=off shows an uncompiled one's"
    operators = small_table("its operators", "calls", "ms", "share")
    for row in profile["operators"]:
        if row["share"] >= LEAST:
            name = "compiled code" if profile["compiled"] and not row["calls"] else row["name"]
            calls = f"{row['calls']:.0f}" if row["calls"] else ""
            operators.add_row(name, calls, ms(row["milliseconds"]), per_cent(row["share"]))
    yield operators
    traced = profile["traced"]
    whose = "time of kernels on the device" if traced["on"] == "cuda" else "own time on the main thread"
    slower = f"it then takes {traced['slowdown']:.2f} times as long"
    yield f"shares of a meta-gradient are {whose} while it is traced; {slower}"
    yield describe_memory(profile["memory"])
    sums = profile["arithmetic"]
    done = f"arithmetic: {sums['gflop']:.3g} GFLOP in convolutions and matrix products of a meta-gradient"
    speed = f"{sums['gflop_per_second']:.3g} GFLOP/s; a large matrix product here"
    yield f"{done}, {speed} {sums['matrix_product_gflop_per_second']:.3g} GFLOP/s ({per_cent(sums['share'])} of it)"
    yield f"profile: {folder / 'profile.json'}"
    if profile["trace"]:
        yield f"trace: {folder / profile['trace']} (open it at https://ui.perfetto.dev or in chrome://tracing)"


def describe_run(profile: dict[str, Any]) -> str:
    chunk = f", {profile['chunk']} at a time" if profile["chunk"] else ""
    where = f"{profile['device']}, {count_nouns(profile['threads'], 'thread')}, {profile['precision']}"
    run = "compiled" if profile["compiled"] else "not compiled"
    tasks = count_nouns(profile["tasks"], "task")
    return (
        f"metarun: {profile['algo']} on {profile['data']}, {tasks} of {profile['episode']}{chunk}; "
        f"{where}, {run}, diagnostics={profile['diagnostics']}"
    )


def describe_memory(facts: dict[str, Any]) -> str:
    parts = []
    if facts["peak_bytes"] is not None:
        when = f" (in {facts['peak_at']})" if facts["peak_at"] else ""
        parts.append(f"tensors of a meta-gradient {mib(facts['peak_bytes'])} at the peak{when}")
    if facts["process_peak_bytes"]:
        parts.append(f"the process {mib(facts['process_peak_bytes'])}")
    return f"memory: {'; '.join(parts) or 'not known on this device'}"


def ms(value: float) -> str:
    """Four digits or so, whatever the size."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.{2 if value >= 10 else 3}f}"


def per_cent(share: float) -> str:
    return f"{100 * share:.1f} %"


def mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
