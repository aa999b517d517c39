"""job=export: a trained run as files that work without metarun, pruned, with what pruning cost and saved.

model.safetensors   the best checkpoint's meta-parameters, without the units that were cut
config.json         inputs, outputs, preprocessing and settings: all that is needed to use them
predict.pt2         a torch.export program of adaptation and prediction
summary.json        the test figure, latency, sizes and zeros before and after pruning
"""

from __future__ import annotations

import dataclasses
import io
import time
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from metarun.config.from_run import source_run
from metarun.config.schema import Config
from metarun.diagnostics.sparsity import sparsity
from metarun.jobs.export.files import double, safetensors_save, usage, weights_bytes, write_bytes
from metarun.jobs.export.pruning import Pruned, cut, thresholded
from metarun.jobs.result import Result
from metarun.jobs.summary import params_sha256, versions
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.evaluation import EPISODE_SEED, REFERENCE_INPUTS, Evaluation, replace_model
from metarun.training.experiment import Experiment, assemble, option_name
from metarun.types import Algorithm, Batch, Params, Task

EXACT = 1e-6
"""Largest change of a prediction, in float64, that cutting silent units may make."""


class Version(NamedTuple):
    """The learner as it was trained, or pruned."""

    learner: Algorithm
    params: Params


class Made(NamedTuple):
    """The files of one version, and what was measured on them."""

    weights: bytes
    program: bytes
    facts: dict[str, Any]


def export_job(config: Config, record: RunFolder) -> Result:
    """Leaves model.safetensors, config.json, predict.pt2 and summary.json in the run folder."""
    source = source_run(config)
    safetensors_save()  # refuses before anything is done
    config.device.name = "cpu"  # a program is bound to the device that it was traced on
    if config.device.precision == "bfloat16":
        config.device.precision = "float32"  # of the weights, which were never narrower
    experiment = assemble(config)
    params = experiment.initial_params()
    checkpoint.restore_params(checkpoint.best_of(source), params)
    trained = Version(experiment.tested, params)
    pruned, pruning = prune(experiment, trained)
    facts = {"algo": option_name("algo", config), "data": option_name("data", config), "run": str(source.path)}
    before = make(experiment, trained, facts)
    unchanged = all(w is params[name] for name, w in pruned.params.items())
    after = before if unchanged else make(experiment, pruned, facts)
    summary = describe(experiment, facts, pruning, before, after)
    record.create(dataclasses.asdict(config))
    write(experiment, record, pruned, summary, after)
    show(summary, Console(), record)
    return Result("completed", summary, record.path, pruned.params)


def prune(experiment: Experiment, trained: Version) -> tuple[Version, dict[str, Any]]:
    """Without small weights and silent units, and what became of these; nothing is cut that would be missed."""
    threshold = experiment.config.export.threshold
    zeroed = thresholded(trained.params, threshold)
    if all(zeroed[name].equal(w) for name, w in trained.params.items()):
        zeroed = trained.params
    smaller = cut(trained.learner.model, zeroed)
    facts: dict[str, Any] = {"threshold": threshold, "units_cut": smaller.cut, "change": None, "kept_for": None}
    if not smaller.cut:
        return Version(trained.learner, zeroed), facts
    facts["change"] = change(experiment, Version(trained.learner, zeroed), smaller)
    if not facts["change"] <= EXACT:
        facts |= {"units_cut": {}, "kept_for": "silent units are kept: without them predictions would change"}
        return Version(trained.learner, zeroed), facts
    return Version(replace_model(trained.learner, smaller.model), smaller.params), facts


def change(experiment: Experiment, zeroed: Version, smaller: Pruned) -> float:
    """The largest difference that cutting makes to the predictions on the first test task, in float64."""
    cut_version = Version(replace_model(zeroed.learner, smaller.model), smaller.params)
    task = Task(*(Batch(double({"x": b.x})["x"], double({"y": b.y})["y"]) for b in first_task(experiment)))
    predictions = []
    for version in (zeroed, cut_version):
        learner, params = calibrate(experiment, version._replace(params=double(version.params)))
        *_, adapted = learner.adaptations(params, task.support, learner.test_inner_steps)
        predictions.append(learner.predict(adapted, task.query.x))
    return float((predictions[0] - predictions[1]).abs().max())


def make(experiment: Experiment, version: Version, facts: dict[str, Any]) -> Made:
    """Trace the version, test it, and time the program."""
    # Here, since torch.export takes long to import and no other job needs it.
    from metarun.jobs.export.program import Example, exported, seconds_per_call, tensors_of

    config = experiment.config
    evaluation = tested(experiment, version)
    facts = facts | {"metric": experiment.algorithm.loss.metric, "mean": evaluation.mean}
    learner, params = calibrate(experiment, version)
    weights = weights_bytes(tensors_of(learner, params), facts)
    task = first_task(experiment)
    example, start = Example(*task.support, task.query.x), time.perf_counter()
    program = exported(learner, params, example, experiment.dataset.kind)
    seconds, file = time.perf_counter() - start, io.BytesIO()
    torch.export.save(program, file)
    found = sparsity(version.params, config.export.threshold)["total"]
    measured = {
        "mean": evaluation.mean,
        "ci95": evaluation.ci95,
        "episodes_sha256": evaluation.episodes_sha256,
        "latency_ms": 1e3 * seconds_per_call(program, example, config.export.calls),
        "parameters": found["parameters"],
        "zeros": found["parameters"] - found["nonzero"],
        "units": found["units"],
        "weights_bytes": len(weights),
        "program_bytes": len(file.getvalue()),
        "tracing_seconds": seconds,
        "params_sha256": params_sha256(version.params),
    }
    return Made(weights, file.getvalue(), measured)


def tested(experiment: Experiment, version: Version) -> Evaluation:
    steps = (version.learner.test_inner_steps,)
    return experiment.evaluator("test", experiment.config.export.tasks, steps)(version.learner, version.params)


def calibrate(experiment: Experiment, version: Version) -> Version:
    """With the statistics of training inputs where the network's norm asks for them, in the weights' precision."""
    dtype = next(iter(version.params.values())).dtype
    reference = experiment.dataset.reference_inputs(REFERENCE_INPUTS).to(dtype)
    return Version(
        replace_model(version.learner, version.learner.model.calibrate(version.params, reference)), version.params
    )


def first_task(experiment: Experiment) -> Task:
    drawn = experiment.dataset.episodes("test", EPISODE_SEED, 0, range(1), experiment.test_spec)
    return Task(*(Batch(b.x[0], b.y[0]) for b in experiment.placement.move_task(drawn)))


def describe(
    experiment: Experiment, facts: dict[str, Any], pruning: dict[str, Any], before: Made, after: Made
) -> dict[str, Any]:
    config = experiment.config
    return {
        "status": "completed",
        **facts,
        "kind": experiment.dataset.kind,
        "metric": experiment.algorithm.loss.metric,
        "norm": config.model.get("norm"),
        "reg": option_name("reg", config),
        "adaptation_steps": experiment.tested.test_inner_steps,
        "n_tasks": config.export.tasks,
        "calls": config.export.calls,
        "pruning": pruning,
        "before": before.facts,
        "after": after.facts,
        "versions": versions(),
    }


def write(experiment: Experiment, record: RunFolder, pruned: Version, summary: dict[str, Any], made: Made) -> None:
    from metarun.jobs.export.program import fewest_queries, tensors_of

    learner, params = calibrate(experiment, pruned)
    write_bytes(record.path / "model.safetensors", made.weights)
    write_bytes(record.path / "predict.pt2", made.program)
    known = {key: summary[key] for key in ("algo", "data", "kind", "metric", "pruning", "versions")}
    known |= {"figure": {key: summary["after"][key] for key in ("mean", "ci95")} | {"n_tasks": summary["n_tasks"]}}
    record.write_json("config.json", known | usage(experiment, tensors_of(learner, params), fewest_queries(learner)))
    record.write_json("summary.json", summary)


ROWS = (
    ("latency of a call", "latency_ms", "{:.2f} ms"),
    ("parameters", "parameters", "{}"),
    ("zeros among them", "zeros", "{}"),
    ("units of blocks", "units", "{}"),
    ("model.safetensors", "weights_bytes", "{} bytes"),
    ("predict.pt2", "program_bytes", "{} bytes"),
)


def show(summary: dict[str, Any], console: Console, record: RunFolder) -> None:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    before, after, pruning = summary["before"], summary["after"], summary["pruning"]
    say(f"metarun: {summary['algo']} of {summary['run']}, {summary['adaptation_steps']} adaptation steps")
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for column in ("", "as trained", "pruned"):
        table.add_column(column, justify="right" if column else "left")
    scores = [f"{side['mean']:.4f} +- {side['ci95']:.4f}" for side in (before, after)]
    table.add_row(f"{summary['metric']} on {summary['n_tasks']} test tasks", *scores)
    for title, key, form in ROWS:
        table.add_row(title, form.format(before[key]), form.format(after[key]))
    console.print(table)
    lost = ", ".join(f"{count} of {block}" for block, count in pruning["units_cut"].items()) or "none"
    say(
        f"threshold {pruning['threshold']:g}; units cut: {lost}"
        + (f"; {pruning['kept_for']}" if pruning["kept_for"] else "")
    )
    say(f"files: {record.path}/model.safetensors, config.json, predict.pt2")
