"""The rules of the alarms: pure functions of a run's latest records that say in words what they saw, or "".

A rule asks for numbers by the names they have in metrics.jsonl and does not hold where they are missing. All are
heuristics. p is `patience`, a threshold that is named is one of `diagnostics.alarms`, L0 and LK are the query loss before
and after adaptation, "chance" is chance.py's. A NaN stands for every number that is not finite.

diverged             the loss is not finite, or its mean over p records is above diverged * max(first loss, chance)
loss_spike           loss - median > max(spike * MAD, median, chance / 10), median and MAD (median |loss - median|) of the
                     `window` records before: the doubling and the tenth keep a window that happens to be calm, or a loss
                     that is nearly 0, from calling noise a spike
stuck_at_chance      p validations in a row no better than chance by more than their 95 % interval or by the share `chance`
no_adaptation        L0 - LK <= no_gain * L0 in p records in a row
inner_overfitting    LK - min_k Lk > max(overfit * min_k Lk, no_gain * L0) while the support loss fell from that step k on,
                     in p records in a row
memorisation         over p records L0 <= memorised * chance and LK gains at most memorised * chance on it, and the validation
                     error less its 95 % interval is more than twice the training error: tasks are solved without their
                     support sets, new ones are not (Yin et al. 2020, arXiv 1912.03820)
unstable_inner_rate  contraction above 1 or inner_rises above `rises` in p records in a row
cg_not_converged, negative_curvature   a record with cg_residual > `cg_residual`, with cg_negative > 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from metarun.config import AlarmConfig
from metarun.diagnostics.chance import Chance

Entry = Mapping[str, float]
"""The numbers of one record."""

FLOOR = 0.1  # of the loss of chance: a smaller rise of the loss is no spike
WORSE = 2.0  # times the training error: a validation error above it is clearly worse


class Baseline(NamedTuple):
    """What a rule has to know of the run."""

    chance: Chance
    metric: str
    higher_is_better: bool


class History(NamedTuple):
    """The latest records of each kind, oldest first, and the first loss that was finite."""

    train: tuple[Entry, ...] = ()
    val: tuple[Entry, ...] = ()
    probe: tuple[Entry, ...] = ()
    first_loss: float = 0.0


Seen = Callable[[History, Baseline, AlarmConfig], str]


class Rule(NamedTuple):
    name: str
    kind: str  # of the records that it is asked about
    seen: Seen
    advice: str


def diverged(history: History, run: Baseline, limits: AlarmConfig) -> str:
    losses = column(history.train[-limits.patience :], "loss")
    if losses and not math.isfinite(losses[-1]):
        return "the loss is not finite"
    reference = max(history.first_loss, run.chance.loss)
    if len(losses) < limits.patience or not fmean(losses) > limits.diverged * reference:
        return ""
    return f"the loss averages {fmean(losses):.3g} over {len(losses)} records, it began at {history.first_loss:.3g}"


def loss_spike(history: History, run: Baseline, limits: AlarmConfig) -> str:
    losses = column(history.train[-limits.window - 1 :], "loss")
    before = [loss for loss in losses[:-1] if math.isfinite(loss)]
    if len(before) < limits.window:
        return ""
    middle = median(before)
    spread = median(abs(loss - middle) for loss in before)
    if not losses[-1] - middle > max(limits.spike * spread, abs(middle), FLOOR * run.chance.loss):
        return ""
    return f"the loss jumped to {losses[-1]:.3g} from a median of {middle:.3g}"


def stuck_at_chance(history: History, run: Baseline, limits: AlarmConfig) -> str:
    chance = run.chance.figure

    def no_better(entry: Entry) -> bool:
        gain = entry["mean"] - chance if run.higher_is_better else chance - entry["mean"]
        # The share is of the whole scale of an accuracy, a percentage point, and of the error of chance.
        share = limits.chance if run.higher_is_better else limits.chance * chance
        return gain <= max(share, finite_or(entry.get("ci95"), 0.0))

    if not in_a_row(history.val, limits.patience, ("mean",), no_better):
        return ""
    figures = f"validation {run.metric} is {history.val[-1]['mean']:.3g}, without learning {chance:.3g}"
    return f"{figures}, for {limits.patience} validations now"


def no_adaptation(history: History, run: Baseline, limits: AlarmConfig) -> str:
    def idle(entry: Entry) -> bool:
        return entry["adaptation_gain"] <= limits.no_gain * entry["query_loss/0"]

    if not in_a_row(history.train, limits.patience, ("adaptation_gain", "query_loss/0"), idle):
        return ""
    last = history.train[-1]
    before, after = last["query_loss/0"], last["query_loss/0"] - last["adaptation_gain"]
    return f"the query loss is {before:.3g} before adaptation and {after:.3g} after it"


def inner_overfitting(history: History, run: Baseline, limits: AlarmConfig) -> str:
    def overfits(entry: Entry) -> bool:
        query, support = along(entry, "query_loss"), along(entry, "support_loss")
        best = query.index(min(query))
        enough = max(limits.overfit * query[best], limits.no_gain * query[0])
        return query[-1] - query[best] > enough and support[-1] < support[best]

    if not in_a_row(history.train, limits.patience, ("query_loss/0", "support_loss/0"), overfits):
        return ""
    query = along(history.train[-1], "query_loss")
    lowest = f"{min(query):.3g} after {query.index(min(query))} inner steps"
    return f"the query loss rises from {lowest} to {query[-1]:.3g} after {len(query) - 1} while the support loss falls"


def memorisation(history: History, run: Baseline, limits: AlarmConfig) -> str:
    entries = history.train[-limits.patience :]
    names = ("query_loss/0", "adaptation_gain", run.metric)
    if len(entries) < limits.patience or not all(name in entry for entry in entries for name in names):
        return ""
    before, gain, figure = (fmean(column(entries, name)) for name in names)
    val = history.val[-1]
    limit = limits.memorised * run.chance.loss
    error, val_error = ((1 - f if run.higher_is_better else f) for f in (figure, val["mean"]))
    worse = val_error - finite_or(val.get("ci95"), 0.0) > WORSE * error
    if not (before <= limit and gain <= limit and worse):
        return ""
    scores = f"{run.metric} {figure:.3g} in training, {val['mean']:.3g} in validation"
    return f"training tasks are solved before adaptation (query loss {before:.2g}), new ones are not: {scores}"


def unstable_inner_rate(history: History, run: Baseline, limits: AlarmConfig) -> str:
    def expands(entry: Entry) -> bool:
        return not entry["contraction"] <= 1  # also where it overflowed

    def rises(entry: Entry) -> bool:
        return entry["inner_rises"] > limits.rises

    if in_a_row(history.train, limits.patience, ("inner_rises",), rises):
        return f"the support loss rises in {history.train[-1]['inner_rises']:.0%} of the inner steps"
    if in_a_row(history.train, limits.patience, ("contraction",), expands):
        return f"inner steps grow instead of shrinking (contraction {history.train[-1]['contraction']:.3g})"
    return ""


def overflows(history: History, run: Baseline, limits: AlarmConfig) -> str:
    """Training may take fewer inner steps than a validation and stay finite."""
    return "" if math.isfinite(history.val[-1].get("mean", 0.0)) else "validation tasks overflow as they are adapted to"


def beyond_curvature(history: History, run: Baseline, limits: AlarmConfig) -> str:
    """Gradient descent on a quadratic diverges along a direction whose curvature times the rate is above 2."""
    value = history.probe[-1].get("rate_curvature_max", 0.0)
    return "" if value <= 2 else f"inner rate times largest curvature is {value:.3g} on a probe task; 2 is the limit"


def cg_not_converged(history: History, run: Baseline, limits: AlarmConfig) -> str:
    residual = history.train[-1].get("cg_residual", 0.0)
    if residual <= limits.cg_residual:
        return ""
    return (
        f"the conjugate gradient's residual is {residual:.2g} of the right-hand side: the meta-gradient is a rough one"
    )


def negative_curvature(history: History, run: Baseline, limits: AlarmConfig) -> str:
    share = history.train[-1].get("cg_negative", 0.0)
    if share <= 0:
        return ""
    return (
        f"the conjugate gradient met negative curvature in {share:.0%} of this step's tasks: I + H/lambda is not "
        "positive definite there, so the adapted weights are no minimiser"
    )


def in_a_row(entries: Sequence[Entry], count: int, names: Sequence[str], holds: Callable[[Entry], bool]) -> bool:
    """Whether there are `count` entries, and the last ones all have these numbers and are such."""
    last = entries[-count:]
    return len(last) == count and all(all(name in e for name in names) and holds(e) for e in last)


def column(entries: Sequence[Entry], name: str) -> list[float]:
    return [entry[name] for entry in entries if name in entry]


def along(entry: Entry, name: str) -> list[float]:
    """name/0, name/1, ... as far as they go."""
    values: list[float] = []
    while f"{name}/{len(values)}" in entry:
        values.append(entry[f"{name}/{len(values)}"])
    return values


def finite_or(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise


SMALLER_RATE = "lower algo.inner_lr (or raise algo.prox where there is one)"
RULES = (
    Rule("diverged", "train", diverged, "lower optim.lr or algo.inner_lr, or set optim.clip"),
    Rule("loss_spike", "train", loss_spike, "if it comes back, lower optim.lr, set optim.clip or raise train.tasks"),
    Rule(
        "stuck_at_chance",
        "val",
        stuck_at_chance,
        "check the data (job=data), then try other optim.lr and algo.inner_lr",
    ),
    Rule("no_adaptation", "train", no_adaptation, "raise algo.inner_lr or algo.inner_steps; if the loss rose, lower algo.inner_lr"),
    Rule(
        "inner_overfitting", "train", inner_overfitting, "lower algo.inner_steps or algo.inner_lr, or raise data.shots"
    ),
    Rule("memorisation", "val", memorisation, "train on more tasks or classes, or vary the tasks"),
    Rule("unstable_inner_rate", "train", unstable_inner_rate, SMALLER_RATE),
    Rule("unstable_inner_rate", "val", overflows, SMALLER_RATE),
    Rule("unstable_inner_rate", "probe", beyond_curvature, SMALLER_RATE),
    Rule("cg_not_converged", "train", cg_not_converged, "raise algo.cg_steps, algo.prox or algo.cg_damping"),
    Rule("negative_curvature", "train", negative_curvature, "raise algo.prox or algo.inner_steps"),
)
