r"""Ordinary training of a classifier of all training classes, for learners that take their features from it.

    loss = mean over the rows (x, y) of a step's batch of L(s(f(x)), y),   y the number of the class among all C
    linear   s_c(z) = v_c . z + b_c            cosine   s_c(z) = a cos(v_c, z)

Symbols: f the network without its head, z [D]; v [C, D] and b [C] the meta-parameters `learned.classifier.weight` and
`.bias`; a `scale`; L the loss, the cross-entropy unless it is the user's. A batch is an episode whose labels are
numbers of classes (`numbered_classes` in types.py), its support and query rows together: `algo.train_ways` classes,
`algo.train_shots` + `data.queries` images of each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import xavier_uniform_

from metarun.algorithms.embeddings import compare
from metarun.algorithms.losses import score_prediction
from metarun.compute import linalg
from metarun.errors import require
from metarun.types import LEARNED, Algorithm, Metrics, Params, Task

WEIGHT, BIAS = (f"{LEARNED}classifier.{name}" for name in ("weight", "bias"))
CLASSIFIERS = ("linear", "cosine")
STREAM = 0x5EEDC1A55
"""Of random numbers, apart from that of the network's weights."""


def check_classifier(kind: str, scale: float) -> None:
    require(kind in CLASSIFIERS, "classifier", kind, "choices: " + ", ".join(CLASSIFIERS))
    require(scale > 0, "scale", scale, "must be above 0")


def init_classifier(classes: int, features: int, kind: str, seed: int) -> Params:
    """Xavier-uniform weights, and a bias of 0 where there is one."""
    weight = xavier_uniform_(torch.empty(classes, features), generator=torch.Generator().manual_seed(seed ^ STREAM))
    return {WEIGHT: weight} | ({BIAS: torch.zeros(classes)} if kind == "linear" else {})


def score_classes(z_MD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, scale: float) -> Tensor:
    """s [M, C]: of a linear classifier, or of cosines where there is no bias."""
    if bias_C is None:
        return scale * compare(z_MD, weight_CD, "cosine")
    return F.linear(z_MD, weight_CD, bias_C)


def differentiate_batch(learner: Algorithm, params: Params, batch: Task, scale: float) -> tuple[Params, Metrics]:
    """The gradient of the classifier's loss by all parameters, and its metrics."""

    def outer(params: Params) -> tuple[Tensor, Metrics]:
        z_MD = learner.model.apply(params, torch.cat([batch.support.x, batch.query.x]))
        scores = score_classes(z_MD, params[WEIGHT], params.get(BIAS), scale)
        return score_prediction(learner, scores, torch.cat([batch.support.y, batch.query.y]))

    return linalg.differentiate(outer, params)
