"""What the rules of the alarms look at: the latest records of a run, and what has to be known of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from metarun.config.schema import AlarmConfig
from metarun.diagnostics.chance import Chance

Entry = Mapping[str, float]
"""The numbers of one record."""

TINY = 1e-12  # a loss whose logarithm is taken is at least this


class Baseline(NamedTuple):
    """What a rule has to know of the run."""

    chance: Chance
    metric: str
    higher_is_better: bool
    as_hard: bool = True  # whether training tasks have no more shots and no fewer ways than validation tasks
    best: float = 1.0  # the figure of which more is better that errors count from
    signed: bool = False  # whether loss and error are logarithms, and may be below 0

    def error(self, figure: float) -> float:
        return self.best - figure if self.higher_is_better else figure

    def times(self, factor: float, value: float) -> float:
        """A multiple of a loss or an error; of a logarithm, that of what it is the logarithm of."""
        return value + math.log(max(factor, TINY)) if self.signed else factor * value

    def log(self, loss: float) -> float:
        return loss if self.signed else math.log(max(loss, TINY))


class History(NamedTuple):
    """The latest records of each kind, oldest first, the first loss that was finite, and the least error of training
    tasks, as a mean over p records in a row."""

    train: tuple[Entry, ...] = ()
    val: tuple[Entry, ...] = ()
    probe: tuple[Entry, ...] = ()
    first_loss: float = 0.0
    least_error: float = math.inf


def extended(history: History, kind: str, entry: Entry, run: Baseline, limits: AlarmConfig) -> History:
    """With one more record, and no more than the rules ask for; a kind that none asks about is left out."""
    length = max(limits.window + 1, limits.patience)
    if kind == "probe":
        return history._replace(probe=(*history.probe, entry)[-length:])
    if kind == "val":
        return history._replace(val=(*history.val, entry)[-length:])
    if kind != "train":
        return history
    first = history.first_loss or finite_or(entry.get("loss"), 0.0)
    history = history._replace(train=(*history.train, entry)[-length:], first_loss=first)
    return history._replace(least_error=min(history.least_error, latest_error(history, run, limits.patience)[0]))


def latest_error(history: History, run: Baseline, records: int) -> tuple[float, float]:
    """Of training tasks: the mean over these records and its standard error; infinite without as many finite ones."""
    errors = [run.error(figure) for figure in column(history.train[-records:], run.metric) if math.isfinite(figure)]
    if len(errors) < max(records, 2):
        return math.inf, math.inf
    return fmean(errors), stdev(errors) / math.sqrt(records)


def in_a_row(entries: Sequence[Entry], count: int, names: Sequence[str], holds: Callable[[Entry], bool]) -> bool:
    """Whether there are `count` entries, and the last ones all have these numbers and are such."""
    last = entries[-count:]
    return len(last) == count and all(all(name in e for name in names) and holds(e) for e in last)


def column(entries: Sequence[Entry], name: str) -> list[float]:
    return [entry[name] for entry in entries if name in entry]


def mean_along(entries: Sequence[Entry], name: str) -> list[float]:
    """name/0, name/1, ... as far as all of them go, each the mean over these records."""
    means: list[float] = []
    while entries and all(f"{name}/{len(means)}" in entry for entry in entries):
        means.append(fmean(column(entries, f"{name}/{len(means)}")))
    return means


def shown(val: Entry) -> str:
    """A validation's figure with its interval, as far as they are finite."""
    mean, ci95 = val.get("mean", math.nan), val.get("ci95", math.nan)
    interval = f" +- {ci95:.2g}" if math.isfinite(ci95) else ""
    return f"{mean:.3g}{interval}" if math.isfinite(mean) else "not finite"


def finite_or(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise
