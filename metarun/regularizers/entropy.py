r"""Entropy reduction of TAML: Omega(theta, phi) = -H(f_theta) + H(f_phi), in nats, a mean over the query set's rows.

    H(f) = -mean_m sum_n p_mn ln p_mn,  p = softmax of the logits          -ln N <= Omega <= ln N on N ways
    dH/dz = -p * (ln p + H) for one row of logits z

Before adaptation the classifier should prefer no class (high entropy), after it be certain (low entropy), so that the
initialisation is not biased to some of the training tasks. The gradient passes through theta and, by adaptation,
through phi. It is a term of the outer objective, for classification: queries are not seen inside of the inner loop.
Labels do not enter, so that the second part rewards confidence whether or not it is right. Source: Jamal, Qi 2019,
arXiv 1805.07722 (TAML, entropy-based).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metarun.algorithms.losses import entropy
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.regularizers.rows import predict_rows
from metarun.types import Kind


@dataclass(frozen=True)
class Entropy:
    allowed_where: ClassVar[tuple[str, ...]] = ("outer",)
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)

    def between(self, at: Adaptation) -> Tensor:
        before, after = (predict_rows(at, weights, "query") for weights in (at.theta, at.phi))
        return entropy(after) - entropy(before)
