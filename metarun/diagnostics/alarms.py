"""Alarms: rules that look at the latest records of a run and describe in words what is wrong, and their state.

A rule reads metrics by their names in metrics.jsonl and does not hold where they are missing. All are heuristics.
p is `patience` and w `window`; other names in quotes are thresholds of `diagnostics.alarms` as well. L_k is the query
loss after k inner steps, K the last. "chance" is the score of not learning (chance.py). NaN is any number not finite.

diverged             the loss is not finite, or its mean over p records > `diverged` * max(first loss, chance)
loss_spike           log loss - median > max(`spike` * MAD, log 2), of the logarithms of the w losses before, with
                     MAD = median |log loss - median|, and a rise of more than chance / 10. Logarithms, because the
                     losses of random tasks are skewed; the doubling and the tenth, because a window may be calm by luck
lost_progress        the mean error of training tasks over w records is above the least such mean over p records so far
                     by more than `lost` * (error of chance - that least) and 6 standard errors: it learned, and forgot.
                     Not judged while no validation was better than chance: the least of noisy records is below them;
                     nor in a mixture of data sets, where the least is that of records of the easiest set
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
unstable_inner_rate  contraction > `grows` or inner_rises > `rises` in p records in a row; a validation that is not
                     finite; a probe with rate_curvature > 2, its mean over tasks: MAML trains healthily with single
                     tasks above
cg_not_converged     a record with cg_residual > `cg_residual`
negative_curvature   a record with cg_negative > 0

A negative log-likelihood may be below 0 and is a logarithm already: in diverged, loss_spike, stuck_at_chance and
memorisation a * b then stands for b + log a, log loss for the loss itself, and a spike needs no rise of chance / 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from torch import Tensor

from metarun.config.schema import AlarmConfig, DiagnosticsConfig
from metarun.diagnostics.chance import Chance
from metarun.storage.text import count_nouns

Metrics = Mapping[str, float]
"""The metrics of one record."""

TINY = 1e-12  # lower bound of a loss whose logarithm is taken
FLOOR = 0.1  # of the loss of chance: a smaller rise of the loss is no spike
SURE = 6.0  # standard errors of a mean over the window, above which a rise is not due to chance


class Baseline(NamedTuple):
    """Facts of a run that the rules compare with."""

    chance: Chance
    metric: str
    higher_is_better: bool
    as_hard: bool = True  # whether training tasks have no more shots and no fewer ways than validation tasks
    best: float = 1.0  # error = best - metric if higher is better
    signed: bool = False  # whether loss and error are logarithms, and may be below 0
    mixed: bool = False  # whether a step's tasks come from one or another of several sets, with errors of their own

    def error(self, score: float) -> float:
        """The error of a value of the metric, and the other way round."""
        return self.best - score if self.higher_is_better else score

    def times(self, factor: float, value: float) -> float:
        """A multiple of a loss or an error; if these are logarithms, log(factor) is added."""
        return value + math.log(max(factor, TINY)) if self.signed else factor * value

    def log(self, loss: float) -> float:
        return loss if self.signed else math.log(max(loss, TINY))


@dataclass
class History:
    """What the rules look at. The records are the latest of each kind, oldest first, as many as the rules need."""

    run: Baseline
    limits: AlarmConfig
    train: list[Metrics] = field(default_factory=list)
    val: list[Metrics] = field(default_factory=list)
    probe: list[Metrics] = field(default_factory=list)
    first_loss: float = 0.0  # the first that was finite
    least_error: float = math.inf  # of training tasks, as a mean over `patience` records in a row
    learned: bool | None = None  # whether a validation was better than chance; None: there was none

    def append(self, kind: str, record: Metrics) -> None:
        """Add a record; other kinds than train, val and probe are left out."""
        records = {"train": self.train, "val": self.val, "probe": self.probe}.get(kind, [])
        records.append(record)
        del records[: -max(self.limits.window + 1, self.limits.patience)]
        if kind == "train":
            self.first_loss = self.first_loss or finite_or(record.get("loss"), 0.0)
            self.least_error = min(self.least_error, self.training_error(self.limits.patience)[0])
        if kind == "val" and "mean" in record:
            self.learned = bool(self.learned) or self.run.error(record["mean"]) < self.bar(record)

    def bar(self, val: Metrics) -> float:
        """The error below which a validation is better than chance."""
        return self.run.error(self.run.chance.score) - max(self.little, finite_or(val.get("ci95"), 0.0))

    @property
    def little(self) -> float:
        """The share `chance` of the error of chance."""
        error = self.run.error(self.run.chance.score)
        return error - self.run.times(1 - self.limits.chance, error)

    def training_error(self, records: int) -> tuple[float, float]:
        """Mean and standard error over the last records; infinite unless all are there and finite."""
        scores = [score for score in column(self.train[-records:], self.run.metric) if math.isfinite(score)]
        if len(scores) < max(records, 2):
            return math.inf, math.inf
        errors = [self.run.error(score) for score in scores]
        return fmean(errors), stdev(errors) / math.sqrt(records)


def column(records: Sequence[Metrics], name: str) -> list[float]:
    return [record[name] for record in records if name in record]


def mean_along(records: Sequence[Metrics], name: str) -> list[float]:
    """name/0, name/1, ... as far as all records have them, each the mean over the records."""
    means: list[float] = []
    while records and all(f"{name}/{len(means)}" in record for record in records):
        means.append(fmean(column(records, f"{name}/{len(means)}")))
    return means


def all_last(records: Sequence[Metrics], count: int, name: str, holds: Callable[[Metrics], bool]) -> bool:
    """Whether there are `count` records, and the last ones all have this metric and satisfy the condition."""
    last = records[-count:]
    return len(last) == count and all(name in record and holds(record) for record in last)


def format_validation(val: Metrics) -> str:
    """A validation's mean with its interval, as far as they are finite."""
    mean, ci95 = val.get("mean", math.nan), val.get("ci95", math.nan)
    interval = f" +- {ci95:.2g}" if math.isfinite(ci95) else ""
    return f"{mean:.3g}{interval}" if math.isfinite(mean) else "not finite"


def finite_or(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise


# The rules: each returns what is wrong, or "".


def diverged(history: History) -> str:
    run, limits = history.run, history.limits
    losses = column(history.train[-limits.patience :], "loss")
    if losses and not math.isfinite(losses[-1]):
        return "the loss is not finite"
    reference = max(history.first_loss, run.chance.loss)
    if len(losses) < limits.patience or not fmean(losses) > run.times(limits.diverged, reference):
        return ""
    records = count_nouns(len(losses), "record")
    return f"the loss averages {fmean(losses):.3g} over {records}; the first loss was {history.first_loss:.3g}"


def loss_spike(history: History) -> str:
    run, limits = history.run, history.limits
    losses = [loss for loss in column(history.train[-limits.window - 1 :], "loss") if math.isfinite(loss)]
    if len(losses) <= limits.window:
        return ""
    *logs, last = (run.log(loss) for loss in losses)
    middle = median(logs)
    spread = median(abs(value - middle) for value in logs)
    usual = middle if run.signed else math.exp(middle)
    small = not run.signed and losses[-1] - usual <= FLOOR * run.chance.loss
    if last - middle <= max(limits.spike * spread, math.log(2)) or small:
        return ""
    return f"the loss jumped to {losses[-1]:.3g} from a median of {usual:.3g}"


def lost_progress(history: History) -> str:
    run, limits = history.run, history.limits
    mean, standard_error = history.training_error(limits.window)
    least, chance = history.least_error, run.error(run.chance.score)
    rise = max(limits.lost * (chance - least), SURE * standard_error)
    if run.mixed or history.learned is False or not math.isfinite(run.chance.loss) or not mean - least > rise:
        return ""
    now, before = (run.error(error) if run.higher_is_better else error for error in (mean, least))
    records = count_nouns(limits.window, "record")
    return f"the training {run.metric} averages {now:.3g} over {records}; at its best it was {before:.3g}"


def stuck_at_chance(history: History) -> str:
    run, limits = history.run, history.limits

    def no_better(record: Metrics) -> bool:
        return run.error(record["mean"]) >= history.bar(record)

    unbeatable = run.error(run.chance.score) == 0 and not run.signed  # a logarithm of 0 can be beaten
    if unbeatable or not all_last(history.val, limits.patience, "mean", no_better):
        return ""
    first, last = history.val[-limits.patience], history.val[-1]
    if run.error(first["mean"]) - run.error(last["mean"]) > history.little:  # it improves
        return ""
    return f"the validation {run.metric} is {format_validation(last)}; chance level is {run.chance.score:.3g}"


def no_adaptation(history: History) -> str:
    limits = history.limits
    gains, befores = (column(history.train[-limits.window :], name) for name in ("adaptation_gain", "query_loss/0"))
    if min(len(gains), len(befores)) < limits.window:
        return ""
    gain, before = fmean(gains), fmean(befores)
    message = f"the query loss averages {before:.3g} before adaptation and {before - gain:.3g} after it"
    return message if gain <= limits.no_gain * before else ""


def inner_overfitting(history: History) -> str:
    limits = history.limits
    query, support = (mean_along(history.train[-limits.window :], name) for name in ("query_loss", "support_loss"))
    if len(history.train) < limits.window or not query or len(query) != len(support):
        return ""
    best = query.index(min(query))
    rise = query[-1] - query[best]
    if not rise > max(limits.overfit * query[best], limits.no_gain * query[0]) or support[-1] >= support[best]:
        return ""
    lowest = f"{query[best]:.3g} after {count_nouns(best, 'inner step')}"
    return f"the query loss rises from {lowest} to {query[-1]:.3g} after {len(query) - 1} while the support loss falls"


def memorisation(history: History) -> str:
    run, limits = history.run, history.limits
    losses = column(history.train[-limits.patience :], "loss") if run.as_hard else []
    solved = len(losses) == limits.patience and fmean(losses) <= run.times(limits.memorised, run.chance.loss)
    val = history.val[-1]
    score, interval = val.get("mean", math.nan), finite_or(val.get("ci95"), 0.0)
    if not solved or run.error(score) - interval <= run.times(limits.unsolved, run.error(run.chance.score)):
        return ""
    before = column(history.train[-limits.patience :], "query_loss/0")
    without = before and fmean(before) <= limits.memorised * run.chance.loss
    how = f"even before adaptation (query loss {fmean(before):.2g})" if without else f"(loss {fmean(losses):.2g})"
    return f"training tasks are solved {how}, validation tasks are not ({run.metric} {format_validation(val)})"


def unstable_inner_rate(history: History) -> str:
    patience, rises, grows = history.limits.patience, history.limits.rises, history.limits.grows
    if all_last(history.train, patience, "inner_rises", lambda record: record["inner_rises"] > rises):
        return f"the support loss rises in {history.train[-1]['inner_rises']:.0%} of the inner steps"
    # Not <=, since a contraction that overflowed is NaN.
    if all_last(history.train, patience, "contraction", lambda record: not record["contraction"] <= grows):
        return f"inner steps grow instead of shrinking (contraction {history.train[-1]['contraction']:.3g})"
    return ""


def overflow(history: History) -> str:
    """Training may take fewer inner steps than a validation and stay finite."""
    finite = math.isfinite(history.val[-1].get("mean", 0.0))
    return "" if finite else "the validation metric is not finite: adaptation to some validation tasks overflows"


def beyond_curvature(history: History) -> str:
    """Gradient descent on a quadratic diverges along a direction whose curvature times the rate is above 2."""
    value = history.probe[-1].get("rate_curvature", 0.0)
    return "" if value <= 2 else f"the inner rate times the largest curvature averages {value:.3g}; the limit is 2"


def cg_not_converged(history: History) -> str:
    residual = history.train[-1].get("cg_residual", 0.0)
    if residual <= history.limits.cg_residual:
        return ""
    return f"conjugate gradient ended with a relative residual of {residual:.2g}, so the meta-gradient is inaccurate"


def negative_curvature(history: History) -> str:
    share = history.train[-1].get("cg_negative", 0.0)
    if share <= 0:
        return ""
    return (
        f"conjugate gradient met negative curvature in {share:.0%} of this step's tasks: I + H/lambda is not "
        "positive definite there, so the adapted weights are not a minimiser"
    )


class Rule(NamedTuple):
    name: str
    kind: str  # of the records that it looks at
    check: Callable[[History], str]
    advice: str


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
    Rule("unstable_inner_rate", "val", overflow, SMALLER_RATE),
    Rule("unstable_inner_rate", "probe", beyond_curvature, SMALLER_RATE),
    Rule("cg_not_converged", "train", cg_not_converged, "raise algo.cg_steps, algo.prox or algo.cg_damping"),
    Rule("negative_curvature", "train", negative_curvature, "set algo.curvature=gauss_newton, or raise algo.prox"),
)

ALWAYS = ("diverged",)  # active also with diagnostics.level=off


@dataclass(frozen=True)
class Raised:
    """An alarm that was raised."""

    count: int  # of the records at which it held
    first: int  # outer steps
    last: int
    message: str  # of the first time


class Alarms:
    """Checks the rules at each record. Its state is a function of the records: a resumed run replays them."""

    def __init__(self, settings: DiagnosticsConfig, run: Baseline) -> None:
        self.rules = [rule for rule in RULES if settings.level != "off" or rule.name in ALWAYS]
        self.history = History(run, settings.alarms)
        self.raised: dict[str, Raised] = {}

    def observe(self, kind: str, step: int, values: Mapping[str, Any]) -> list[str]:
        """Add a record; return the lines to print, one for each alarm that is raised for the first time."""
        # NaN where a number is not finite: stored records hold null there, and replaying them must agree.
        numbers = {k: v for k, v in values.items() if v is None or isinstance(v, (int, float))}
        self.history.append(kind, {k: float(finite_or(v, math.nan)) for k, v in numbers.items()})
        lines = []
        for rule in self.rules:
            problem = rule.check(self.history) if rule.kind == kind else ""
            if problem:
                lines += self.count(rule.name, step, f"{problem}; {rule.advice}")
        return lines

    def count(self, name: str, step: int, message: str) -> list[str]:
        """Count an alarm; return its line if this is the first time."""
        before = self.raised.get(name)
        if before:
            self.raised[name] = replace(before, count=before.count + 1, last=step)
            return []
        self.raised[name] = Raised(1, step, step, message)
        return [f"alarm: {name} at step {step}: {message}"]

    def raise_diverged(self, step: int, reason: str) -> list[str]:
        """Raise `diverged`: the run cannot go on, since a loss or a gradient is not finite."""
        advice = next(rule.advice for rule in RULES if rule.name == "diverged")
        return self.count("diverged", step, f"{reason}; {advice}")

    def check_inputs(self, x: Tensor) -> list[str]:
        """Raise `constant_inputs` if all rows of training inputs [T, S, ...] are equal: nothing can be learned."""
        if len(self.rules) == len(ALWAYS) or bool((x != x[:1, :1]).any()):
            return []
        return self.count("constant_inputs", 0, "all inputs are equal; check the data (job=data), the scale of images")

    def summary(self) -> dict[str, dict[str, Any]]:
        return {name: asdict(raised) for name, raised in self.raised.items()}
