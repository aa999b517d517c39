r"""Remedies: what the alarms of a run recommend, tried in short trainings beside an unchanged one.

Every training has the run's seed, new weights and `train_steps` outer steps, over which its schedule is spread. One
setting is changed: a number by each of `factors`, up or down (by the first of them alone where a step then costs as
many times more), or to a value. The last weights are scored on the same test tasks, a_i after the change, b_i without:

    difference = mean_i (a_i - b_i),   half = 1.96 sd(a_i - b_i) / sqrt(tasks),   wins = share of tasks with a_i better

The interval is for new tasks and these two trainings, not for other seeds. Where a mean is not finite, the metric is
better or worse if the tasks with a_i better and those with b_i better differ by more than 1.96 roots of their number
(a sign test). What came of a change:

    helps      the alarm is gone, and the metric is better
    gone       the alarm is gone, no other came, and the metric is neither better nor worse for certain
    others     the same, but `others` came that the unchanged training does not have
    worse      the alarm is gone, but the metric is worse
    remains    the alarm is still raised
    not_seen   the unchanged training does not raise it: more `train_steps` may

optim.clip is tried at the median norm of the run's meta-gradients. Left out are changes of the tasks themselves
(data.shots), after which the metric is another, and settings that the run does not have.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from metarun.analyses.analysis import Cell, Context, Row, mask_diverged, require_at_least
from metarun.analyses.stability import evaluate_last_weights
from metarun.config.schema import Config, get
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish, panels
from metarun.report.statistics.intervals import NORMAL_95, mean_and_error
from metarun.report.statistics.paired import Comparison, compare
from metarun.storage.text import axis_label, count_nouns, display_scale, format_metric


class Change(NamedTuple):
    key: str
    to: Any  # UP, DOWN, CLIP, or a value


UP, DOWN, CLIP = "up", "down", "clip"
INNER_UP, INNER_DOWN = Change("algo.inner_lr", UP), Change("algo.inner_lr", DOWN)
LOWER_RATE, CLIPPED, MORE_PROX = Change("optim.lr", DOWN), Change("optim.clip", CLIP), Change("algo.prox", UP)
CHANGES: dict[str, tuple[Change, ...]] = {
    "diverged": (LOWER_RATE, INNER_DOWN, CLIPPED),
    "loss_spike": (LOWER_RATE, CLIPPED, Change("train.tasks", UP)),
    "lost_progress": (LOWER_RATE, CLIPPED),
    "stuck_at_chance": (LOWER_RATE, Change("optim.lr", UP), INNER_DOWN, INNER_UP),
    "no_adaptation": (INNER_UP, INNER_DOWN),
    "inner_overfitting": (Change("algo.inner_steps", DOWN),),
    "memorisation": (Change("train.pool", UP), Change("data.train_classes", None)),
    "unstable_inner_rate": (INNER_DOWN,),
    "cg_not_converged": (Change("algo.cg_steps", UP), MORE_PROX, Change("algo.cg_damping", UP)),
    "negative_curvature": (Change("algo.curvature", "gauss_newton"), MORE_PROX),
}
"""Alarm -> the settings of its advice (metarun/diagnostics/alarms.py)."""

COSTLY = ("train.tasks", "algo.cg_steps")
"""Settings by which a step costs as many times more."""

WHOLE = (*COSTLY, "train.pool", "algo.inner_steps")
"""Settings that are whole numbers."""

OUTCOMES = {
    "helps": "helps",
    "gone": "ends it, and changes the metric by no more than its error",
    "others": "ends it, raises others, and changes the metric by no more than its error",
    "worse": "ends it, but makes the metric worse",
    "remains": "does not end it",
    "not_seen": "was not judged, since the short unchanged training did not raise it",
}
"""From the best to the least."""


class Trained(NamedTuple):
    """A short training."""

    alarms: dict[str, Any]  # as summary.json has them
    scores: Tensor | None  # of the test tasks [M], NaN where adaptation diverged; None if training did


@dataclass(frozen=True)
class Remedy:
    train_steps: int | None  # None: twice as many as the run took until the last of its alarms came
    factors: tuple[float, ...]
    tasks: int

    def __post_init__(self) -> None:
        require(bool(self.factors) and min(self.factors) > 1, "factors", list(self.factors), "must be above 1")
        require_at_least(self, tasks=2, **({} if self.train_steps is None else {"train_steps": 1}))

    def cells(self, context: Context) -> Sequence[Cell]:
        """A cell for each alarm and change that this run can have."""
        alarms, clip = read_alarms(context), median_norm(context)
        found = [
            {"alarm": alarm, "key": key, "value": value}
            for alarm in alarms
            for change in CHANGES.get(alarm, ())
            for key, value in list_values(context.config, change, self.factors, clip)
            if _is_possible(context, {key: value})
        ]
        if not found:
            raise UserError(f"analysis=remedy: no setting of this run to change for {', '.join(alarms)}")
        return found

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        change = _follow(context.config, {cell["key"]: cell["value"]})
        before = self._train(context, "unchanged", {})
        after = self._train(context, f"{cell['key']}-{cell['value']}", change)
        return describe_change(cell["alarm"], before, after, context.assemble().tested.loss.higher_is_better)

    def _train(self, context: Context, name: str, change: dict[str, Any]) -> Trained:
        changes = {"train.steps": self.choose_steps(context), "test.tasks": self.tasks, **change}
        run = context.train(name, changes)
        outcome = evaluate_last_weights(context.assemble(changes), run, self.tasks)
        return Trained(run.summary["alarms"], outcome and mask_diverged(outcome.new, outcome.new_scores))

    def choose_steps(self, context: Context) -> int:
        """As many as the run took until the last of its alarms came, and as many again to see whether it stays away."""
        raised = read_alarms(context).values()
        latest = max((alarm["first"] for alarm in raised if isinstance(alarm, dict)), default=0)  # older runs: a number
        train = context.config.train
        return self.train_steps or min(train.steps, max(2 * latest, train.eval_every))

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss, steps = context.assemble().tested.loss, self.choose_steps(context)
        alarms: dict[str, Any] = {}
        lines = []
        for name in read_alarms(context):
            row = choose_best([r for r in rows if r["alarm"] == name], loss.higher_is_better)
            if row is None:
                lines.append(f"{name}: no setting of this run to change")
                continue
            alarms[name] = {"change": write_change(row), "outcome": row["outcome"]}
            lines.append(f"{name}: {describe_row(row, loss.metric)}")
        lines.append(f"each training: {count_nouns(steps, 'step')}, seed {context.config.seed}")
        return {"metric": loss.metric, "train_steps": steps, "alarms": alarms, "message": "\n".join(lines)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """The test metric after each change, filled where the alarm is gone; the line is the unchanged training."""
        metric, scale = summary["metric"], display_scale(summary["metric"])
        figure, (axes,) = panels(1, columns=1, height=1.0 + 0.24 * len(rows))
        place = axes.get_position()
        axes.set_position((0.4, place.y0, 0.58, place.height))  # room for the names of the changes
        for y, row in enumerate(rows):
            colour = COLOURS[2] if row["outcome"] == "helps" else COLOURS[1]
            if row["after"] is None:
                axes.text(0.02, y, "not finite", transform=axes.get_yaxis_transform(), color=colour, va="center")
                continue
            face = "white" if row["outcome"] in ("remains", "not_seen") else colour
            bar = scale * (row["after_half"] or 0)
            axes.errorbar(scale * row["after"], y, xerr=bar, fmt="o", color=colour, markerfacecolor=face, capsize=3)
        if rows[0]["before"] is not None:
            axes.axvline(scale * rows[0]["before"], color=GREY, linewidth=1)
        finish(axes, f"After {count_nouns(summary['train_steps'], 'step')}", f"test {axis_label(metric)}", "")
        axes.set_yticks(range(len(rows)), [f"{row['alarm']}: {write_change(row)}" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        return [Drawing("remedy", summary["message"], figure)]


def read_alarms(context: Context) -> dict[str, Any]:
    """The alarms of the run to analyse. Raise `UserError` if there are none."""
    if context.source is None:
        raise SettingError("run", None, "this analysis needs a run with alarms, as run=outputs/DATE/TIME-maml-sinusoid")
    alarms = context.source.read_summary().get("alarms")
    if not alarms:
        raise UserError(f"run={context.source.path}: raised no alarm, so there is nothing to change")
    return dict(alarms)


def median_norm(context: Context) -> float:
    """The median norm of the run's logged meta-gradients; 1 where none is finite or logged."""
    records = context.source.read_records() if context.source else []
    norms = [r["grad_norm"] for r in records if r["kind"] == "train" and r.get("grad_norm") is not None]
    return round_number(statistics.median(norms)) if norms else 1.0


def round_number(value: float) -> float:
    return float(f"{value:.4g}")


def list_values(config: Config, change: Change, factors: Sequence[float], clip: float) -> Iterator[tuple[str, Any]]:
    """The new values of a setting: none where the run does not have it, or has this value already."""
    key, to = change
    try:
        value = get(config, key)
    except AttributeError:
        return
    if to == CLIP:
        values: list[Any] = [] if value is not None and value <= clip else [clip]
    elif to not in (UP, DOWN):
        values = [to]
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        values = []
    elif value == 0:  # of algo.cg_damping
        values = [1.0] if to == UP else []
    else:
        used = sorted(factors)[:1] if key in COSTLY else sorted(factors)
        scaled = [value * f if to == UP else value / f for f in used]
        values = [max(1, int(v)) if key in WHOLE else round_number(v) for v in scaled]
    for new in dict.fromkeys(values):
        if new != value:
            yield key, new


def _follow(config: Config, change: dict[str, Any]) -> dict[str, Any]:
    """The change, with as many inner steps at test where the run has as many there."""
    steps = change.get("algo.inner_steps")
    same = steps is not None and config.algo.get("test_inner_steps") == config.algo["inner_steps"]
    return change | ({"algo.test_inner_steps": steps} if same else {})


def _is_possible(context: Context, change: dict[str, Any]) -> bool:
    """Whether a run with this change can be made: a rate of interpolation, say, is at most 1."""
    try:
        context.assemble(_follow(context.config, change))
    except UserError:
        return False
    return True


def describe_change(alarm: str, before: Trained, after: Trained, higher_is_better: bool) -> dict[str, Any]:
    """The columns of a row: both metrics, their paired difference, the alarm's counts, other alarms, the outcome."""
    row: dict[str, Any] = {"before": None, "after": None, "after_half": None}
    row |= {"difference": None, "half": None, "wins": None}
    if before.scores is not None:
        row["before"] = mean_and_error(before.scores)[0]
    if after.scores is not None:
        row["after"], error, _ = mean_and_error(after.scores)
        row["after_half"] = NORMAL_95 * error
    sign = 0
    if before.scores is not None and after.scores is not None:
        found = compare(after.scores, before.scores, higher_is_better)
        row |= {"difference": found.difference, "half": found.half, "wins": found.wins}
        sign = judge(found, higher_is_better)
    elif before.scores is not None or after.scores is not None:
        sign = 1 if before.scores is None else -1
    count, left = (run.alarms.get(alarm, {}).get("count", 0) for run in (before, after))
    others = sorted(after.alarms.keys() - before.alarms.keys())
    if not count:
        outcome = "not_seen"
    elif left:
        outcome = "remains"
    else:
        outcome = ("others" if others else "gone", "helps", "worse")[sign]
    return row | {"raised_before": count, "raised_after": left, "others": " ".join(others), "outcome": outcome}


def judge(found: Comparison, higher_is_better: bool) -> int:
    """1 where the metric is better for certain, -1 where it is worse, else 0."""
    if np.isfinite(found.half):
        gain = found.difference if higher_is_better else -found.difference
        return int(np.sign(gain)) if abs(gain) > found.half else 0
    lead, decided = found.n * (found.wins - found.losses), found.n * (found.wins + found.losses)
    return int(np.sign(lead)) if abs(lead) > NORMAL_95 * np.sqrt(decided) else 0


def choose_best(rows: Sequence[Row], higher_is_better: bool) -> Row | None:
    """The row of the best outcome; of several, that of the best metric, or where it is not finite of most wins."""

    def rank(row: Row) -> tuple[int, bool, float]:
        after, wins = row["after"], row["wins"] or 0.0
        error = -wins if after is None else -after if higher_is_better else after
        return list(OUTCOMES).index(row["outcome"]), after is None, error

    return min(rows, key=rank, default=None)


def write_change(row: Row) -> str:
    """`algo.inner_lr=0.0625`, as on the command line."""
    return f"{row['key']}={'null' if row['value'] is None else row['value']}"


def describe_row(row: Row, metric: str) -> str:
    """What came of a change, in a line."""
    before, after = (format_metric(metric, row[key], missing="not finite") for key in ("before", "after"))
    numbers = f"{axis_label(metric).removesuffix(', %')} {before} before, {after} after"
    if row["difference"] is not None:
        change = format_metric(metric, row["difference"], row["half"], plus_minus="+-")
        numbers += f", difference {change}"
    elif row["wins"] is not None:
        numbers += f", better on {row['wins']:.0%} of the test tasks"
    others = f"; raised instead: {row['others']}" if row["others"] else ""
    return f"{write_change(row)} {OUTCOMES[row['outcome']]}; {numbers}{others}"
