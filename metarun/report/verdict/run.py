"""The verdict on one run: its result, whether it has converged, whether it is stable, what it may be compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from metarun.report.compare.groups import is_irrelevant
from metarun.report.read import facts
from metarun.report.read.files import as_mapping, as_mappings
from metarun.report.read.runs import Run
from metarun.report.statistics.trend import LEAST, Course, judge_course
from metarun.report.verdict.sentence import BATCH, CALIBRATED, CONVERGED, PUBLISHED, RESULT, STABLE, Sentence, Tone
from metarun.storage import published, text
from metarun.storage.headline import describe_calibration, describe_worst, headline, is_heavy
from metarun.storage.text import count, format_metric, higher_is_better, is_number, number

FEW = 0.01  # of the test tasks
UNSTABLE = 2.0  # of inner rate x largest eigenvalue: gradient descent on a quadratic diverges above it
CALIBRATED_TO = 0.02  # calibration error and overconfidence, as shares
MOST_OF = 0.5  # of an excess risk, explains it
FAR = 4  # times the noise scale or less of it
LOW_RATE = 0.1  # of the largest outer rate
PER = ((20_000, 10_000, "ten thousand"), (2_000, 1_000, "thousand"), (0, 100, "hundred"))  # steps of a slope
CHANGES_NOTHING = ("experiment", "device", "logger", "hydra", "report", "out", "val", "run", "resume")


def judge_run(run: Run) -> list[Sentence]:
    """All sentences on one run, in the order of reading."""
    return [
        *_result(run),
        *converged(run),
        *_optimum(run),
        *_stable(run),
        *_batch(run),
        *_calibrated(run),
        *_compared(run),
    ]


def _result(run: Run) -> Iterator[Sentence]:
    summary, metric = run.summary, facts.metric_of(run)
    where = f"{facts.component(run, 'algo')} on {facts.component(run, 'data')}, {facts.episode_size(run)}"
    if summary.get("diverged") is True:
        yield Sentence(RESULT, f"{where}: the run diverged after {count(summary.get('steps_done'))} steps.", "warn")
    if not is_heavy(summary) and not is_number(summary.get("mean")):
        return
    name, steps = text.metric_name(metric), summary.get("headline_step")
    over = f"95 % interval over {count(summary.get('n_tasks'))} test tasks"
    after = f" after {text.count_nouns(steps, facts.step_unit(run)[:-1])}" if isinstance(steps, int) and steps else ""
    yield Sentence(RESULT, f"{where}: test {name} {headline(metric, summary)}{after} ({over}).")
    curve = as_mappings(summary.get("curve"))
    before = curve[0].get("mean") if len(curve) > 1 and curve[0].get("step") == 0 else None
    beside = [f"before adaptation it is {format_metric(metric, before)}"] if is_number(before) else []
    if metric == "accuracy" and is_number(summary.get("ways")) and summary["ways"] >= 1:
        beside.append(f"guessing gives {format_metric(metric, 1 / summary['ways'])}")
    if beside:
        yield Sentence(RESULT, f"For scale: {'; '.join(beside)}.")


def converged(run: Run) -> Iterator[Sentence]:
    """Whether the metric still changes: from the validations, or where they are too few from the training loss."""
    metric, validation = facts.metric_of(run), facts.validation_curve(run)
    if not run.of("train") and not validation:
        return
    course = judge_course(validation["step"], validation["mean"]) if validation else None
    if course:
        unit = " points" if text.display_unit(metric) else ""
        name = f"validation {text.metric_name(metric)}"
        yield _describe_course(course, name, unit, higher_is_better(metric), f"{course.points} validations", run)
    else:
        few = len(validation.get("step", ()))
        yield Sentence(
            CONVERGED,
            f"{text.count_nouns(few, 'validation')}: a trend needs {LEAST} in the second half of the training "
            "(train.eval_every sets how often).",
        )
        course = judge_course(*facts.series(run.of("train"), "loss"))
        if course:
            yield _describe_course(course, "training loss", "", False, f"{course.points} records", run)
    rates = facts.series(run.of("train"), "lr")[1]
    rates = rates[np.isfinite(rates)]
    if course and course.verdict == "flat" and len(rates) and rates[-1] < LOW_RATE * rates.max():
        share = f"{100 * rates[-1] / rates.max():.2g} %"
        yield Sentence(CONVERGED, f"The outer rate ended at {share} of its largest value, which flattens any curve.")


def _optimum(run: Run) -> Iterator[Sentence]:
    """How far the run is from the best theta, and what would bring it nearer: steps, a lower rate, another learner."""
    found = as_mapping(as_mapping(run.summary.get("convergence")).get("optimum"))
    first, plateau, floor, noise = (found.get(key) for key in ("first", "plateau", "floor", "noise"))
    if not (is_number(first) and is_number(plateau) and first > 0):
        return
    share = f"{100 * plateau / first:.2g} % of the {number(first, 2)} at the first record"
    words = f"Excess risk over the best theta: {number(plateau, 2)}, mean of the last half, {share}"
    tone: Tone = "good" if plateau <= FEW * first else "plain"
    if is_number(floor) and floor > MOST_OF * plateau:
        yield Sentence(CONVERGED, f"{words}. The learner's own fixed point has {number(floor, 2)}: it is biased, and "
                       "more steps do not lower it.", "plain")  # fmt: skip
    elif is_number(noise) and noise > MOST_OF * plateau:
        yield Sentence(CONVERGED, f"{words}. The noise of the tasks at this rate accounts for {number(noise, 2)}: a "
                       "lower rate or more tasks a step lower it, more steps do not.", tone)  # fmt: skip
    else:
        yield Sentence(CONVERGED, f"{words}.", tone)
    measured, predicted = found.get("contraction"), found.get("predicted_contraction")
    if is_number(measured) and is_number(predicted):
        numbers = f"measured {number(measured, 5)}, predicted {number(predicted, 5)} by gradient descent without noise"
        until = f" (until step {count(found['until_step'])})" if is_number(found.get("until_step")) else ""
        yield Sentence(CONVERGED, f"Distance to it that is left after each step: {numbers}{until}.")


def _describe_course(course: Course, name: str, unit: str, higher: bool, over: str, run: Run) -> Sentence:
    done = run.summary.get("steps_done")
    last = done if is_number(done) else max((r["step"] for r in (*run.of("val"), *run.of("train"))), default=0)
    by, word = next((by, word) for least, by, word in PER if last >= least)
    half = f"{number(by * course.half, 2)}{unit}"
    change = f"{number(by * course.slope, 2)} ± {half} a {word} steps (95 %, {over} since step {count(course.since)})"
    if course.verdict == "flat":
        return Sentence(CONVERGED, f"The {name} is flat since step {count(course.since)}: {change}.", "good")
    if course.verdict == "unclear":
        return Sentence(CONVERGED, f"Whether the {name} still changes cannot be told from its noise: {change}.")
    verb = "rises" if course.verdict == "rising" else "falls"
    if (course.verdict == "rising") == higher:
        size = f"by {number(by * abs(course.slope), 2)} ± {half} a {word} steps"
        since = f"(95 %, {over} since step {count(course.since)})"
        return Sentence(CONVERGED, f"Not yet: the {name} still {verb} {size} {since}. Train longer.", "warn")
    best = run.summary.get("best_step")
    kept = f" The tested checkpoint is that of step {count(best)}, the best validation." if is_number(best) else ""
    return Sentence(CONVERGED, f"The {name} gets worse: {change}.{kept}", "warn")


def _stable(run: Run) -> Iterator[Sentence]:
    alarms = run.summary.get("alarms")
    if isinstance(alarms, Mapping):
        if not alarms:
            yield Sentence(STABLE, "No alarm was raised in training.", "good")
        for name, alarm in list(alarms.items())[:4]:
            found = as_mapping(alarm)
            times = found.get("count") if found else alarm
            at = f", first at step {count(found['first'])}" if is_number(found.get("first")) else ""
            message = f": {found['message']}" if found.get("message") else ""
            yield Sentence(STABLE, f"Alarm {name}, {_times(times)}{at}{message}", "warn")
        if alarms:
            yield _remedies(run)
    yield from _curvature(run)
    yield from _failures(run)
    if worst := describe_worst(facts.metric_of(run), run.summary):
        yield Sentence(STABLE, f"{_capital(worst)}.")
    rewinds = run.summary.get("rewinds")
    if is_number(rewinds) and rewinds:
        yield Sentence(STABLE, f"Training went back to an earlier checkpoint {_times(rewinds)}.", "warn")


def _remedies(run: Run) -> Sentence:
    """What analysis=remedy found, or the command for it."""
    tried = [a.summary["message"] for a in run.analyses if a.name.startswith("remedy") and a.summary.get("message")]
    if not tried:
        command = f"metarun job=analyze run={run.path} analysis=remedy"
        return Sentence(STABLE, f"Short trainings show whether what the alarms recommend helps: {command}")
    return Sentence(STABLE, f"Tried in short trainings: {'; '.join(str(tried[-1]).splitlines())}.")


def _times(value: Any) -> str:
    return "once" if value == 1 else f"{number(value)} times"


def _curvature(run: Run) -> Iterator[Sentence]:
    """Rates x largest eigenvalues on the probe tasks: inner rate and support loss, outer rate and query loss."""
    for which, name in (("Inner", "rate_curvature_max"), ("Outer", "outer_rate_curvature")):
        steps, products = facts.series(run.of("probe"), name)
        known = np.isfinite(products)
        if not known.any():
            continue
        worst, last = float(products[known].max()), float(products[known][-1])
        at = count(steps[known][products[known].argmax()])
        words = f"{which} rate x largest curvature: at most {worst:.2g} on the probe tasks (step {at}), {last:.2g}"
        above = worst > UNSTABLE
        means = "where gradient descent on a quadratic diverges" if above else STEPS_ARE_SMALL[which]
        tone: Tone = "warn" if last > UNSTABLE else "plain" if above else "good"
        yield Sentence(STABLE, f"{words} at the end; {'above' if above else 'below'} 2, {means}.", tone)


STEPS_ARE_SMALL = {
    "Inner": "so that the inner steps contract",
    "Outer": "so that curvature does not limit optim.lr; the noise of few tasks a step may",
}


def _failures(run: Run) -> Iterator[Sentence]:
    """Test tasks that adaptation made worse: as the summary counts them for errors, else from the scores."""
    failed, tasks = as_mapping(run.summary.get("errors")).get("failed"), run.summary.get("n_tasks")
    last, scores = facts.headline_scores(run), run.scores or {}
    words = "have a larger error after adaptation than before it, or none that is finite"
    if not is_number(failed) and 0 in scores and last is not None and len(scores) > 1:
        sign = 1 if higher_is_better(facts.metric_of(run)) else -1
        failed, tasks = int((~(sign * (last - scores[0]) >= 0)).sum()), len(last)
        words = f"have a worse {text.metric_name(facts.metric_of(run))} after adaptation than before it"
    curve = as_mappings(run.summary.get("curve"))
    if is_number(failed) and is_number(tasks) and tasks > 0 and len(curve) > 1:
        share = f"{count(failed)} of {count(tasks)} test tasks ({100 * failed / tasks:.2g} %)"
        share = share if failed else f"None of {count(tasks)} test tasks"
        verb = words if failed > 1 else words.replace("have", "has", 1)
        yield Sentence(STABLE, f"{share} {verb}.", "good" if failed <= FEW * tasks else "warn")


def _batch(run: Run) -> Iterator[Sentence]:
    """Whether more or fewer tasks a step would pay, by the noise scale of the meta-gradient."""
    found = as_mapping(as_mapping(run.summary.get("convergence")).get("noise_scale"))
    low, high, used = (found.get(key) for key in ("low", "high", "used"))
    if not (is_number(low) and is_number(used)):
        return
    bounds = f"{_tasks(low)} to {_tasks(high)}" if is_number(high) else f"at least {_tasks(low)}"
    words = f"The noise scale of the meta-gradient is {bounds} tasks (95 %, last half of the training)"
    if low > FAR * used:
        share = f"at most {100 / (1 + low / used):.2g} % of what one without noise would"
        sentence = f"{words}: a step of {count(used)} makes {share}. More (train.tasks) save steps."
    elif used < low:
        sentence = f"{words}: a step of {count(used)} is somewhat below it. More (train.tasks) save some steps."
    elif is_number(high) and FAR * high < used:
        sentence = f"{words}: a step of {count(used)} has more than it needs. Fewer (train.tasks) save time."
    else:
        place = "above" if is_number(high) and used > high else "within"
        sentence = f"{words}: a step of {count(used)} is {place} it. More would save few steps."
    yield Sentence(BATCH, sentence)


def _tasks(value: float) -> str:
    return count(round(value)) if value >= 10 else number(value, 2)


def _calibrated(run: Run) -> Iterator[Sentence]:
    """Whether a classifier's probabilities may be taken as such."""
    found = as_mapping(run.summary.get("calibration"))
    over, half, error = (found.get(key) for key in ("overconfidence", "overconfidence_ci95", "error"))
    if not (is_number(over) and is_number(half) and is_number(error)):
        return
    words = _capital(describe_calibration(run.summary))
    if max(abs(over), error) < CALIBRATED_TO:
        yield Sentence(CALIBRATED, f"{words}. A probability can be read as one.", "good")
    elif abs(over) > half:
        side = "high: a threshold on them lets too much pass" if over > 0 else "low"
        yield Sentence(CALIBRATED, f"{words}. Probabilities are too {side}.", "warn" if over > 0 else "plain")
    else:
        yield Sentence(CALIBRATED, f"{words}. Right on average, not at each confidence.")


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _compared(run: Run) -> Iterator[Sentence]:
    """The published value of the run's experiment, with what differs from it."""
    stored = as_mapping(run.summary.get("published"))
    if not (is_number(stored.get("value")) or stored.get("values")) or run.summary.get("mean") is None:
        return
    try:
        rows = published.compare(stored, run.summary)
    except (KeyError, TypeError, ValueError):
        return
    changed = changed_settings(run)
    planned, done = facts.setting(run, "train.steps"), run.summary.get("steps_done")
    short = is_number(planned) and is_number(done) and done < planned
    changed += [f"{count(done)} of {count(planned)} steps"] if short else []
    for row in rows:
        printed = f"{row.published:g}" + (f" ± {row.published_ci95:g}" if row.published_ci95 else "")
        after = "" if row.step is None else f" after {row.step} steps"
        difference = abs(row.mean - row.published)
        words = {
            "agrees": "this run agrees with it (difference within the intervals)",
            "undecided": "undecided, since the mean of this run has no interval",
        }.get(row.verdict, f"this run is {difference:.2f} {row.verdict}")
        yield Sentence(PUBLISHED, f"{stored.get('source')}: {printed}{after}; {words}.")
    if rows and changed:
        named = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
        yield Sentence(PUBLISHED, f"The settings differ from those of the published row: {named}.", "warn")


def changed_settings(run: Run) -> list[str]:
    """The overrides that change how an experiment learns."""
    found = []
    for override in run.overrides or ():
        key = override.partition("=")[0].lstrip("+~")
        plain = key.partition(".")[0].partition("/")[0] in CHANGES_NOTHING or is_irrelevant(key)
        found += [] if plain else [override]
    return found
