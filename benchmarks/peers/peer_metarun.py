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
from benchmarks.peers.torch_nets import own_names

MODULE = ("model=module", "model.target=benchmarks.peers.torch_nets.conv4", "trusted_modules=[benchmarks]")
OF_MODULE = {f"model.{name}": f"model.args.{name}" for name in ("filters", "pool", "readout")}


def build(case: Case, images: Path, threads: int, dtype: str = "float32", *more: str) -> Side:
    """The case as `metarun` runs it; `more` overrides."""
    return _side([*settings(case, images, threads, dtype), *more])


def build_module(case: Case, images: Path, threads: int, dtype: str = "float32", *more: str) -> Side:
    """The same with the torch module of the other sides, from the weights of the built-in network."""
    from metarun.training.experiment import assemble

    typed = [*settings(case, images, threads, dtype), *more]
    start = assemble(compose(typed)).initial_params()
    keys = [(setting, *setting.partition("=")) for setting in typed if setting != "model=conv4"]
    own = [OF_MODULE.get(key, key) + sign + value for _, key, sign, value in keys]
    names = own_names(start)
    return _side([*own, *MODULE], {names[name]: value for name, value in start.items()}, names)


def compose(overrides: list[str]) -> Any:
    import metarun

    return metarun.compose(overrides)


def _side(overrides: list[str], start: dict[str, Any] | None = None, names: dict[str, str] | None = None) -> Side:
    """Weights `start` in place of the network's own; `names` are those of the gradients, by their own names."""
    from metarun.algorithms.objective import add_noise
    from metarun.training.experiment import assemble
    from metarun.training.optimizer import apply_update

    trainer = assemble(compose(overrides)).trainer()
    state, tasks = trainer.start(), trainer.tasks(0)
    for name, value in (start or {}).items():
        state.params[name].copy_(value)
    meta_gradient = outer_function(trainer, state)

    def found() -> Any:
        return meta_gradient(*add_noise(trainer.algorithm, state.params, tasks, trainer.seed, 0))

    def gradient() -> tuple[float, dict[str, np.ndarray]]:
        result = found()
        slopes = {k: result.mean[(names or {}).get(k, k)].detach().cpu().numpy().copy() for k in names or result.mean}
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
    from metarun.training.meta_gradient import build_step_gradient, should_compile_step

    return build_step_gradient(trainer, state.params, should_compile_step(trainer, state.params))
