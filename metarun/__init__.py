"""metarun: compose, train, evaluate and compare meta-learning algorithms.

The command line and these functions do the same things:

    config = metarun.compose(["algo=imaml", "data=sinusoid", "train.steps=100"])
    result = metarun.run(config, "outputs/mine")
    algorithm = metarun.build_algorithm(config)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metarun.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from metarun.config.schema import Config
    from metarun.jobs import Result
    from metarun.types import Algorithm

__version__ = "0.1.0"
__all__ = ["UserError", "build_algorithm", "compose", "run"]


def compose(overrides: list[str] | None = None) -> Config:
    """The settings that these command-line overrides give."""
    from metarun.cli.compose import compose

    return compose(overrides or [])


def run(config: Config, folder: str | Path) -> Result:
    """Do the settings' job, leaving its record in `folder`."""
    from metarun.jobs import run

    return run(config, folder)


def build_algorithm(config: Config) -> Algorithm:
    """The algorithm of these settings with its network, sized for training episodes."""
    from metarun.training.experiment import assemble

    return assemble(config).algorithm


def __getattr__(name: str) -> Any:
    if name in ("train", "Trainer"):
        from metarun.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'metarun' has no attribute {name!r}")
