"""Where a training job starts: at step 0, at a checkpoint, or not at all because the run has ended."""

from __future__ import annotations

from typing import Any

import yaml

from metarun.compute.distributed import connect_processes
from metarun.config.schema import COMMAND_SETTINGS, Config, to_dict
from metarun.errors import SettingError, UserError
from metarun.jobs.result import Result
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.experiment import OwnParts, assemble


def has_ended(config: Config, record: RunFolder) -> bool:
    """Whether `resume` names a run that has ended, with no changed setting that would let it train or test again."""
    if not config.resume or not record.has_ended():
        return False
    asked: dict[str, Any] = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    return all(asked.get(k) == v for k, v in record.read_config().items() if k not in COMMAND_SETTINGS)


def load_ended(config: Config, record: RunFolder, quiet: bool, own: OwnParts) -> Result:
    """Return the result of a run that has ended; its folder stays unchanged."""
    experiment = connect_processes().in_turn(lambda: assemble(config, own))
    params, summary = experiment.initial_params(), record.read_summary()
    checkpoint.restore_params(checkpoint.best_of(record), params)
    if experiment.placement.processes.is_first and not quiet:
        more = "train.steps" if summary["status"] == "completed" else "train.max_minutes"
        done = f"{summary['status']}: {summary.get('steps_done')} steps"
        print(f"nothing to do in {record.path} ({done}); raise {more} to continue")
    return Result(summary["status"], summary, record.path, params, experiment)


def has_checkpoint(config: Config, record: RunFolder) -> bool:
    """Whether there is a checkpoint to start from. Raise `UserError` if a new start would overwrite a run."""
    if not config.resume:
        refuse_used(record)
        return False
    if record.has_checkpoint():
        return True
    done = max((r["step"] for r in record.read_records()), default=0)
    if done > config.train.checkpoint_every:
        raise UserError(f"{record.last}: is missing, though {done} steps were done; another hydra.run.dir begins anew")
    print_notice(f"{record.path}: was stopped before its first checkpoint, begins anew")
    return False


def refuse_used(record: RunFolder) -> None:
    """Raise `SettingError` if the folder holds a run already."""
    if record.has_checkpoint():
        needed = f"holds a run already; resume={record.path} continues it; choose another folder for a new run"
        raise SettingError("hydra.run.dir", record.path, needed)


def describe_last(record: RunFolder) -> str:
    """The last checkpoint, as the end of a sentence on where a run stopped."""
    return f"the last checkpoint is {record.last}" if record.has_checkpoint() else "before its first checkpoint"
