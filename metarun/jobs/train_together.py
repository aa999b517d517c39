"""The trainings of an analysis: side by side where they are runs of one small program, else one after another."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

from metarun.config.schema import Config
from metarun.errors import NonFinite
from metarun.jobs.result import Result
from metarun.jobs.train import ActiveRun, open_run, start, test_best, train_job
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import NO_PARTS, Experiment, OwnParts, assemble
from metarun.training.own_parts import select_parts
from metarun.training.run import StopReason
from metarun.training.side_by_side import Member, are_one_program, can_share, train_side_by_side

Asked = tuple[Config, RunFolder]


def train_runs(slots: Sequence[Asked | None], wanted: Sequence[int], own: OwnParts = NO_PARTS) -> list[Result]:
    """Train the runs, each from the start or from where it stopped, and test them: all where they can go side by side,
    else those at the positions `wanted`. The last result is an interrupted one where a signal asks to stop.

    None is a run that has ended before, whose place among the others stays (training/side_by_side.py). Objects of the
    user's may keep state: runs with some are trained one after another.

    cost.json has the CPU time of a run that was not stopped: of its training and test; of runs side by side its share
    of the training.
    """
    configs = [one[0] for one in slots if one]
    together = len(slots) > 1 and own is NO_PARTS
    if together and configs and configs[0].device.side_by_side and are_one_program(configs):
        experiment = assemble(configs[0])
        if can_share(experiment, experiment.initial_params()):
            return _train_together(slots)
    if own.model is not None:
        from metarun.models.module import given_weights  # with a network of the user's alone

        if given_weights(own.model) is not None:
            _note_same_start()
    results: list[Result] = []
    for one in (slots[i] for i in wanted):
        if one and not (results and results[-1].status == StopReason.INTERRUPTED.value):
            results.append(_train_alone(*one, select_parts(own, one[0])))
    return results


@functools.cache
def _announce(count: int) -> None:
    """Print once in a process that trainings go side by side."""
    print_notice(f"trains {count} runs side by side (device.side_by_side=off: one after another)")


@functools.cache
def _note_same_start() -> None:
    """Print once in a process that seeds do not draw the initial weights."""
    print_notice("all runs start from the weights of the given module; model=module draws new ones for each seed")


def _train_alone(config: Config, record: RunFolder, own: OwnParts) -> Result:
    begun = time.process_time()
    result = train_job(config, record, quiet=True, own=own)
    _write_cost(config, record, result, time.process_time() - begun)
    return result


def _write_cost(config: Config, record: RunFolder, result: Result, seconds: float) -> None:
    if not config.resume and result.status != StopReason.INTERRUPTED.value:
        record.write_json("cost.json", {"cpu_seconds": seconds})


class _Opened(NamedTuple):
    """A run between its first files and its summary, which `ending` writes."""

    run: ActiveRun
    record: RunFolder
    experiment: Experiment
    member: Member
    ending: contextlib.ExitStack


def _train_together(slots: Sequence[Asked | None]) -> list[Result]:
    """Each run ends as it would alone: one that diverged with that status, and all where a signal asks to stop."""
    _announce(len(slots))
    with contextlib.ExitStack() as all_endings:
        opened = [_open(*one, all_endings, len(slots)) if one else None for one in slots]
        runs = [one for one in opened if one]
        begun = time.process_time()
        with runs[0].run.observer.signals():  # type: ignore[union-attr]
            # Those that a kill left behind go on first, and by themselves.
            for step in sorted({one.member.state.step for one in runs}):
                if not runs[0].run.observer.stop_requested():
                    behind = [one.member if one and one.member.state.step == step else None for one in opened]
                    train_side_by_side(behind)
        share = (time.process_time() - begun) / len(runs)
        return [_finish(one, share) for one in runs]


def _open(config: Config, record: RunFolder, all_endings: contextlib.ExitStack, count: int) -> _Opened:
    experiment, trainer, state = start(config, record)
    ending = all_endings.enter_context(contextlib.ExitStack())
    run = ending.enter_context(open_run(experiment, record, state, quiet=True, trains=True))
    run.summary["side_by_side"] = count
    return _Opened(run, record, experiment, Member(trainer, state, run.observer), ending)


def _finish(one: _Opened, share: float) -> Result:
    """Test a run, or end it with the error that it diverged with; `share`: of the CPU time of the training."""
    run, state, outcome, begun = one.run, one.member.state, one.member.outcome, time.process_time()
    with one.ending.pop_all():
        if isinstance(outcome, NonFinite):
            raise outcome
        run.status = outcome or StopReason.INTERRUPTED.value
        if run.status == "completed":
            test_best(run, one.record, state)
    result = Result(run.status, run.summary, one.record.path, state.tested, one.experiment)
    _write_cost(one.experiment.config, one.record, result, share + time.process_time() - begun)
    return result
