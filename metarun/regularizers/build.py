"""From the settings `reg` to the penalties of a run: one term for each regularizer chosen.

`reg=l1` puts one node under its name, `reg={l1: {...}}`; `reg=[l1,prox_l2]` several. A setting beside them, as
`reg.weight`, belongs to the only one chosen.
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
from metarun.storage.progress import print_notice
from metarun.types import (
    NOT_WEIGHTS,
    Algorithm,
    AlgorithmOptions,
    GradientLearner,
    Kind,
    PenaltyOptions,
    StatefulLearner,
    optional,
)


@dataclass(frozen=True)
class TermSettings:
    """The settings that every regularizer has, beside those of its own class."""

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
    """The terms of a run on data of this kind. Raise `SettingError` with the full key of a wrong setting."""
    nodes = term_nodes(config.reg)
    groups = {name: "reg" if len(nodes) == 1 else f"reg.{name}" for name in nodes}
    terms = [_build_term(name, groups[name], node, config, kind) for name, node in nodes.items()]
    return Regularization(tuple(terms))


def term_nodes(reg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each term by its name; those beside a single one are among its own."""
    if "_target_" in reg:  # written flat
        return {"reg": dict(reg)}
    nodes = {k: dict(v) for k, v in reg.items() if isinstance(v, Mapping)}
    beside = {k: v for k, v in reg.items() if k not in nodes}
    key = next(iter(beside), "")
    if beside and not nodes:
        choices = ", ".join(name for name in catalogue.list_options("reg") if name != "none")
        raise UserError(f"reg.{key}: no regularizer is chosen; choose with reg=NAME, choices: {choices}")
    if beside and len(nodes) > 1:
        ways = " or ".join(f"reg.{name}.{key}" for name in nodes)
        raise UserError(f"reg.{key}: several regularizers are chosen; say {ways}")
    return {name: node | beside for name, node in nodes.items()}


def _build_term(name: str, group: str, node: dict[str, Any], config: Config, kind: Kind) -> Term:
    accepted = inspect.signature(locate(group, node, config.trusted_modules)).parameters
    valid = [*SHARED, *(name for name in accepted if name != "kind")]
    for key in node:
        if key not in valid and key != "_target_":
            raise UserError(f"{group}.{key}: no such setting, {nearest(key, valid)}")
    settings: TermSettings = construct(group, TermSettings, {k: v for k, v in node.items() if k in SHARED})
    own = {k: v for k, v in node.items() if k not in SHARED}
    penalty = build(group, own, config.trusted_modules, kind=kind)
    kinds = optional(penalty, PenaltyOptions, "kinds")
    if kinds and kind not in kinds:
        raise UserError(f"{group}: this regularizer needs {kinds[0]}, the data set is {kind}")
    allowed = optional(penalty, PenaltyOptions, "allowed_where")
    if settings.where not in allowed:
        raise SettingError(f"{group}.where", settings.where, f"this one has choices: {', '.join(allowed)}")
    schedule = Schedule(settings.weight, settings.schedule, settings.final_weight, settings.warmup, config.train.steps)
    term = Term(name, penalty, schedule, settings.where)
    if term.enters(Entry.INNER_STEP) and schedule.changes:
        raise SettingError(f"{group}.schedule", settings.schedule, "an inner proximal step takes a constant weight")
    return term


def refuse_senseless_terms(config: Config, regularization: Regularization, algorithm: Algorithm) -> None:
    """Raise `UserError` for a term that means nothing with the algorithm, the network or the tasks of a step."""
    algo = config.choices.get("algo", type(algorithm).__name__)
    for term in regularization.terms:
        objection = _find_objection(term, algorithm)
        if objection:
            raise UserError(f"reg={term.name} algo={algo}: {objection}")
        one_step = optional(algorithm, AlgorithmOptions, "inner_steps") == 1 and config.job == "train"
        if one_step and term.enters("inner") and optional(term.penalty, PenaltyOptions, "distance_only"):
            reason = "its gradient at phi = theta, where the only inner step is taken, is 0"
            print_notice(f"reg={term.name}: does nothing in training: {reason}; algo.inner_steps=2 has a second step")
        names = [name for name in algorithm.init(0) if not name.startswith(NOT_WEIGHTS)]
        for target in optional(term.penalty, PenaltyOptions, "targets") or ():
            if not any(name.startswith(target) for name in names):
                layers = ", ".join(sorted({name.partition(".")[0] for name in names}))
                raise UserError(f"reg={term.name}: targets={target}: no tensor begins so; choices: {layers}")
        compares = optional(term.penalty, PenaltyOptions, "compares_tasks")
        if isinstance(term.penalty, TaskPenalty) and compares and config.train.tasks < 2:
            needed = f"must be at least 2: reg={term.name} compares the tasks of a step"
            raise SettingError("train.tasks", config.train.tasks, needed)


def _find_objection(term: Term, algorithm: Algorithm) -> str | None:
    """Why the term means nothing with the algorithm, and what to choose instead; None if it means something."""
    learned, distance_only, unopposed, wrap, objection = (
        optional(term.penalty, PenaltyOptions, name)
        for name in ("learned", "distance_only", "unopposed", "wrap", "objection")
    )
    if wrap and not isinstance(algorithm.model, NoisyModel):
        several = "this algorithm is made of several networks, none of which is the encoder"
        return f"{several}; choose a penalty on the weights (l1, l2, elastic, group)"
    if not isinstance(algorithm, GradientLearner):
        numbered = optional(algorithm, AlgorithmOptions, "numbered_classes")
        compares = isinstance(term.penalty, TaskPenalty) and (numbered or isinstance(algorithm, StatefulLearner))
        if term.enters("inner") or term.enters(Entry.TASK_LOSS) or compares:
            return (
                "this algorithm has no inner loop to penalise; "
                "choose a penalty on the weights (l1, l2, elastic, group) with where=outer, or another algorithm"
            )
    elif learned and not algorithm.sees_adaptation:
        needed = "a learned weight needs a meta-gradient that sees the inner loop"
        return f"{needed}; choose algo=maml or algo=imaml, or reg.learned=false"
    elif distance_only and term.where == "outer":
        if not algorithm.sees_adaptation:
            return (
                "in the outer objective a penalty on phi - theta has no gradient for a learner that takes phi for "
                "theta plus a constant; choose reg.where=inner, or algo=maml"
            )
        if unopposed:
            return "in the outer objective nothing opposes a learned factor's fall to 0; choose reg.where=inner"
    return objection(algorithm) if objection else None
