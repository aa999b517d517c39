"""metarun itself, by the functions that its own training loop is made of: compiled or not as the settings decide.

Everything that the benchmark knows of metarun's insides is in this file and in `tasks.draw`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.cases import Case
from benchmarks.peers.tasks import Side, settings


def build(case: Case, images: Path, threads: int, dtype: str = "float32", *more: str) -> Side:
    """The case as `metarun` runs it; `more` overrides."""
    import metarun
    from metarun.algorithms.objective import add_noise
    from metarun.training.experiment import assemble
    from metarun.training.optimizer import apply_update

    trainer = assemble(metarun.compose([*settings(case, images, threads, dtype), *more])).trainer()
    state, tasks = trainer.start(), trainer.tasks(0)
    meta_gradient = outer_function(trainer, state)

    def found() -> Any:
        return meta_gradient(*add_noise(trainer.algorithm, state.params, tasks, trainer.seed, 0))

    def gradient() -> tuple[float, dict[str, np.ndarray]]:
        result = found()
        slopes = {k: v.detach().cpu().numpy().copy() for k, v in result.mean.items()}
        return float(result.metrics["loss"].mean()), slopes

    def step() -> Any:
        result = found()
        if not result.finite:
            raise FloatingPointError("a gradient that is not finite")
        apply_update(state.optimizer, state.params, result.mean, trainer.optim.lr)
        return result.metrics["loss"]

    return Side(gradient, step)


def outer_function(trainer: Any, state: Any) -> Callable[..., Any]:
    """theta, tasks -> their meta-gradient, compiled where a run with these settings would compile it."""
    from metarun.compute.compilation import compile_function, should_compile
    from metarun.training.meta_gradient import build_meta_gradient

    function = build_meta_gradient(trainer)
    if should_compile(trainer.placement, state.params, trainer.settings.steps):
        function = compile_function(function, trainer.placement, state.params)
    return function
