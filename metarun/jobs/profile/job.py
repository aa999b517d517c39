"""job=profile: where a training step's time and memory go.

profile.json     all of it
trace.json.gz    two steps as torch's profiler saw them, for ui.perfetto.dev (unless `profile.trace=false`)

The phases of the loop are timed without a profiler. The inside of the meta-gradient is then taken from a trace of a few
further steps, whose times are longer for being traced: shares are the trace's, seconds are shares of the untraced time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metarun.algorithms.objective import add_noise
from metarun.compute.compilation import compile_function, should_compile
from metarun.config.schema import Config
from metarun.jobs.profile.flops import matrix_product_speed, operations
from metarun.jobs.profile.inside import TRACE, Inside, inside_of, peak_bytes, resident_peak
from metarun.jobs.profile.marks import META
from metarun.jobs.profile.phases import NOT_TRAINING, Phase, loop_phases, outside_share, step_seconds
from metarun.jobs.profile.table import show
from metarun.jobs.result import Result
from metarun.jobs.summary import versions
from metarun.jobs.train import build_alarms
from metarun.storage.loggers.jsonl import JsonLines
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import Experiment, assemble, option_name
from metarun.training.meta_gradient import MetaGradient, build_meta_gradient
from metarun.training.recorder import Recorder
from metarun.training.run import State, Trainer


def profile_job(config: Config, record: RunFolder) -> Result:
    """Leaves profile.json and a Chrome trace in the run folder."""
    experiment, console = assemble(config), Console()
    record.create(dataclasses.asdict(config))
    with training(experiment, record) as (state, session):
        found = profiled(experiment, state, session, record)
    record.write_json("profile.json", found)
    show(found, console, record.path)
    return Result("completed", found, record.path, state.params, experiment)


@contextlib.contextmanager
def training(experiment: Experiment, record: RunFolder) -> Iterator[tuple[State, Recorder]]:
    """A run's state, and the session that keeps its record: on the disk of the folder, but gone afterwards."""
    settings = experiment.config.train
    with tempfile.TemporaryDirectory(dir=record.path, prefix="scratch-") as scratch:
        folder = RunFolder(Path(scratch))
        folder.last.parent.mkdir()
        sink = JsonLines(folder.path)
        session = Recorder(folder, [sink], settings.steps, settings.tasks, build_alarms(experiment, folder))
        sink.start({})
        try:
            yield experiment.trainer().start(), session
        finally:
            sink.finish({})


def profiled(experiment: Experiment, state: State, session: Recorder, record: RunFolder) -> dict[str, Any]:
    """All that profile.json holds."""
    settings, trainer = experiment.config.profile, experiment.trainer()
    plain = build_meta_gradient(trainer)
    compiles_it = should_compile(trainer.placement, state.params, trainer.settings.steps)
    used = compile_function(plain, trainer.placement, state.params) if compiles_it else plain
    first = warmed_up(lambda: gradient_at(trainer, state, used), settings.warmup)
    phases = loop_phases(trainer, state, used, session, settings.steps)
    inside = inside_of(trainer, state, session, used if compiles_it else None, record.path if settings.trace else None)
    found = conditions(experiment, compiles_it)
    found |= {"steps": settings.steps, "first_call_seconds": first, **described(phases, experiment.config.train.tasks)}
    found |= described_inside(inside, next(p.seconds for p in phases if p.name == META))
    found["memory"] = memory(trainer, inside, lambda: gradient_at(trainer, state, used))
    flops = operations(lambda: gradient_at(trainer, state, plain))
    found["arithmetic"] = arithmetic(experiment, flops, next(p.seconds for p in phases if p.name == META))
    return found | {"trace": TRACE if settings.trace else None, "versions": versions()}


def gradient_at(trainer: Trainer, state: State, meta_gradient: Callable[..., MetaGradient]) -> MetaGradient:
    """Of the step at hand, which is not made."""
    tasks = trainer.tasks(state.step)
    return meta_gradient(*add_noise(trainer.algorithm, state.params, tasks, trainer.seed, state.step))


def warmed_up(call: Callable[[], MetaGradient], calls: int) -> float:
    """Some calls that are not counted; the seconds of the first one, which compiles what is to be compiled."""
    start = time.perf_counter()
    float(call().penalty)  # which waits for the device
    first = time.perf_counter() - start
    for _ in range(calls - 1):
        call()
    return first


def conditions(experiment: Experiment, compiled: bool) -> dict[str, Any]:
    """What the figures were taken on."""
    config, placement = experiment.config, experiment.placement
    device, tasks = placement.device, config.train.tasks
    chunk = placement.chunk(experiment.train_spec, experiment.dataset.input_shape())
    return {
        "algo": option_name("algo", config),
        "data": option_name("data", config),
        "tasks": tasks,
        "episode": episode(experiment),
        "chunk": chunk if chunk is not None and chunk < tasks else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "precision": config.device.precision,
        "diagnostics": config.diagnostics.level,
        "compiled": compiled,
    }


def episode(experiment: Experiment) -> str:
    spec = experiment.train_spec
    points = f"{spec.shots}-shot {spec.queries}-query"
    return str(spec) if experiment.dataset.kind == "classification" else points


def described(phases: list[Phase], tasks: int) -> dict[str, Any]:
    """The phases with their shares of all the time, and what a step takes."""
    whole, step = sum(phase.per_step for phase in phases), step_seconds(phases)
    rows = [
        {
            "name": phase.name,
            "milliseconds": 1e3 * phase.seconds,
            "every": phase.every,
            "milliseconds_per_step": 1e3 * phase.per_step,
            "share": phase.per_step / whole,
            "training": phase.name not in NOT_TRAINING,
        }
        for phase in phases
    ]
    rates = {"step_milliseconds": 1e3 * step, "tasks_per_second": tasks / step, "outside_share": outside_share(phases)}
    return {"phases": rows, **rates}


def described_inside(inside: Inside, seconds: float) -> dict[str, Any]:
    """Parts and groups of operators, scaled to the untraced `seconds` of a meta-gradient."""
    parts = [
        {"name": part.name}
        | {f"{kind}_milliseconds": 1e3 * seconds * getattr(part, kind) for kind in ("forward", "backward", "rest")}
        | {"share": part.total}
        for part in inside.parts
    ]
    groups = [
        {"name": g.name, "calls": g.calls, "milliseconds": 1e3 * seconds * g.share, "share": g.share}
        for g in inside.groups
    ]
    return {"parts": parts, "operators": groups, "traced": {"on": inside.on, "slowdown": inside.seconds / seconds}}


def memory(trainer: Trainer, inside: Inside, call: Callable[[], MetaGradient]) -> dict[str, Any]:
    """Bytes: the tensors of a meta-gradient at their most, when that is, and the process at its largest so far."""
    device = trainer.placement.device
    peak = inside.peak if device.type == "cpu" else peak_bytes(device, call)
    return {"peak_bytes": peak, "peak_at": inside.peak_at, "process_peak_bytes": resident_peak()}


def arithmetic(experiment: Experiment, flops: int, seconds: float) -> dict[str, Any]:
    """Operations of a meta-gradient, their speed, and that of a matrix product beside it."""
    precision = getattr(torch, experiment.config.device.precision)
    speed = matrix_product_speed(experiment.placement.device, precision)
    return {
        "gflop": flops / 1e9,
        "gflop_per_second": flops / seconds / 1e9,
        "matrix_product_gflop_per_second": speed / 1e9,
        "share": flops / seconds / speed,
    }
