r"""job=export: a trained run as files that work without metarun, pruned, with what pruning cost and saved.

model.safetensors   the best checkpoint's meta-parameters, without the units that were cut
config.json         inputs, outputs, preprocessing and settings: all that is needed to use them
predict.pt2         a torch.export program of adaptation and prediction
summary.json        the test metric, latency, sizes and zeros before and after pruning
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table

from metarun.config.from_run import open_source_run
from metarun.config.schema import Config, to_dict
from metarun.data.pixels import NORMALIZE, Pixels
from metarun.diagnostics.sparsity import sparsity
from metarun.errors import UserError
from metarun.jobs.export.pruning import cut_units, zero_small_weights
from metarun.jobs.result import Result
from metarun.jobs.summary import params_sha256, versions
from metarun.jobs.terminal import show, small_table
from metarun.storage.atomic import name_file_in_errors
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import count_nouns
from metarun.training import checkpoint
from metarun.training.evaluation import EPISODE_SEED, calibrate, replace_model
from metarun.training.experiment import NO_PARTS, Experiment, OwnParts, assemble, option_name
from metarun.types import Algorithm, AlgorithmOptions, Batch, DatasetOptions, Params, Task, optional

FORMAT = 1  # raise it when what is stored changes its meaning

NORMS = {
    "batch": "by the statistics of the batch at hand: predictions depend on the queries that are given together",
    "support": "queries by the statistics of the support set",
    "population": "by the statistics of training images, stats.* of model.safetensors",
    "group": "by groups of channels of each example",
    "layer": "by all channels of each example",
    "none": "none",
}

EXACT = 1e-6
"""Largest change of a prediction, in float64, that cutting silent units may make."""

ROWS = (
    ("latency of a call", "latency_ms", "{:.2f} ms"),
    ("parameters", "parameters", "{}"),
    ("parameters that are zero", "zeros", "{}"),
    ("hidden units", "units", "{}"),
    ("model.safetensors", "weights_bytes", "{} bytes"),
    ("predict.pt2", "program_bytes", "{} bytes"),
)


class Version(NamedTuple):
    """The learner as it was trained, or pruned."""

    learner: Algorithm
    params: Params


class Built(NamedTuple):
    """The files of one version, and the measurements on them."""

    weights: bytes
    program: bytes
    usage: dict[str, Any]
    facts: dict[str, Any]


def export_job(config: Config, record: RunFolder, own: OwnParts = NO_PARTS) -> Result:
    """Write model.safetensors, config.json, predict.pt2 and summary.json into the run folder."""
    source = open_source_run(config)
    import_safetensors_save()  # refuses before anything is done
    config.device.name = "cpu"  # a program is bound to the device that it was traced on
    if config.device.precision == "bfloat16":
        config.device.precision = "float32"  # of the weights, which were never narrower
    experiment = assemble(config, own, embed=False)
    params = experiment.initial_params()
    checkpoint.restore_params(checkpoint.best_of(source), params)
    trained = Version(experiment.tested, experiment.fit_head(params))
    pruned, pruning = prune(experiment, trained)
    facts = {"algo": option_name("algo", config), "data": option_name("data", config), "run": str(source.path)}
    before = build(experiment, trained, facts)
    after = before if pruned is trained else build(experiment, pruned, facts)
    summary = {
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
    record.create(to_dict(config))
    for name, content in (("model.safetensors", after.weights), ("predict.pt2", after.program)):
        with name_file_in_errors(record.path / name):
            (record.path / name).write_bytes(content)
    described = {key: summary[key] for key in ("algo", "data", "kind", "metric", "pruning", "versions")}
    scores = {"mean": after.facts["mean"], "ci95": after.facts["ci95"], "n_tasks": config.export.tasks}
    record.write_json("config.json", described | {"figure": scores} | after.usage)
    record.write_json("summary.json", summary)
    show(*render(summary, record.path))
    return Result("completed", summary, record.path, pruned.params)


def prune(experiment: Experiment, trained: Version) -> tuple[Version, dict[str, Any]]:
    """The learner without small weights and silent units (`trained` itself if it has none), and what was cut. Units are
    kept where predictions would change without them."""
    threshold = experiment.config.export.threshold
    params = zero_small_weights(trained.params, threshold)
    same = all(params[name].equal(w) for name, w in trained.params.items())
    zeroed = trained if same else Version(trained.learner, params)
    smaller = cut_units(trained.learner.model, params)
    facts: dict[str, Any] = {"threshold": threshold, "units_cut": smaller.cut, "change": None, "kept_for": None}
    if not smaller.cut:
        return zeroed, facts
    pruned = Version(replace_model(trained.learner, smaller.model), smaller.params)
    facts["change"] = measure_change(experiment, zeroed, pruned)
    if not facts["change"] <= EXACT:
        facts |= {"units_cut": {}, "kept_for": "silent units are kept: without them predictions would change"}
        return zeroed, facts
    return pruned, facts


def measure_change(experiment: Experiment, *versions: Version) -> float:
    """The largest difference between two versions' predictions on the first test task, in float64."""
    task = Task(*(Batch(*to_double(b._asdict()).values()) for b in draw_first_task(experiment)))
    predictions = []
    for version in versions:
        params = to_double(version.params)
        learner = calibrate(version.learner, params, experiment.dataset, experiment.placement)
        *_, adapted = learner.adaptations(params, task.support, learner.test_inner_steps)
        predictions.append(learner.predict(adapted, task.query.x))
    return float((predictions[0] - predictions[1]).abs().max())


def to_double(params: Params) -> Params:
    return {name: w.double() if w.dtype == torch.float32 else w for name, w in params.items()}


def build(experiment: Experiment, version: Version, facts: dict[str, Any]) -> Built:
    """Trace the version, test it, and time the program."""
    # Here, since torch.export takes long to import and no other job needs it.
    from metarun.jobs.export.program import Example, collect_tensors, export_program, fewest_queries, time_calls

    settings = experiment.config.export
    evaluate = experiment.evaluator("test", settings.tasks, (version.learner.test_inner_steps,))
    evaluation = evaluate(version.learner, version.params)
    learner = calibrate(version.learner, version.params, experiment.dataset, experiment.placement)
    tensors = collect_tensors(learner, version.params)
    metadata = {"format": "pt", **facts, "metric": experiment.algorithm.loss.metric, "mean": str(evaluation.mean)}
    weights = import_safetensors_save()({n: w.detach().cpu().contiguous() for n, w in tensors.items()}, metadata)
    task = draw_first_task(experiment)
    example, start = Example(*task.support, task.query.x), time.perf_counter()
    program = export_program(learner, version.params, example, experiment.dataset.kind)
    seconds, file = time.perf_counter() - start, io.BytesIO()
    torch.export.save(program, file)
    counts = sparsity(version.params, settings.threshold)["total"]
    measured = {
        "mean": evaluation.mean,
        "ci95": evaluation.ci95,
        "episodes_sha256": evaluation.episodes_sha256,
        "latency_ms": 1e3 * time_calls(program, example, settings.calls),
        "parameters": counts["parameters"],
        "zeros": counts["parameters"] - counts["nonzero"],
        "units": counts["units"],
        "weights_bytes": len(weights),
        "program_bytes": len(file.getvalue()),
        "tracing_seconds": seconds,
        "params_sha256": params_sha256(version.params),
    }
    usage = describe_usage(experiment, tensors, fewest_queries(learner))
    return Built(weights, file.getvalue(), usage, measured)


def draw_first_task(experiment: Experiment) -> Task:
    """The first test task; support [S, ...], queries [M, ...]."""
    drawn = experiment.dataset.episodes("test", EPISODE_SEED, 0, range(1), experiment.test_spec)
    return Task(*(Batch(b.x[0], b.y[0]) for b in experiment.placement.move_task(drawn)))


def import_safetensors_save() -> Callable[[Params, dict[str, str]], bytes]:
    """The package's function; raise `UserError` where it is not installed."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("job=export: safetensors is not installed; pip install 'metarun[export]'") from error
    return save


def describe_usage(experiment: Experiment, tensors: Params, least_queries: int) -> dict[str, Any]:
    """The part of config.json on inputs, outputs, preprocessing, normalisation and tensors."""
    config, dataset, spec = experiment.config, experiment.dataset, experiment.test_spec
    shape, norm = list(dataset.input_shape()), config.model.get("norm")
    classes = dataset.kind == "classification"
    rows = spec.shots * (spec.ways if classes else 1)
    dtype = str(experiment.placement.dtype).removeprefix("torch.")
    outputs = dataset.outputs(spec.ways)
    gaussians = optional(experiment.algorithm, AlgorithmOptions, "predicts") == "gaussians"
    if gaussians:
        meaning = "predicted means, then standard deviations"
    elif dataset.kind == "regression":
        meaning = "predicted means"
    else:
        meaning = "probabilities; column n is the class whose support rows are labelled n, labels are 0 .. ways - 1"
    return {
        "format": FORMAT,
        "inputs": {
            "support_x": {"shape": [rows, *shape], "dtype": dtype},
            "support_y": {"shape": [rows] if classes else [rows, outputs], "dtype": "int64" if classes else dtype},
            "query_x": {"shape": [f"at least {least_queries}", *shape], "dtype": dtype},
        },
        "output": {
            "shape": ["rows of query_x", 2 * outputs if gaussians else outputs],
            "dtype": dtype,
            "is": meaning,
        },
        "support_order": "row k * ways + n is example k of class n" if classes else "any",
        "ways": spec.ways if classes else None,
        "shots": spec.shots,
        "adaptation_steps": experiment.tested.test_inner_steps,
        "preprocessing": describe_preprocessing(optional(dataset, DatasetOptions, "pixels")),
        "normalisation": {"norm": norm, "meaning": NORMS.get(str(norm))},
        "tensors": {name: list(w.shape) for name, w in tensors.items()},
        # All of them, without the folder that the run lay in.
        "settings": {k: v for k, v in to_dict(config).items() if k not in ("run", "resume")},
    }


def describe_preprocessing(pixels: Pixels | None) -> dict[str, Any] | None:
    """How an image file becomes a row of support_x or query_x; None where inputs are no images."""
    if pixels is None:
        return None
    mean, deviation = NORMALIZE[pixels.normalize]
    colours = "grey" if pixels.channels == 1 else "RGB"
    steps = f"{colours}, {pixels.fit} to {pixels.size}x{pixels.size} ({pixels.resize})"
    steps += ", inverted so that dark strokes on white become 1 on 0" if pixels.ink else ""
    steps += ", bytes / 255, then (value - mean) / deviation per channel, channels first"
    return {"steps": steps, "mean": mean, "deviation": deviation, **dataclasses.asdict(pixels)}


def render(summary: dict[str, Any], folder: Path) -> Iterator[str | Table]:
    """What the terminal shows."""
    before, after, pruning = summary["before"], summary["after"], summary["pruning"]
    steps = count_nouns(summary["adaptation_steps"], "adaptation step")
    yield f"metarun: {summary['algo']} of {summary['run']}, {steps}"
    table = small_table("", "as trained", "pruned")
    scores = [f"{side['mean']:.4f} +- {side['ci95']:.4f}" for side in (before, after)]
    table.add_row(f"{summary['metric']} on {count_nouns(summary['n_tasks'], 'test task')}", *scores)
    for title, key, form in ROWS:
        table.add_row(title, form.format(before[key]), form.format(after[key]))
    yield table
    lost = ", ".join(f"{count} of {block}" for block, count in pruning["units_cut"].items()) or "none"
    why = f"; {pruning['kept_for']}" if pruning["kept_for"] else ""
    yield f"threshold {pruning['threshold']:g}; units cut: {lost}{why}"
    if summary["norm"] == "batch":
        needed = "for one query at a time export with model.norm=support"
        yield f"norm batch: the program normalises the queries of a call together, as the test does; {needed}"
    yield f"files: {folder}/model.safetensors, config.json, predict.pt2"
