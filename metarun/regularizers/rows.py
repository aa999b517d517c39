"""The rows of a task that a penalty compares predictions on: those of the support set or of the query set.

In the inner loop there is only the support set; in the outer objective a penalty may choose. Query rows are normalised
as at test: with `model.norm=support` by the support set's statistics, taken with the same weights.

The third derivative of torch's batch normalisation is silently wrong, since its second treats the saved mean and
deviation as constants (github.com/pytorch/pytorch/issues/186256; in torch 2.13). `third_order` predictions receive
these moments as functions of the weights, at the price of a second forward pass.
"""

from __future__ import annotations

from torch import Tensor

from metarun.algorithms.penalty_protocols import Adaptation
from metarun.errors import UserError, require
from metarun.models.norm import BATCH_NORMS
from metarun.types import ModelOptions, Params, optional

ROWS = ("support", "query")


def check_rows(rows: str) -> None:
    require(rows in ROWS, "rows", rows, "choices: " + ", ".join(ROWS))


def where_for(rows: str) -> tuple[str, ...]:
    """The choices of `where` for a penalty on these rows: the inner loop has no query set."""
    return ("inner", "outer", "both") if rows == "support" else ("outer",)


def predict_rows(at: Adaptation, weights: Params, rows: str, third_order: bool = False) -> Tensor:
    """The network's outputs on the rows, [S, d] or [M, d]."""
    if rows == "support":
        norm, fixed, measure = (optional(at.model, ModelOptions, name) for name in ("norm", "fixed", "measure"))
        own_moments = third_order and norm in BATCH_NORMS and fixed is None  # the batch's, as functions of the weights
        return at.model.apply(weights, at.support.x, measure(weights, at.support.x) if own_moments else None)
    if at.query is None:
        raise UserError("rows=query: the inner loop has the support set only; choose where=outer or rows=support")
    return at.model.apply(weights, at.query.x, at.model.query_stats(weights, at.support.x))


def row_targets(at: Adaptation, rows: str) -> Tensor:
    """The labels or targets of the rows."""
    return at.query.y if rows == "query" and at.query is not None else at.support.y
