"""The run card: what a figure has to be read with, in one table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from metarun.report.read.facts import component, episode_size, inner_gradients, metric_of, setting
from metarun.report.read.runs import Run
from metarun.report.tables import penalties
from metarun.storage.text import (
    NOTHING,
    adaptation_unit,
    count,
    duration,
    format_metric,
    is_number,
    metric_from_error,
    metric_name,
    number,
)

HASH = 12  # hexadecimal digits that are shown


class Fact(NamedTuple):
    name: str
    value: str
    note: str = ""


class Card(NamedTuple):
    title: str
    result: str  # the headline figure
    reading: str  # what the headline is
    facts: tuple[Fact, ...]
    command: str
    command_note: str


def card(run: Run) -> Card:
    """The facts of one run, known or not."""
    command, note = command_of(run)
    facts = (*_protocol(run), *_outcome(run), *_cost(run), *_machine(run))
    return Card(title(run), *headline(run), facts, command, note)


def title(run: Run) -> str:
    seed = run.summary.get("seed", setting(run, "seed"))
    ending = f", seed {seed}" if seed is not None else ""
    return f"{component(run, 'algo')} on {component(run, 'data')}, {episode_size(run)}{ending}"


def headline(run: Run) -> tuple[str, str]:
    """The test's figure and how to read it."""
    summary, metric = run.summary, metric_of(run)
    if not is_number(summary.get("mean")):
        return "no test result", "the run was not tested, or the test gave no finite figure"
    after = (
        f" after {number(summary.get('headline_step'))} {adaptation_unit(run.summary.get('kind'))}"
        if _adapts(run)
        else ""
    )
    half = "95 % interval over" if is_number(summary.get("ci95")) else "mean over"
    reading = f"test {metric_name(metric)}{after}, {half} {count(summary.get('n_tasks'))} tasks"
    return format_metric(metric, summary["mean"], summary.get("ci95")), reading


def _adapts(run: Run) -> bool:
    curve = run.summary.get("curve")
    return isinstance(curve, list) and len(curve) > 1


def _protocol(run: Run) -> list[Fact]:
    summary = run.summary
    control = summary.get("kind") == "control"
    rows = "scored" if control else "queries"
    queries = f"{number(summary.get('test_queries'))} {rows}{' a class' if _classes(run) else ''} at test"
    split, digits = str(summary.get("split") or NOTHING), _digits(summary.get("episodes_sha256"))
    norm = summary.get("norm") or setting(run, "model.norm")
    return [
        Fact("algorithm", component(run, "algo"), "first-order" if summary.get("first_order") else ""),
        Fact("data", component(run, "data"), str(summary.get("caveat") or "")),
        Fact("episodes", f"{episode_size(run)}, {queries}", "" if control else _trained(run)),
        Fact("split", split, _hash("goals" if control else "classes", summary.get("split_sha256"))),
        Fact("test episodes", digits, "" if digits == NOTHING else "the same digits: the same tasks"),
        Fact("network", component(run, "model"), f"normalisation: {norm or 'unknown'}"),
        Fact("regularizer", component(run, "reg"), penalties.in_words(run)),
        Fact("seed", number(summary.get("seed", setting(run, "seed")))),
    ]


def _trained(run: Run) -> str:
    return f"trained on {episode_size(run, 'train_')}" if "train_shots" in run.summary else ""


def _classes(run: Run) -> bool:
    return "way" in episode_size(run)


def _outcome(run: Run) -> list[Fact]:
    summary, metric = run.summary, metric_of(run)
    error, at = summary.get("val_error"), summary.get("best_step")
    best = metric_from_error(metric, error) if is_number(error) else error
    return [
        Fact("status", str(summary.get("status") or "unknown"), str(summary.get("reason") or "")),
        Fact("best validation", format_metric(metric, best), f"at step {count(at)}" if at else ""),
        *_zeros(run),
        _alarms(summary.get("alarms")),
    ]


def _zeros(run: Run) -> list[Fact]:
    share, of = penalties.zeros(run)
    return [Fact("zeros", share, of)] if share else []


def _alarms(alarms: Any) -> Fact:
    if not isinstance(alarms, Mapping):
        return Fact("alarms", NOTHING, "this run did not record alarms")
    raised = ", ".join(f"{name} ({_times(alarm)})" for name, alarm in alarms.items())
    return Fact("alarms", raised or "none raised")


def _times(alarm: Any) -> str:
    times = alarm.get("count") if isinstance(alarm, Mapping) else alarm
    return f"{number(times)} times" if times != 1 else "once"


def _cost(run: Run) -> list[Fact]:
    summary = run.summary
    planned = setting(run, "train.steps")
    share = summary.get("measures_share")
    of = f"of {count(planned)} planned" if is_number(planned) and planned != summary.get("steps_done") else ""
    speed = summary.get("tasks_per_second")
    memory = summary.get("peak_memory_mb")
    return [
        Fact("outer steps", count(summary.get("steps_done")), of),
        Fact("training tasks", count(summary.get("tasks_seen")), f"{number(speed, 3)} a second" if speed else ""),
        _taken(run),
        Fact("time", duration(summary.get("seconds")), f"{100 * share:.1f} % for measures" if is_number(share) else ""),
        Fact("peak memory", f"{count(memory)} MB" if is_number(memory) else NOTHING),
    ]


def _taken(run: Run) -> Fact:
    """What a learner that acts walked for its data, or the gradients that inner loops took."""
    collected, evaluations = run.summary.get("collected"), inner_gradients(run)
    if isinstance(collected, Mapping):
        return Fact("environment steps", count(collected.get("environment_steps")))
    return Fact("inner gradient evaluations", NOTHING if math.isnan(evaluations) else count(evaluations))


def _machine(run: Run) -> list[Fact]:
    versions = run.summary.get("versions")
    parts = [f"{name} {v}" for name, v in versions.items()] if isinstance(versions, Mapping) else []
    return [
        Fact("device", str(run.summary.get("device") or NOTHING), _processor(run.summary)),
        Fact("versions", ", ".join(parts) or NOTHING),
        Fact("folder", str(run.path)),
    ]


def _processor(summary: Mapping[str, Any]) -> str:
    machine = summary.get("machine")
    if not isinstance(machine, Mapping):
        return ""
    name = str(machine.get("gpu") or machine.get("processor") or "")
    parts = [name, f"{number(machine.get('threads'))} of {number(machine.get('cores'))} cores"]
    return ", ".join([*parts, *([str(summary["precision"])] if "precision" in summary else [])])


def _hash(what: str, digest: Any) -> str:
    return f"{what} {_digits(digest)}" if digest else ""


def _digits(digest: Any) -> str:
    return str(digest)[:HASH] if digest else NOTHING


def command_of(run: Run) -> tuple[str, str]:
    """The command that repeats the run, and how far to trust it."""
    if run.overrides is not None:
        return shlex.join(["metarun", *(o for o in run.overrides if not o.startswith(("hydra.", "sweep.")))]), ""
    choices = setting(run, "choices")
    if not isinstance(choices, Mapping):
        return "", "The command is unknown: neither .hydra/overrides.yaml nor the choices in config.yaml are there."
    chosen = [f"{group}={name}" for group, name in choices.items() if group != "recipe"]
    seed = [f"seed={setting(run, 'seed')}"] if setting(run, "seed") else []
    note = "From the choices of groups alone; settings that were typed besides are in the settings below."
    return shlex.join(["metarun", *chosen, *seed]), note
