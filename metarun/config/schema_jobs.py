"""Settings of single jobs, of sweeps and of published rows; `config.py` has what a training run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class PredictConfig:
    """Of job=predict."""

    support: Optional[str] = None  # a folder with a folder of labelled images per class
    query: Optional[str] = None  # a folder of images, or one image


@dataclass
class ExportConfig:
    """Of job=export."""

    threshold: float = 0.0  # weights of at most this size become 0; 0 cuts only what is 0 already
    tasks: int = 200  # test tasks that the run's figure is compared on before and after
    calls: int = 20  # timed


@dataclass
class ProfileConfig:
    """Of job=profile."""

    steps: int = 10  # timed at least
    warmup: int = 3  # calls of the meta-gradient before; the first one compiles
    trace: bool = True  # leave a Chrome trace in the run folder


@dataclass
class SweepConfig:
    """Of `metarun -m`."""

    jobs: Optional[int] = None  # at once; null: as many as the launcher runs
    again: bool = False  # run jobs again that are done


@dataclass
class PublishedConfig:
    """What a paper reports for these settings: shown beside the result, of no effect on it."""

    value: Optional[float] = None  # as printed: an accuracy in per cent, or an MSE
    ci95: Optional[float] = None
    values: list[float] = field(default_factory=list)  # or several, after these adaptation steps
    steps: list[int] = field(default_factory=list)
    source: str = ""
    goal: Optional[float] = None  # what a shorter training is meant to reach, in the unit of the value
    trained_as: Optional[str] = None  # the experiment with the same training, tested otherwise here
