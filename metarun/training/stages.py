"""The meta-gradient as a function, made anew (and compiled anew) where a learner's stage changes along training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metarun.compute.compilation import compiled, compiles
from metarun.training.meta_gradient import batched_meta_gradient, own_meta_gradient
from metarun.types import Algorithm, Params, StagedLearner

if TYPE_CHECKING:
    from metarun.training.loop import Trainer

UNKNOWN = object()


class MetaGradients:
    """Gives the function of an outer step; `tell` is told when one has to be compiled."""

    def __init__(self, trainer: Trainer, params: Params, tell: Callable[[str], None]) -> None:
        self.trainer, self.tell = trainer, tell
        self.compiles = compiles(trainer.placement, params, trainer.settings.steps)
        self.first = params
        # Asked once: holding a learner against a protocol takes longer than anything else here.
        self.staged: Any = trainer.algorithm if isinstance(trainer.algorithm, StagedLearner) else None
        self.stage: Any = UNKNOWN
        self.function: Any = None

    def at(self, step: int) -> Callable[..., Any]:
        stage = self.staged.stage(step) if self.staged else None
        if stage != self.stage:
            self.stage = stage
            self.function = self._made(self.staged.at(stage) if self.staged else self.trainer.algorithm)
        return self.function

    def _made(self, learner: Algorithm) -> Callable[..., Any]:
        trainer = replace(self.trainer, algorithm=learner)
        alone = trainer.placement.team.size == 1
        function = batched_meta_gradient(trainer) if alone else own_meta_gradient(trainer)
        if not self.compiles:
            return function
        self.tell(
            "compiling the outer step first, half a minute unless an earlier run has (device.compile=off goes without)"
        )
        return compiled(function, trainer.placement, self.first)
