"""From the settings `reg` to the penalties of a run: one term for each regularizer chosen.

`reg=l1` puts one node under its name, `reg={l1: {...}}`; `reg=[l1,prox_l2]` several. A setting that stands beside them,
as `reg.weight`, belongs to the only one chosen.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from metarun.algorithms.objective import SCHEDULES, WHERE, Entry, NoisyModel, Regularization, Schedule, Term
from metarun.algorithms.penalty_protocols import TaskPenalty
from metarun.config import catalogue
from metarun.config.components import build, construct, locate
from metarun.config.schema import Config
from metarun.errors import SettingError, UserError, nearest, require
from metarun.types import NOT_WEIGHTS, Algorithm, GradientLearner, Kind, StatefulLearner


@dataclass(frozen=True)
class TermSettings:
    """What every regularizer can be given, beside the settings of its own class."""

    weight: float
    where: str = "outer"
    schedule: str = "constant"
    final_weight: float = 0.0
    warmup: int = 0  # outer steps

    def __post_init__(self) -> None:
        require(0 <= self.weight < float("inf"), "weight", self.weight, "must be at least 0 and finite")
        require(self.where in WHERE, "where", self.where, "choices: " + ", ".join(WHERE))
        require(self.schedule in SCHEDULES, "schedule", self.schedule, "choices: " + ", ".join(SCHEDULES))
        require(0 <= self.final_weight < float("inf"), "final_weight", self.final_weight, "must be at least 0")
        require(self.warmup >= 0, "warmup", self.warmup, "must be at least 0 (outer steps)")


SHARED = tuple(f.name for f in fields(TermSettings))


def build_regularization(config: Config, kind: Kind) -> Regularization:
    """The terms of a run on data of this kind; `SettingError` with the key as it can be typed."""
    nodes = term_nodes(config.reg)
    alone = len(nodes) == 1
    terms = [_term(name, "reg" if alone else f"reg.{name}", node, config, kind) for name, node in nodes.items()]
    return Regularization(tuple(terms))


def term_nodes(reg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each term by its name, the shorthand of a single one filled in."""
    if "_target_" in reg:  # written flat
        return {"reg": dict(reg)}
    nodes = {k: dict(v) for k, v in reg.items() if isinstance(v, Mapping)}
    beside = {k: v for k, v in reg.items() if k not in nodes}
    if beside and not nodes:
        key = next(iter(beside))
        choices = ", ".join(name for name in catalogue.list_options("reg") if name != "none")
        raise UserError(f"reg.{key}: no regularizer is chosen; choose with reg=NAME, choices: {choices}")
    if beside and len(nodes) > 1:
        key = next(iter(beside))
        ways = " or ".join(f"reg.{name}.{key}" for name in nodes)
        raise UserError(f"reg.{key}: several regularizers are chosen; say {ways}")
    return {name: node | beside for name, node in nodes.items()}


def _term(name: str, group: str, node: dict[str, Any], config: Config, kind: Kind) -> Term:
    _refuse_unknown(group, node, config)
    own = {k: v for k, v in node.items() if k not in SHARED}
    weighing = {k: v for k, v in node.items() if k in SHARED}
    settings: TermSettings = construct(group, TermSettings, weighing)
    penalty = _penalty(group, own, config, kind)
    places = getattr(penalty, "places", WHERE)
    if settings.where not in places:
        raise SettingError(f"{group}.where", settings.where, f"this one has choices: {', '.join(places)}")
    schedule = Schedule(settings.weight, settings.schedule, settings.final_weight, settings.warmup, config.train.steps)
    term = Term(name, penalty, schedule, settings.where)
    if term.proximal and term.enters("inner") and schedule.changes:
        raise SettingError(f"{group}.schedule", settings.schedule, "an inner proximal step takes a constant weight")
    return term


def _refuse_unknown(group: str, node: Mapping[str, Any], config: Config) -> None:
    accepted = inspect.signature(locate(group, node, config.trusted_modules)).parameters
    valid = ["_target_", *SHARED, *(name for name in accepted if name != "kind")]
    for key in node:
        if key not in valid:
            raise UserError(f"{group}.{key}: no such setting, {nearest(key, valid[1:])}")


def _penalty(group: str, node: dict[str, Any], config: Config, kind: Kind) -> Any:
    penalty = build(group, node, config.trusted_modules, kind=kind)
    if kind not in getattr(penalty, "kinds", (kind,)):
        raise UserError(f"{group}: this regularizer needs {penalty.kinds[0]}, the data set is {kind}")
    return penalty


def refuse_senseless_terms(config: Config, regularization: Regularization, algorithm: Algorithm) -> None:
    """What an algorithm cannot mean by a term, in one line."""
    algo = config.choices.get("algo", type(algorithm).__name__)
    for term in regularization.terms:
        objection = _objection(term, regularization, algorithm)
        if objection:
            raise UserError(f"reg={term.name} algo={algo}: {objection}")
        _refuse_lost_targets(term, algorithm)
        compares = isinstance(term.penalty, TaskPenalty) and getattr(term.penalty, "compares_tasks", True)
        if compares and config.train.tasks < 2:
            needed = f"must be at least 2: reg={term.name} compares the tasks of a step"
            raise SettingError("train.tasks", config.train.tasks, needed)


def _objection(term: Term, regularization: Regularization, algorithm: Algorithm) -> str | None:
    """Why the term means nothing with the algorithm, and what to choose; None if it does."""
    if hasattr(term.penalty, "wrap") and not isinstance(algorithm.model, NoisyModel):
        return (
            "this algorithm is made of several networks, none of which is the encoder; "
            "choose a penalty on the weights (l1, l2, elastic, group)"
        )
    if not isinstance(algorithm, GradientLearner):
        compares = isinstance(term.penalty, TaskPenalty) and isinstance(algorithm, StatefulLearner)
        if term.enters("inner") or term.enters(Entry.TASK_LOSS) or compares:
            return (
                "this algorithm has no inner loop to penalise; "
                "choose a penalty on the weights (l1, l2, elastic, group) with where=outer, or another algorithm"
            )
    elif getattr(term.penalty, "learned", False) and not algorithm.sees_adaptation:
        return (
            "a learned weight needs a meta-gradient that sees the inner loop; "
            "choose algo=maml or algo=imaml, or reg.learned=false"
        )
    elif getattr(term.penalty, "distance_only", False) and term.where == "outer":
        if not algorithm.sees_adaptation:
            return (
                "in the outer objective a penalty on phi - theta has no gradient for a learner that takes phi for "
                "theta plus a constant; choose reg.where=inner, or algo=maml"
            )
        if getattr(term.penalty, "unopposed", False):
            return "in the outer objective nothing opposes a learned factor's fall to 0; choose reg.where=inner"
    return term.penalty.objection(algorithm) if hasattr(term.penalty, "objection") else None


def _refuse_lost_targets(term: Term, algorithm: Algorithm) -> None:
    """Names that no tensor of the network begins with would be without effect."""
    names = [name for name in algorithm.init(0) if not name.startswith(NOT_WEIGHTS)]
    for target in getattr(term.penalty, "targets", None) or ():
        if not any(name.startswith(target) for name in names):
            layers = sorted({name.partition(".")[0] for name in names})
            raise UserError(f"reg={term.name}: targets={target}: no tensor begins so; choices: {', '.join(layers)}")
