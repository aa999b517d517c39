"""Where a training job begins: anew, at a checkpoint, or not at all since the run has ended."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from metarun.compute.distributed import team
from metarun.config.schema import Config
from metarun.errors import SettingError, UserError
from metarun.jobs.result import Result
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.experiment import assemble

OF_THE_COMMAND = ("resume", "resume_allow", "run", "job", "choices")
"""Settings that say nothing about the run itself."""


def has_ended(config: Config, record: RunFolder) -> bool:
    """Whether `resume` names a run that came to its end, with nothing changed that would let it go on or be tested
    otherwise."""
    if not config.resume or not record.ended():
        return False
    asked: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(config)))
    return all(asked.get(k) == v for k, v in record.config().items() if k not in OF_THE_COMMAND)


def result_of_ended(config: Config, record: RunFolder, quiet: bool) -> Result:
    """What the run ended with; its folder stays as it is."""
    experiment = team().in_turn(lambda: assemble(config))
    params, summary = experiment.initial_params(), record.read_summary()
    checkpoint.restore_params(checkpoint.best_of(record), params)
    if experiment.placement.team.first and not quiet:
        more = "train.steps" if summary["status"] == "completed" else "train.max_minutes"
        done = f"{summary['status']}: {summary.get('steps_done')} steps"
        print(f"nothing to do in {record.path} ({done}); a higher {more} trains on")
    return Result(summary["status"], summary, record.path, params, experiment)


def goes_on(config: Config, record: RunFolder) -> bool:
    """Whether there is a checkpoint to begin at; `UserError` where beginning anew would cost somebody's run."""
    if not config.resume:
        refuse_used(record)
        return False
    if record.begun():
        return True
    done = max((r["step"] for r in record.read_records()), default=0)
    if done > config.train.checkpoint_every:
        raise UserError(f"{record.last}: is missing, though {done} steps were done; another hydra.run.dir begins anew")
    print_notice(f"{record.path}: was stopped before its first checkpoint, begins anew")
    return False


def refuse_used(record: RunFolder) -> None:
    """A folder that holds a run is not for another one."""
    if record.begun():
        needed = f"holds a run already; resume={record.path} goes on with it, another folder takes a new one"
        raise SettingError("hydra.run.dir", record.path, needed)


def forget_after(record: RunFolder, step: int) -> None:
    """Drop the records of what will be done again."""
    damaged = record.forget_after(step)
    if damaged:
        print_notice(f"{record.path}/metrics.jsonl: {damaged} damaged lines were dropped; what they said is lost")


def last_kept(record: RunFolder) -> str:
    """The end of a sentence on where a run stopped."""
    return f"the last checkpoint is {record.last}" if record.begun() else "before its first checkpoint"
