"""job=predict: label pictures with a trained run, given a few labelled examples of each class.

The classes are those of the support folder; they need not be any that the run was trained on.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metarun.compute.device import Placement, make_placement
from metarun.config.from_run import source_run
from metarun.config.schema import Config
from metarun.data.folder import Examples, Pictures, read_examples, read_pictures
from metarun.errors import SettingError, UserError
from metarun.jobs.result import Result
from metarun.regularizers.build import build_regularization
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.evaluation import REFERENCE_INPUTS, replace_model
from metarun.training.experiment import build_dataset, build_learner, option_name
from metarun.types import Algorithm, Batch, Dataset, Params

SHOWN = 30  # predictions that the terminal lists
AT_ONCE = 256  # pictures that are predicted together


class Predictions(NamedTuple):
    classes: tuple[str, ...]
    files: tuple[str, ...]
    probabilities: Tensor  # [M, N]
    truth: list[str | None]  # the folder's name, where it is one of the classes


def predict_job(config: Config, record: RunFolder) -> Result:
    """Leaves predictions.csv and summary.json in the run folder."""
    source = source_run(config)
    dataset: Any = build_dataset(config)
    if not hasattr(dataset, "pixels"):
        raise SettingError(
            "run", source.path, f"was trained on data={option_name('data', config)}, which has no images"
        )
    examples = read_examples(_given(config, "support"), dataset.pixels)
    pictures = read_pictures(_given(config, "query"), dataset.pixels)
    placement = make_placement(config.device)
    learner, params = restored(config, source, dataset, placement, examples)
    probabilities = predict(learner, params, examples, pictures, placement)
    predictions = Predictions(examples.classes, pictures.files, probabilities, _truth(pictures, examples))
    summary = describe(config, source, examples, predictions)
    record.create(dataclasses.asdict(config))
    write_table(record.path / "predictions.csv", predictions)
    record.write_json("summary.json", summary)
    show(summary, predictions, Console(), record)
    return Result("completed", summary, record.path, params)


def restored(
    config: Config, source: RunFolder, dataset: Dataset, placement: Placement, examples: Examples
) -> tuple[Algorithm, Params]:
    """The run's learner for these classes, with its best weights, and with its statistics fixed if it has any."""
    ways = len(examples.classes)
    learner = build_learner(config, dataset, ways)
    if learner.head and ways != config.data["ways"]:
        raise UserError(
            f"predict.support={config.predict.support}: has {ways} classes, and the network of this run ends in "
            f"{config.data['ways']} outputs; train with data.ways={ways}, or a learner without a head, as algo=protonet"
        )
    params = placement.move_params(build_regularization(config, dataset.kind).init(learner.init(config.seed)))
    checkpoint.restore_params(checkpoint.best_of(source), params)
    x = placement.move(examples.x)
    if learner.model.calibrate(params, x) is not learner.model:  # the statistics are those of training images
        reference = placement.move(dataset.reference_inputs(REFERENCE_INPUTS))
        learner = replace_model(learner, learner.model.calibrate(params, reference))
    return learner, params


def predict(learner: Algorithm, params: Params, examples: Examples, pictures: Pictures, placement: Placement) -> Tensor:
    """The probability of each class for each picture [M, N], after adapting to the examples."""
    support = Batch(placement.move(examples.x), placement.move(examples.y))
    *_, adapted = learner.adaptations(params, support, learner.test_inner_steps)
    parts = placement.move(pictures.x).split(AT_ONCE)
    return torch.cat([learner.predict(adapted, part) for part in parts]).softmax(1).cpu()


def describe(config: Config, source: RunFolder, examples: Examples, predictions: Predictions) -> dict[str, Any]:
    best = predictions.probabilities.argmax(1).tolist()
    known = [(t, predictions.classes[b]) for t, b in zip(predictions.truth, best, strict=True) if t is not None]
    return {
        "run": str(source.path),
        "algo": option_name("algo", config),
        "norm": config.model.get("norm"),
        "classes": list(examples.classes),
        "shots": list(examples.shots),
        "pictures": len(best),
        "labelled": len(known),
        "correct": sum(truth == predicted for truth, predicted in known),
    }


def write_table(path: Path, predictions: Predictions) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "predicted", "probability", *(f"p({name})" for name in predictions.classes)])
        for name, row in zip(predictions.files, predictions.probabilities.tolist(), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            writer.writerow([name, predictions.classes[best], f"{row[best]:.4f}", *(f"{p:.4f}" for p in row)])


def show(summary: dict[str, Any], predictions: Predictions, console: Console, record: RunFolder) -> None:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    shots = "-".join(str(s) for s in sorted(set(summary["shots"])))
    say(
        f"metarun: {summary['algo']} of {summary['run']}, {len(predictions.classes)} classes with {shots} examples each"
    )
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for column in ("file", "predicted", "probability", "next"):
        table.add_column(column, overflow="fold", justify="right" if column == "probability" else "left")
    top = predictions.probabilities.topk(2, dim=1)
    rows = zip(predictions.files, top.values.tolist(), top.indices.tolist(), strict=True)
    for name, (p, q), (first, second) in list(rows)[:SHOWN]:
        table.add_row(name, predictions.classes[first], f"{p:.3f}", f"{predictions.classes[second]} {q:.3f}")
    console.print(table)
    if summary["pictures"] > SHOWN:
        say(f"... and {summary['pictures'] - SHOWN} more")
    if summary["labelled"]:
        say(f"{summary['correct']} of {summary['labelled']} pictures are in a folder named as predicted")
    if summary["norm"] == "batch":
        say("norm batch: a prediction depends on the other pictures that were given with it")
    say(f"table: {record.path / 'predictions.csv'}")


def _given(config: Config, name: str) -> Path:
    value = getattr(config.predict, name)
    if not value:
        raise SettingError(f"predict.{name}", None, "job=predict needs a folder of examples per class and pictures")
    return Path(value).expanduser()


def _truth(pictures: Pictures, examples: Examples) -> list[str | None]:
    """The class that a picture's folder names, if it names one."""
    folders: Sequence[str] = [PurePosixPath(name).parent.name for name in pictures.files]
    return [folder if folder in examples.classes else None for folder in folders]
