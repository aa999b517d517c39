r"""SimpleShot: the nearest class mean on the features of an ordinary classifier (Wang, Chao, Weinberger, van der Maaten
2019, arXiv 1911.04623).

    training   a linear classifier of all training classes (classifier.py)
    test       c_n = (1/K) sum_{(x, y) in S, y = n} t(f(x));   logit_n(x) = -|t(f(x)) - c_n|^2
    t(z)       un: z        l2n: z / |z|        cl2n: (z - m) / |z - m|

Symbols: f the network without its head; t `normalize`; m the mean feature of training images, measured on the reference
inputs that population statistics are of (512 of them; the paper takes all), 0 while the classifier is trained.
The classifier is of no use at test, so that any number of classes can be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.classifier import differentiate_batch, init_classifier
from metarun.algorithms.embeddings import Prototypes, class_means, compare
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, ModelOptions, Params, Task, optional

NORMALIZE = ("un", "l2n", "cl2n")


@dataclass(frozen=True)
class Centred:
    """A network whose features are counted from their mean on training inputs, once it is measured."""

    network: Any
    mean: Tensor | None = None  # [D]
    fixed: Any = None  # the network's population statistics, once calibrated

    def __getattr__(self, name: str) -> Any:
        """All other members are those of the network."""
        if name.startswith("__"):  # a copy is asked for these before it has its fields
            raise AttributeError(name)
        return getattr(self.network, name)

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        network = self.network if self.fixed is None else replace(self.network, fixed=self.fixed)
        z = network.apply(params, x, stats)
        return z if self.mean is None else z - self.mean

    def calibrate(self, params: Params, x: Tensor) -> Centred:
        network = self.network.calibrate(params, x)
        return Centred(network, network.apply(params, x).mean(0), optional(network, ModelOptions, "fixed"))

    @property
    def fixed_part(self) -> Any:
        part = optional(self.network, ModelOptions, "fixed_part")
        return None if part is None else part._replace(rest=Centred(part.rest))


@dataclass(frozen=True)
class SimpleShot:
    """Train a classifier of all training classes; classify tasks by the nearest class mean of its features."""

    model: Model
    loss: Loss
    ways: int
    classes: int  # of training
    normalize: str

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0
    numbered_classes: ClassVar[bool] = True

    def init(self, seed: int) -> Params:
        return self.model.init(seed) | init_classifier(self.classes, self.model.features, "linear", seed)

    def adapt(self, params: Params, support: Batch) -> Prototypes:
        z_SD = self._normalized(self.model.apply(params, support.x))
        stats = self.model.query_stats(params, support.x)
        return Prototypes(params, stats, class_means(z_SD, support.y, self.ways))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Prototypes]:
        yield self.adapt(params, support)

    def predict(self, adapted: Prototypes, x: Tensor) -> Tensor:
        z_MD = self._normalized(self.model.apply(adapted.params, x, adapted.stats))
        return compare(z_MD, adapted.centres, "euclidean")

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        return differentiate_batch(self, params, task, 1.0)

    def _normalized(self, z_MD: Tensor) -> Tensor:
        return z_MD if self.normalize == "un" else F.normalize(z_MD, dim=-1)


def simpleshot(model: Model, loss: Loss, ways: int, classes: int, normalize: str) -> SimpleShot:
    """With the features counted from their mean for cl2n."""
    require(normalize in NORMALIZE, "normalize", normalize, "choices: " + ", ".join(NORMALIZE))
    network: Any = Centred(model) if normalize == "cl2n" else model
    return SimpleShot(network, loss, ways, classes, normalize)
