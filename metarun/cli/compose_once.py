"""One composition a command. Hydra composes the settings first to read `hydra.mode`, which a file may set, and then
again to run with them; composing is half of what a small job of a sweep takes beside its training."""

from __future__ import annotations

from typing import Any

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig

HYDRAS_GET_MODE = Hydra.get_mode


def compose_once() -> None:
    """Have Hydra run a single job with the settings that it has composed to read their mode."""
    Hydra.get_mode = _get_mode  # type: ignore[method-assign,assignment]


def _get_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """`hydra.mode` of the settings. Those of a single job are kept for `hydra.run`, which asks for them next."""
    loader = hydra.config_loader
    try:
        composed = loader.load_configuration(config_name, overrides, RunMode.RUN)
    except Exception:  # a sweep has overrides that a single job refuses; an error comes again where Hydra reports it
        return HYDRAS_GET_MODE(hydra, config_name, overrides)
    if composed.hydra.mode == RunMode.MULTIRUN:
        return composed.hydra.mode
    given, load = [*overrides], loader.load_configuration

    def load_kept(config_name: str | None, overrides: list[str], run_mode: RunMode, **more: Any) -> DictConfig:
        loader.load_configuration = load  # type: ignore[method-assign]
        added = overrides[len(given) :]
        if run_mode != RunMode.RUN or overrides[: len(given)] != given or added not in ([], ["hydra.mode=RUN"]):
            return load(config_name, overrides, run_mode, **more)
        composed.hydra.mode = RunMode.RUN
        composed.hydra.overrides.hydra.extend(added)
        return composed

    loader.load_configuration = load_kept  # type: ignore[method-assign,assignment]
    return composed.hydra.mode
