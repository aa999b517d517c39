"""On which rows of a task a penalty compares predictions: those of the support set, or of the query set.

Inside of the inner loop there is only the support set; in the outer objective a penalty may choose. Query rows are
normalised as the network normalises them when it is tested: with `model.norm=support` by the support set's statistics,
taken with the same weights.

The third derivative of torch's batch normalisation is silently wrong, since its second takes the saved mean and
deviation for constants (github.com/pytorch/pytorch/issues/186256; torch 2.13 has it). `third_order` predictions are
given these moments as functions of the weights, at the price of a second forward pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun.algorithms.penalty_protocols import Adaptation
from metarun.errors import UserError, require
from metarun.models.norm import BATCH_NORMS
from metarun.types import Model, Params

ROWS = ("support", "query")


def check_rows(rows: str) -> None:
    require(rows in ROWS, "rows", rows, "choices: " + ", ".join(ROWS))


def where_for(rows: str) -> tuple[str, ...]:
    """Where a penalty on these rows can stand: adaptation has not seen the query set."""
    return ("inner", "outer", "both") if rows == "support" else ("outer",)


def predict_rows(at: Adaptation, weights: Params, rows: str, third_order: bool = False) -> Tensor:
    """The network's outputs on the rows, [S, d] or [M, d]."""
    if rows == "support":
        stats = batch_moments(at.model, weights, at.support.x) if third_order else None
        return at.model.apply(weights, at.support.x, stats)
    if at.query is None:
        raise UserError("rows=query: the inner loop has the support set only; choose where=outer or rows=support")
    return at.model.apply(weights, at.query.x, at.model.query_stats(weights, at.support.x))


def row_targets(at: Adaptation, rows: str) -> Tensor:
    """The labels or targets of the rows."""
    return at.query.y if rows == "query" and at.query is not None else at.support.y


def batch_moments(model: Model, weights: Params, x: Tensor) -> Any:
    """The statistics that a batch is normalised with where they are its own; None where there are no such."""
    network: Any = model
    own = getattr(model, "norm", None) in BATCH_NORMS and network.fixed is None
    return network.measure(weights, x) if own else None
