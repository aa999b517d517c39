"""The verdict on the runs of a report: on one, or on several together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from metarun.report.compare.groups import group_runs
from metarun.report.compare.sweep import collect_sweep
from metarun.report.read.jobs import list_jobs
from metarun.report.read.runs import Run
from metarun.report.tables.sweep import best_configurations
from metarun.report.verdict.comparison import judge_groups
from metarun.report.verdict.run import judge_run
from metarun.report.verdict.sentence import SETTINGS, Sentence


def judge(runs: Sequence[Run], others: Sequence[Path] = ()) -> list[Sentence]:
    """Return all sentences; none of what the folders hold too little for."""
    if len(runs) == 1 and not others:
        return _as_far_as_known(lambda: judge_run(runs[0]))
    return [
        *_as_far_as_known(lambda: _best_settings(runs, others)),
        *_as_far_as_known(lambda: judge_groups(group_runs(runs))),
    ]


def _best_settings(runs: Sequence[Run], others: Sequence[Path]) -> list[Sentence]:
    sweep = collect_sweep(list_jobs(runs, others))
    return [Sentence(SETTINGS, best.sentence) for best in best_configurations(sweep)] if sweep else []


def _as_far_as_known(part: Callable[[], Iterable[Sentence]]) -> list[Sentence]:
    """Files of another program may hold anything in place of a number: then a part says nothing."""
    try:
        return list(part())
    except Exception:
        return []
