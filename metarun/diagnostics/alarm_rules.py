"""The rules of the alarms: pure functions of a run's latest records that say in words what they saw, or "".

A rule asks for numbers by their names in metrics.jsonl and does not hold where they are missing. All are heuristics.
p is `patience` and w `window`; other names in quotes are thresholds of `diagnostics.alarms` as well. L_k is the query
loss after k inner steps, K the last. "chance" is the score of not learning (chance.py). NaN is any number not finite.

diverged             the loss is not finite, or its mean over p records > `diverged` * max(first loss, chance)
loss_spike           log loss - median > max(`spike` * MAD, log 2), of the logarithms of the w losses before, with
                     MAD = median |log loss - median|, and a rise of more than chance / 10. Logarithms, because the
                     losses of random tasks are skewed; the doubling and the tenth, because a window may be calm by luck
lost_progress        the mean error of training tasks over w records is above the least such mean over p records so far
                     by more than `lost` * (error of chance - that least) and 6 standard errors: it learned, and forgot
stuck_at_chance      p validations in a row whose error >= chance - max(95 % interval, `chance` * chance), the last of
                     which is not better than the first by `chance` * chance
no_adaptation        mean of L_0 - L_K over w records <= `no_gain` * mean of L_0
inner_overfitting    L_K - L_j > max(`overfit` * L_j, `no_gain` * L_0), L_j = min_k L_k, while the support loss fell
                     from step j to step K, all of them means over w records
memorisation         mean loss over p records <= `memorised` * chance, and validation error - 95 % interval >
                     `unsolved` * chance: training tasks are solved, new ones are not. If the loss before adaptation is
                     as low, they are solved without their support sets (Yin et al. 2020, arXiv 1912.03820); if it is
                     not, the learner adapts to tasks that it knows and to no others (Rajendran et al. 2020, arXiv
                     2007.05549). Not judged where training tasks are easier by their size: more shots, fewer ways
unstable_inner_rate  contraction > 1 or inner_rises > `rises` in p records in a row; a validation that is not finite; a
                     probe with rate_curvature > 2, its mean over tasks: MAML trains healthily with single tasks above
cg_not_converged     a record with cg_residual > `cg_residual`
negative_curvature   a record with cg_negative > 0

A negative log-likelihood may be below 0 and is a logarithm already: in diverged, loss_spike, stuck_at_chance and
memorisation a * b then stands for b + log a, log loss for the loss itself, and a spike needs no rise of chance / 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, median
from typing import NamedTuple

from metarun.config.schema import AlarmConfig
from metarun.diagnostics.alarm_history import (
    Baseline,
    Entry,
    History,
    column,
    finite_or,
    in_a_row,
    latest_error,
    mean_along,
    shown,
)

FLOOR = 0.1  # of the loss of chance: a smaller rise of the loss is no spike
SURE = 6.0  # standard errors of a mean over the window, above which a rise is none of chance

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
    if len(losses) < limits.patience or not fmean(losses) > run.times(limits.diverged, reference):
        return ""
    return f"the loss averages {fmean(losses):.3g} over {len(losses)} records, it began at {history.first_loss:.3g}"


def loss_spike(history: History, run: Baseline, limits: AlarmConfig) -> str:
    losses = [loss for loss in column(history.train[-limits.window - 1 :], "loss") if math.isfinite(loss)]
    if len(losses) <= limits.window:
        return ""
    *logs, last = (run.log(loss) for loss in losses)
    middle = median(logs)
    spread = median(abs(value - middle) for value in logs)
    usual = middle if run.signed else math.exp(middle)
    little = not run.signed and losses[-1] - usual <= FLOOR * run.chance.loss
    if last - middle <= max(limits.spike * spread, math.log(2)) or little:
        return ""
    return f"the loss jumped to {losses[-1]:.3g} from a median of {usual:.3g}"


def lost_progress(history: History, run: Baseline, limits: AlarmConfig) -> str:
    mean, standard_error = latest_error(history, run, limits.window)
    least, chance = history.least_error, run.error(run.chance.figure)
    if not math.isfinite(run.chance.loss) or not mean - least > max(
        limits.lost * (chance - least), SURE * standard_error
    ):
        return ""
    now, before = (run.error(error) if run.higher_is_better else error for error in (mean, least))
    return f"training {run.metric} averages {now:.3g} over {limits.window} records and was {before:.3g}"


def stuck_at_chance(history: History, run: Baseline, limits: AlarmConfig) -> str:
    error = run.error(run.chance.figure)
    little = error - run.times(1 - limits.chance, error)

    def no_better(entry: Entry) -> bool:
        margin = max(little, finite_or(entry.get("ci95"), 0.0))
        return run.error(entry["mean"]) >= error - margin

    nothing = error == 0 and not run.signed  # to be better than; a logarithm may be 0
    if nothing or not in_a_row(history.val, limits.patience, ("mean",), no_better):
        return ""
    first, last = history.val[-limits.patience], history.val[-1]
    if run.error(first["mean"]) - run.error(last["mean"]) > little:  # on its way
        return ""
    return f"validation {run.metric} is {shown(last)} where learning nothing gives {run.chance.figure:.3g}"


def no_adaptation(history: History, run: Baseline, limits: AlarmConfig) -> str:
    gains, befores = (column(history.train[-limits.window :], name) for name in ("adaptation_gain", "query_loss/0"))
    if not len(gains) == len(befores) == limits.window:
        return ""
    gain, before = fmean(gains), fmean(befores)
    seen = f"the query loss averages {before:.3g} before adaptation and {before - gain:.3g} after it"
    return seen if gain <= limits.no_gain * before else ""


def inner_overfitting(history: History, run: Baseline, limits: AlarmConfig) -> str:
    query, support = (mean_along(history.train[-limits.window :], name) for name in ("query_loss", "support_loss"))
    if len(history.train) < limits.window or not query or len(query) != len(support):
        return ""
    best = query.index(min(query))
    rise = query[-1] - query[best]
    if not rise > max(limits.overfit * query[best], limits.no_gain * query[0]) or support[-1] >= support[best]:
        return ""
    lowest = f"{query[best]:.3g} after {best} inner steps"
    return f"the query loss rises from {lowest} to {query[-1]:.3g} after {len(query) - 1} while the support loss falls"


def memorisation(history: History, run: Baseline, limits: AlarmConfig) -> str:
    losses = column(history.train[-limits.patience :], "loss") if run.as_hard else []
    solved = len(losses) == limits.patience and fmean(losses) <= run.times(limits.memorised, run.chance.loss)
    val = history.val[-1]
    figure, interval = val.get("mean", math.nan), finite_or(val.get("ci95"), 0.0)
    if not solved or run.error(figure) - interval <= run.times(limits.unsolved, run.error(run.chance.figure)):
        return ""
    before = column(history.train[-limits.patience :], "query_loss/0")
    without = before and fmean(before) <= limits.memorised * run.chance.loss
    how = f"even before adaptation (query loss {fmean(before):.2g})" if without else f"(loss {fmean(losses):.2g})"
    return f"training tasks are solved {how}, validation tasks are not ({run.metric} {shown(val)})"


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
    value = history.probe[-1].get("rate_curvature", 0.0)
    return "" if value <= 2 else f"inner rate times largest curvature is {value:.3g} on average, the limit is 2"


def cg_not_converged(history: History, run: Baseline, limits: AlarmConfig) -> str:
    residual = history.train[-1].get("cg_residual", 0.0)
    if residual <= limits.cg_residual:
        return ""
    return f"the conjugate gradient's residual is {residual:.2g} of the right-hand side, so the meta-gradient is rough"


def negative_curvature(history: History, run: Baseline, limits: AlarmConfig) -> str:
    share = history.train[-1].get("cg_negative", 0.0)
    if share <= 0:
        return ""
    return (
        f"the conjugate gradient met negative curvature in {share:.0%} of this step's tasks: I + H/lambda is not "
        "positive definite there, so the adapted weights are no minimiser"
    )


SMALLER_RATE = "lower algo.inner_lr"
RULES = (
    Rule("diverged", "train", diverged, "lower optim.lr or algo.inner_lr, or set optim.clip"),
    Rule("loss_spike", "train", loss_spike, "if it comes back, lower optim.lr, set optim.clip or raise train.tasks"),
    Rule("lost_progress", "train", lost_progress, "lower optim.lr or set optim.clip; best.pt may have better weights"),
    Rule("stuck_at_chance", "val", stuck_at_chance, "check the data (job=data), try other optim.lr and algo.inner_lr"),
    Rule("no_adaptation", "train", no_adaptation, "raise algo.inner_lr, or lower it if the loss rose"),
    Rule("inner_overfitting", "train", inner_overfitting, "lower algo.inner_steps, or raise data.shots"),
    Rule("memorisation", "val", memorisation, "train on more tasks or classes, or vary the tasks"),
    Rule("unstable_inner_rate", "train", unstable_inner_rate, SMALLER_RATE),
    Rule("unstable_inner_rate", "val", overflows, SMALLER_RATE),
    Rule("unstable_inner_rate", "probe", beyond_curvature, SMALLER_RATE),
    Rule("cg_not_converged", "train", cg_not_converged, "raise algo.cg_steps, algo.prox or algo.cg_damping"),
    Rule("negative_curvature", "train", negative_curvature, "set algo.curvature=gauss_newton, or raise algo.prox"),
)
