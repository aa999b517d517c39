"""The run card: the facts that the result of a run must be read with, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from metarun.report.read import facts
from metarun.report.read.files import as_mapping, as_mappings
from metarun.report.read.runs import Run
from metarun.report.tables.penalties import format_penalties, format_zeros
from metarun.storage import text
from metarun.storage.headline import describe_errors, describe_unaveraged, headline, is_heavy
from metarun.storage.text import NOTHING, count, is_number, number


class Fact(NamedTuple):
    name: str
    value: str
    note: str = ""


class Card(NamedTuple):
    title: str
    result: str  # the test metric
    reading: str  # what the result is
    facts: tuple[Fact, ...]
    command: str
    command_note: str


def build_card(run: Run) -> Card:
    """Return the facts of one run, known or not."""
    seed = f", seed {facts.seed_of(run)}" if facts.seed_of(run) is not None else ""
    title = f"{facts.component(run, 'algo')} on {facts.component(run, 'data')}, {facts.episode_size(run)}{seed}"
    rows = (*_protocol(run), *_outcome(run), *_cost(run), *_machine(run))
    return Card(title, *_headline(run), rows, *facts.command_of(run))


def _headline(run: Run) -> tuple[str, str]:
    """The test metric and how to read it."""
    summary, metric, curve = run.summary, facts.metric_of(run), run.summary.get("curve")
    heavy = is_heavy(summary)
    if not heavy and not is_number(summary.get("mean")):
        return "no test result", "the run was not tested, or the test metric is not finite"
    adapts = isinstance(curve, list) and len(curve) > 1
    after = f" after {number(summary.get('headline_step'))} {facts.step_unit(run)}" if adapts else ""
    kind = f"{summary['interval']} interval" if summary.get("interval") in ("open", "closed") else "interval"
    over = f"95 % {kind} over" if heavy or is_number(summary.get("ci95")) else "mean over"
    reading = f"test {text.metric_name(metric)}{after}, {over} {count(summary.get('n_tasks'))} tasks"
    beside = describe_errors(metric, summary)
    return headline(metric, summary), f"{reading}; {beside}" if beside else reading


def _protocol(run: Run) -> list[Fact]:
    summary, size = run.summary, facts.episode_size(run)
    control = summary.get("kind") == "control"
    word = "query" if summary.get("test_queries") == 1 else "queries"
    rows = "scored" if control else f"{word} a class" if "way" in size else word
    queries = f"{number(summary.get('test_queries'))} {rows} at test"
    trained = f"trained on {facts.episode_size(run, 'train_')}" if "train_shots" in summary and not control else ""
    digits, hashed = (str(summary.get(key) or "")[:12] for key in ("episodes_sha256", "split_sha256"))
    same = "runs with this value were tested on the same tasks" if digits else ""
    classes = f"{'goals' if control else 'classes'} {hashed}" if hashed else ""
    together = "transductive: the queries of a task are predicted together" if summary.get("transductive") else ""
    norm = summary.get("norm") or facts.setting(run, "model.norm")
    return [
        Fact("algorithm", facts.component(run, "algo"), summary.get("approximation") or together),
        Fact("data", facts.component(run, "data"), str(summary.get("caveat") or "")),
        Fact("episodes", f"{size}, {queries}", trained),
        Fact("split", str(summary.get("split") or NOTHING), classes),
        Fact("test episodes", digits or NOTHING, same),
        Fact("network", facts.component(run, "model"), f"normalisation: {norm or 'unknown'}"),
        Fact("regularizer", facts.component(run, "reg"), format_penalties(run)),
        Fact("seed", number(facts.seed_of(run))),
    ]


def _outcome(run: Run) -> list[Fact]:
    summary, metric = run.summary, facts.metric_of(run)
    error, at, alarms = summary.get("val_error"), summary.get("best_step"), summary.get("alarms")
    best = text.metric_from_error(metric, error) if is_number(error) else error
    plain, gain = describe_unaveraged(metric, summary).partition("; ")[::2]
    zeros, share_of = format_zeros(run)
    raised, note = NOTHING, "this run did not record alarms"
    if isinstance(alarms, Mapping):
        times = {k: alarm.get("count") if isinstance(alarm, Mapping) else alarm for k, alarm in alarms.items()}
        named = [f"{k} ({'once' if times[k] == 1 else f'{number(times[k])} times'})" for k in times]
        raised, note = ", ".join(named) or "none", ""
    return [
        Fact("status", str(summary.get("status") or "unknown"), str(summary.get("reason") or "")),
        Fact("best validation", text.format_metric(metric, best), f"at step {count(at)}" if at else ""),
        *([Fact("without the average", plain, gain)] if plain else []),
        *([Fact("zeros", zeros, share_of)] if zeros else []),
        Fact("alarms", raised, note),
    ]


def _cost(run: Run) -> list[Fact]:
    summary, planned = run.summary, facts.setting(run, "train.steps")
    share, speed, memory = (summary.get(key) for key in ("measures_share", "tasks_per_second", "peak_memory_mb"))
    of = f"of {count(planned)} planned" if is_number(planned) and planned != summary.get("steps_done") else ""
    collected, gradients = summary.get("collected"), facts.inner_gradients(run)
    work = Fact("inner gradient evaluations", NOTHING if math.isnan(gradients) else count(gradients))
    if isinstance(collected, Mapping):  # a learner that acts
        work = Fact("environment steps", count(collected.get("environment_steps")))
    rate = count(speed) if is_number(speed) and speed >= 100 else number(speed, 3)
    metering = f"{100 * share:.1f} % for metrics" if is_number(share) else ""
    return [
        Fact("outer steps", count(summary.get("steps_done")), of),
        Fact("training tasks", count(summary.get("tasks_seen")), f"{rate} a second" if speed else ""),
        work,
        Fact("time", text.duration(summary.get("seconds")), metering),
        Fact("peak memory", f"{count(memory)} MB" if is_number(memory) else NOTHING),
    ]


def _machine(run: Run) -> list[Fact]:
    summary, versions, machine = run.summary, run.summary.get("versions"), run.summary.get("machine")
    parts = [f"{name} {version}" for name, version in as_mapping(versions).items()]
    entries = as_mappings(summary.get("history"))[1:]
    resumed = [f"from step {count(entry.get('from_step'))} others (summary.json, history)" for entry in entries]
    processor = []
    if isinstance(machine, Mapping):
        cores = f"{number(machine.get('threads'))} of {number(machine.get('cores'))} cores"
        processor = [str(machine.get("gpu") or machine.get("processor") or ""), cores]
        processor += [str(summary["precision"])] if "precision" in summary else []
    return [
        Fact("device", str(summary.get("device") or NOTHING), ", ".join(processor)),
        Fact("versions", ", ".join(parts) or NOTHING, "; ".join(resumed)),
        Fact("folder", str(run.path)),
    ]
