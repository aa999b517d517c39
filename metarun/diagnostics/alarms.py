"""A run's alarms: which were raised, how often, and what to tell of each once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from metarun.config.schema import DiagnosticsConfig
from metarun.diagnostics.alarm_history import Baseline, History, extended
from metarun.diagnostics.alarm_rules import RULES

ALWAYS = ("diverged",)  # whatever diagnostics.level says


@dataclass(frozen=True)
class Raised:
    """One alarm so far."""

    count: int  # of the records at which it held
    first: int  # outer steps
    last: int
    message: str  # of the first time


class Alarms:
    """Asks the rules about each record. What it knows is a function of the records, so replaying them restores it."""

    def __init__(self, settings: DiagnosticsConfig, run: Baseline) -> None:
        self.limits, self.run = settings.alarms, run
        self.rules = [rule for rule in RULES if settings.level != "off" or rule.name in ALWAYS]
        self.history = History()
        self.raised: dict[str, Raised] = {}

    def observe(self, kind: str, step: int, values: Mapping[str, Any]) -> list[str]:
        """Take in a record; the lines to tell, one for each alarm that was never raised before."""
        self.history = extended(self.history, kind, numbers(values), self.run, self.limits)
        lines = []
        for rule in self.rules:
            seen = rule.seen(self.history, self.run, self.limits) if rule.kind == kind else ""
            if seen:
                lines += self.sound(rule.name, step, f"{seen}; {rule.advice}")
        return lines

    def sound(self, name: str, step: int, message: str) -> list[str]:
        """Count an alarm; its line, if this is the first time."""
        before = self.raised.get(name)
        if before:
            self.raised[name] = replace(before, count=before.count + 1, last=step)
            return []
        self.raised[name] = Raised(1, step, step, message)
        return [f"alarm: {name} at step {step}: {message}"]

    def stopped(self, step: int, reason: str) -> list[str]:
        """The run cannot go on, since a loss or a gradient is not finite."""
        advice = next(rule.advice for rule in RULES if rule.name == "diverged")
        return self.sound("diverged", step, f"{reason}; {advice}")

    def summary(self) -> dict[str, dict[str, Any]]:
        return {name: asdict(raised) for name, raised in self.raised.items()}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of a record, with NaN for what is not finite: JSON keeps that as null, so a stored record says the same."""
    kept = {k: math.nan if v is None else v for k, v in values.items() if v is None or isinstance(v, (int, float))}
    return {k: float(v) if math.isfinite(v) else math.nan for k, v in kept.items()}
