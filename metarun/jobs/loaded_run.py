"""A run folder in a Python session: its numbers, its learner to adapt and predict with, another test, a figure."""

from __future__ import annotations

import html
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from metarun.compute.device import Placement, make_placement
from metarun.config.schema import Config
from metarun.errors import UserError, require
from metarun.jobs.predict import predict, restore_learner
from metarun.jobs.result import Result
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import NO_PARTS, OwnParts, assemble
from metarun.types import Algorithm, Batch, Dataset, DatasetOptions, Params, optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LoadedRun:
    """A run of a folder; `metarun.load` makes one."""

    folder: Path
    config: Config = field(repr=False)  # the run's settings
    test_again: Callable[[Sequence[str], Path | None], Result] = field(repr=False)
    own: OwnParts = field(default=NO_PARTS, repr=False)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds: `mean`, `ci95`, `status`, `alarms`, ..."""
        return RunFolder(self.folder).read_summary()

    @property
    def scores(self) -> Any:
        """The reported metric of each test task after each adaptation step: a DataFrame [tasks, steps], or an array
        without pandas."""
        path = self.folder / "test.json"
        if not path.exists():
            raise UserError(f"{self.folder}: has no test.json; run.evaluate() tests the run")
        stored = json.loads(path.read_text(encoding="utf-8"))
        values = np.array(stored["scores"], dtype=float).T
        if importlib.util.find_spec("pandas") is None:
            return values
        import pandas

        tasks = pandas.RangeIndex(len(values), name="task")
        return pandas.DataFrame(values, columns=[f"step {step}" for step in stored["steps"]], index=tasks)

    @property
    def curves(self) -> dict[str, Any]:
        """The logged metrics by kind (`train`, `val`): a DataFrame with a row for each outer step, or without pandas a
        dict of arrays; `["step"]` of both is the outer step."""
        records = RunFolder(self.folder).read_records()
        return {
            kind: _as_curves([r for r in records if r["kind"] == kind])
            for kind in dict.fromkeys(r["kind"] for r in records)
        }

    def adapt(self, support_x: ArrayLike, support_y: ArrayLike, steps: int | None = None) -> AdaptedLearner:
        """Adapt the run's best checkpoint to a support set.

        Args:
            support_x: [S, ...], rows in the units of the data (data=table, arrays, windows), else inputs as the data
                set of the run gives them to its network.
            support_y: [S] labels of any kind, or [S, d_out] targets of a regression.
            steps: adaptation steps, 0 for none; None: as many as the reported result has. A learner without an inner
                loop has no steps.
        """
        require(steps is None or steps >= 0, "steps", steps, "must be at least 0")
        placement = make_placement(self.config.device)
        x, classes = self._as_inputs(support_x, placement), None
        if self._dataset.kind == "classification":
            classes, labels = np.unique(np.asarray(support_y), return_inverse=True)
            y = placement.move(torch.as_tensor(labels.reshape(-1)))
        else:
            targets = _as_numbers("support_y", support_y)
            outputs = self._dataset.outputs(self.config.data["ways"])
            fits = (targets.ndim == 1 and outputs == 1) or targets.shape[1:] == (outputs,)
            needed = f"must be [rows, {outputs}], the targets of the run"
            require(fits, "support_y", f"array of shape {list(targets.shape)}", needed)
            scale = optional(self._dataset, DatasetOptions, "encode")
            targets = targets if targets.ndim > 1 else targets[:, None]
            y = placement.move(torch.as_tensor(scale(0.0, targets)[1] if scale else targets).float())
        require(len(x) == len(y), "support_y", len(y), f"must have a row for each of the {len(x)} rows of support_x")
        support = Batch(x, y)
        learner, params = restore_learner(
            self.config, RunFolder(self.folder), self._dataset, placement, support, self.own
        )
        decode = optional(self._dataset, DatasetOptions, "decode")
        return AdaptedLearner(learner, params, support, classes, lambda x: self._as_inputs(x, placement), decode, steps)

    def evaluate(self, *overrides: str, folder: str | Path | None = None) -> Result:
        """Test the run again, as `metarun job=evaluate run=FOLDER` does: `run.evaluate("data.shots=5")`."""
        return self.test_again(overrides, None if folder is None else Path(folder))

    def plot(self) -> Figure:
        """The figure of training loss and validation metric."""
        from metarun.report.figures.drawing import style
        from metarun.report.figures.run import draw_learning
        from metarun.report.read.runs import read_run

        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None:  # a notebook shows figures only after this, or after %matplotlib inline
            importlib.import_module("IPython.core.pylabtools").select_figure_formats(shell, {"png"}, bbox_inches=None)
        with style():
            drawing = draw_learning(read_run(self.folder))
        if drawing is None:
            raise UserError(f"{self.folder}: has no records of training or validation to draw")
        return drawing.figure

    def _repr_html_(self) -> str:
        """The run card, as a notebook shows it."""
        from metarun.report.page.card import build_card
        from metarun.report.read.runs import read_run

        card = build_card(read_run(self.folder))
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(fact.name)}</th><td style='text-align:left'>"
            f"{html.escape(fact.value)}</td><td style='text-align:left'>{html.escape(fact.note)}</td></tr>"
            for fact in card.facts
        )
        heading = f"<b>{html.escape(card.title)}</b><br>{html.escape(card.result)} ({html.escape(card.reading)})"
        return f"{heading}<table>{rows}</table>"

    @cached_property
    def _dataset(self) -> Dataset:
        return assemble(self.config, self.own, embed=False).dataset

    def _as_inputs(self, x: ArrayLike, placement: Placement) -> Tensor:
        values = x if isinstance(x, Tensor) else torch.as_tensor(_as_numbers("x", x))
        require(bool(values.isfinite().all()), "x", "array", "must hold finite numbers")
        shape = self._dataset.input_shape()
        if values.ndim == 1 and shape == (1,):
            values = values[:, None]
        if tuple(values.shape[1:]) != shape:
            needed = f"must be [rows, {', '.join(map(str, shape))}], as the data set of the run gives its inputs"
            raise UserError(f"x of shape {list(values.shape)}: {needed}")
        scale = optional(self._dataset, DatasetOptions, "encode")
        if scale:  # rows in the units of the data
            values = torch.as_tensor(scale(values.double().cpu().numpy(), None)[0])
        return placement.move(values.float())


@dataclass(frozen=True)
class AdaptedLearner:
    """A learner adapted to a support set."""

    learner: Algorithm = field(repr=False)
    params: Params = field(repr=False)
    support: Batch = field(repr=False)
    classes: np.ndarray | None  # the labels of a classification, in the order of the columns of `probabilities`
    read: Callable[[ArrayLike], Tensor] = field(repr=False)
    decode: Callable[..., Any] | None = field(default=None, repr=False)  # to the units of the data
    steps: int | None = None  # adaptation steps; None: those of the reported result

    def outputs(self, x: ArrayLike) -> np.ndarray:
        """What the learner predicts for the rows of x: logits [M, N], or values [M, d_out] as the learner sees them,
        or means and standard deviations side by side [M, 2 d_out]."""
        return predict(self.learner, self.params, self.support, self.read(x), self.steps).detach().cpu().numpy()

    def probabilities(self, x: ArrayLike) -> np.ndarray:
        """The probability of each class [M, N]. Raise `UserError` for a regression."""
        if self.classes is None:
            raise UserError("probabilities: the run is a regression; predict gives its values")
        return torch.from_numpy(self.outputs(x)).softmax(1).numpy()

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The label of each row [M], one of those of the support set, or the predicted values [M, d_out]."""
        if self.classes is not None:
            return self.classes[self.outputs(x).argmax(1)]
        return self.predict_with_deviation(x)[0]

    def predict_with_deviation(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Predicted values [M, d_out] and their standard deviations, [M, 0] of a learner that predicts none."""
        found, outputs = self.outputs(x), self.support.y.shape[1]
        parts = found[:, :outputs], found[:, outputs:]
        return self.decode(*parts) if self.decode else parts


def _as_numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Numbers of any kind. Raise `UserError` for text, and for rows of unequal length."""
    try:
        found = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
        return found if found.dtype.kind in "fiub" else found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: must be an array of numbers ({error})") from error


def _as_curves(records: Sequence[dict[str, Any]]) -> Any:
    names = [name for name in dict.fromkeys(key for r in records for key in r) if name not in ("kind", "step")]
    names = [n for n in names if all(not isinstance(r.get(n), (dict, list)) for r in records)]
    values = np.array([[np.nan if r.get(name) is None else float(r[name]) for name in names] for r in records])
    columns = {"step": np.array([r["step"] for r in records])} | {name: values[:, i] for i, name in enumerate(names)}
    if importlib.util.find_spec("pandas") is None:
        return columns
    import pandas

    return pandas.DataFrame(columns, index=columns["step"])
