"""job=predict: label pictures with a trained run, given a few labelled examples of each class.

The classes are those of the support folder; they need not be any that the run was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from metarun.algorithms.inner_loop import fit_head
from metarun.compute.device import Placement, make_placement
from metarun.config.from_run import open_source_run
from metarun.config.schema import Config, to_dict
from metarun.data.folder import read_examples, read_pictures
from metarun.data.own import complete
from metarun.errors import SettingError, UserError
from metarun.jobs.result import Result
from metarun.jobs.terminal import show, small_table
from metarun.regularizers.build import build_regularization
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import count_nouns
from metarun.training import checkpoint
from metarun.training.episode_size import episode_sizes
from metarun.training.evaluation import calibrate
from metarun.training.experiment import NO_PARTS, OwnParts, build_dataset, build_learner, option_name, rescale
from metarun.types import Algorithm, AlgorithmOptions, Batch, Dataset, DatasetOptions, ModelOptions, Params, optional

SHOWN = 30  # predictions that the terminal lists
AT_ONCE = 256  # pictures that are predicted together
UNREADABLE = "(not readable)"  # in place of the class of a file that is no image


class Prediction(NamedTuple):
    """The probability of each class for one picture, the likeliest first."""

    file: str
    probabilities: dict[str, float]

    @property
    def best(self) -> str:
        return next(iter(self.probabilities))


def predict_job(config: Config, record: RunFolder, own: OwnParts = NO_PARTS) -> Result:
    """Write predictions.csv and summary.json into the run folder; files that cannot be read are named and skipped."""
    source = open_source_run(config)
    made = build_dataset(config) if own.dataset is None else own.dataset
    dataset = complete(made, episode_sizes(config)[0])
    pixels = optional(dataset, DatasetOptions, "pixels")
    if pixels is None and (dataset.kind == "regression" or optional(dataset, DatasetOptions, "encode")):
        from metarun.jobs.predict_rows import predict_rows

        return predict_rows(config, record, source, dataset, own)
    if pixels is None:
        name = option_name("data", config)
        raise SettingError("run", source.path, f"was trained on data={name}, which has neither images nor a table")
    if pixels.depth is None:  # as the files that the run was trained on
        pixels = dataclasses.replace(pixels, depth=source.read_summary().get("depth", 16))
    examples = read_examples(require_path(config, "support"), pixels)
    pictures = read_pictures(require_path(config, "query"), pixels)
    placement = make_placement(config.device)
    support = Batch(placement.move(examples.x), placement.move(examples.y))
    try:
        learner, params = restore_learner(config, source, dataset, placement, support, own)
    except UserError as error:
        raise UserError(f"predict.support={config.predict.support}: {error}") from error
    together = optional(learner, AlgorithmOptions, "transductive")
    rows = predict(learner, params, support, placement.move(pictures.x)).softmax(1).tolist()
    predictions = [
        Prediction(name, dict(sorted(zip(examples.classes, row, strict=True), key=lambda pair: -pair[1])))
        for name, row in zip(pictures.files, rows, strict=True)
    ]
    folders = [(PurePosixPath(p.file).parent.name, p.best) for p in predictions]
    known = [(folder, best) for folder, best in folders if folder in examples.classes]
    summary = {
        "run": str(source.path),
        "algo": option_name("algo", config),
        "norm": config.model.get("norm"),
        "alone": sees_other_rows(learner) and not together,
        "transductive": together,
        "classes": list(examples.classes),
        "shots": list(examples.shots),
        "pictures": len(predictions),
        "unreadable": list(pictures.unreadable),
        "labelled": len(known),
        "correct": sum(folder == best for folder, best in known),
    }
    record.create(to_dict(config))
    record.write_table("predictions.csv", _list_predictions(predictions, pictures.unreadable, examples.classes))
    record.write_json("summary.json", summary)
    show(*render(summary, predictions, record))
    return Result("completed", summary, record.path, params)


def _list_predictions(
    predictions: Sequence[Prediction], unreadable: Sequence[str], classes: Sequence[str]
) -> Iterator[dict[str, str]]:
    """The rows of predictions.csv."""
    columns = ["file", "predicted", "probability", *(f"p({name})" for name in classes)]
    for p in predictions:
        values = (f"{p.probabilities[name]:.7g}" for name in (p.best, *classes))
        yield dict(zip(columns, (p.file, p.best, *values), strict=True))
    for name in unreadable:
        yield dict(zip(columns, (name, UNREADABLE, *[""] * (1 + len(classes))), strict=True))


def restore_learner(
    config: Config, source: RunFolder, dataset: Dataset, placement: Placement, support: Batch, own: OwnParts = NO_PARTS
) -> tuple[Algorithm, Params]:
    """The run's learner for the classes 0 .. N-1 of a support set, and its best weights; statistics of its
    normalisation, if any, are fixed. Raise `UserError` if its network has another number of outputs."""
    train_ways = config.algo.get("train_ways") or config.data["ways"]
    ways = int(support.y.max()) + 1 if dataset.kind == "classification" else train_ways
    trained = learner = build_learner(config, dataset, train_ways, own)
    if ways != train_ways:
        learner = build_learner(config, dataset, ways, own)
        if learner.head and not optional(learner, AlgorithmOptions, "zero_head"):
            raise UserError(
                f"the support set has {ways} classes, and the network of this run ends in {train_ways} outputs; "
                f"train with data.ways={ways}, with algo.zero_head=true, or a learner without a head, as algo=protonet"
            )
    params = placement.move_params(build_regularization(config, dataset.kind).init(trained.init(config.seed)))
    checkpoint.restore_params(checkpoint.best_of(source), params)
    if learner.head and ways != train_ways:
        learner, params = rescale(config, learner, train_ways, ways), fit_head(params, dataset.outputs(ways))
    if learner.model.calibrate(params, support.x) is not learner.model:  # the statistics are those of training images
        learner = calibrate(learner, params, dataset, placement)
    return learner, params


def predict(learner: Algorithm, params: Params, support: Batch, x: Tensor, steps: int | None = None) -> Tensor:
    """What the learner predicts for the inputs x [M, ...] after adapting to the support set, on its device. `steps`:
    adaptation steps, None: those of the reported result.

    Each row is predicted without the others, but by a transductive learner. Where the network may normalise a batch by
    itself, each is therefore in a batch of the support set and itself, as with norm=joined.
    """
    *_, adapted = learner.adaptations(params, support, learner.test_inner_steps if steps is None else steps)
    if optional(learner, AlgorithmOptions, "transductive"):
        return learner.predict(adapted, x)
    if not sees_other_rows(learner):
        return torch.cat([learner.predict(adapted, part) for part in x.split(AT_ONCE)])
    predict_last = torch.func.vmap(lambda row: learner.predict(adapted, torch.cat([support.x, row[None]]))[-1])
    at_once = max(1, AT_ONCE // (len(support.x) + 1))
    return torch.cat([predict_last(part) for part in x.split(at_once)])


def sees_other_rows(learner: Algorithm) -> bool:
    """Whether a prediction may depend on the other rows of its batch. A network of one's own that does not name its
    normalisation may be such a one."""
    return optional(learner.model, ModelOptions, "norm") in ("batch", None)


def render(summary: dict[str, Any], predictions: Sequence[Prediction], record: RunFolder) -> Iterator[str | Table]:
    """What the terminal shows."""
    fewest, most = summary["shots"]
    shots = f"{fewest} to {most} examples" if fewest < most else count_nouns(most, "example")
    yield f"metarun: {summary['algo']} of {summary['run']}, {len(summary['classes'])} classes with {shots} each"
    table = small_table("file", "predicted", "probability", "next", text=("predicted", "next"))
    for name in summary["unreadable"][:SHOWN]:
        table.add_row(name, UNREADABLE)
    for file, probabilities in predictions[:SHOWN]:
        (first, p), (second, q), *_ = probabilities.items()
        table.add_row(file, first, f"{p:.3f}", f"{second} {q:.3f}")
    yield table
    if summary["pictures"] > SHOWN:
        yield f"... and {summary['pictures'] - SHOWN} more"
    if summary["labelled"]:
        labelled = count_nouns(summary["labelled"], "picture")
        yield f"{summary['correct']} of {labelled} in a folder named after a class got that class"
    if summary["alone"]:
        yield "norm batch: each picture is normalised together with the examples and without the other pictures"
    if summary["transductive"]:
        yield "transductive: the pictures are predicted together, and each depends on the others"
    skipped = len(summary["unreadable"])
    ending = f" ({count_nouns(skipped, 'file')} skipped: not readable as images)" if skipped else ""
    yield f"table: {record.path / 'predictions.csv'}{ending}"


def require_path(config: Config, name: str) -> Path:
    """`predict.NAME`; raise `SettingError` where it is not set."""
    value = getattr(config.predict, name)
    if not value:
        needed = "job=predict needs the examples to adapt to (support), and what to predict (query)"
        raise SettingError(f"predict.{name}", None, f"{needed}: folders of pictures, or tables for a run on rows")
    return Path(value).expanduser()
