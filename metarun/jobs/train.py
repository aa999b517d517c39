"""job=train and job=evaluate: from settings to a run folder with its result."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.compute.distributed import team
from metarun.config.from_run import source_run
from metarun.config.schema import Config
from metarun.diagnostics.alarm_history import Baseline
from metarun.diagnostics.alarms import Alarms
from metarun.diagnostics.chance import chance_level
from metarun.errors import NonFinite, RankLost, UserError, WriteError
from metarun.jobs.result import Result
from metarun.jobs.resume import forget_after, goes_on, has_ended, last_kept, refuse_used, result_of_ended
from metarun.jobs.shortage import advice, out_of_memory
from metarun.jobs.summary import (
    describe_carry,
    describe_convergence,
    describe_end,
    describe_penalties,
    describe_run,
    describe_test,
    title,
)
from metarun.report import write_report
from metarun.storage.loggers import Sink
from metarun.storage.loggers.apart import Apart
from metarun.storage.loggers.console import console_sink
from metarun.storage.loggers.jsonl import JsonLines
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.evaluation import EPISODE_SEED
from metarun.training.experiment import Experiment, assemble
from metarun.training.function_samples import sample_functions
from metarun.training.loop import train
from metarun.training.recorder import Follower, Session
from metarun.training.run import State

log = logging.getLogger(__name__)


def train_job(config: Config, record: RunFolder, quiet: bool = False) -> Result:
    """Train, from the start or from where a run stopped, then test the best checkpoint; `quiet` prints nothing."""
    if team().of_first(lambda: has_ended(config, record)):
        return result_of_ended(config, record, quiet)
    experiment = team().in_turn(lambda: assemble(config))
    first = experiment.placement.team.first
    state = experiment.trainer().start()
    if team().of_first(lambda: goes_on(config, record)):
        checkpoint.restore(record.last, state)
    if first:
        forget_after(record, state.step)
    opened = open_run(experiment, record, state, quiet, watched(experiment, record)) if first else follow(experiment)
    with opened as active:
        with active.session.signals():
            active.status = train(experiment.trainer(), state, active.session)
        if active.status != "interrupted":
            if team().of_first(lambda: checkpoint.exists(record.best)):
                state.best_step = checkpoint.restore_params(record.best, state.params)
            with active.session.signals(at_once=True) if team().size == 1 else contextlib.nullcontext():
                test(active, state)
    number = active.session.requests.number
    return Result(active.status, active.summary, record.path, state.params, experiment, number)


def evaluate_job(config: Config, record: RunFolder) -> Result:
    """Test the best checkpoint of `config.run`, with whatever was changed on the command line."""
    source = source_run(config)
    team().of_first(lambda: refuse_used(record))
    experiment = team().in_turn(lambda: assemble(config))
    state = experiment.trainer().start()
    checkpoint.restore_tested(checkpoint.best_of(source), state)
    opened = open_run(experiment, record, state) if experiment.placement.team.first else follow(experiment)
    with opened as active:
        active.summary["evaluated_run"] = str(source.path)
        test(active, state)
        active.status = "completed"
    return Result(active.status, active.summary, record.path, state.params, experiment)


@dataclass
class ActiveRun:
    """A run whose folder and sinks are open."""

    experiment: Experiment
    record: RunFolder | None  # None: another process owns it
    session: Session | Follower
    summary: dict[str, Any]
    status: str = "failed"
    reason: str = ""
    sinks: Sequence[Sink] = ()


@contextlib.contextmanager
def open_run(
    experiment: Experiment, record: RunFolder, state: State, quiet: bool = False, alarms: Alarms | None = None
) -> Iterator[ActiveRun]:
    """Write the folder's first files, start the sinks; at the end, however it comes, complete summary and sinks.

    A `NonFinite` inside ends the block: the run's status is then "diverged", and the reason is in the summary.
    """
    config = experiment.config
    begin(record, experiment)
    sinks = build_sinks(config, record.path, quiet)
    summary = describe_run(experiment, str(record.path))
    record.write_json("summary.json", summary)
    session = Session(record, sinks, config.train.steps, config.train.tasks, alarms)
    active = ActiveRun(experiment, record, session, summary, sinks=sinks)
    run_facts = {"name": record.path.name, "folder": str(record.path), "title": title(summary), "step": state.step}
    run_facts |= {"steps": config.train.steps, "metric": summary["metric"], "config": dataclasses.asdict(config)}
    for sink in sinks:
        sink.start(run_facts)
    try:
        yield active
    except NonFinite as error:
        kept = f"; the last good checkpoint is {record.last}" if record.last.exists() else ""
        active.status, active.reason = "diverged", f"{error}{kept}"
        session.diverged(state.step, str(error))
    except (RankLost, WriteError) as error:
        active.reason = f"{error}; the run stopped at step {state.step}, {last_kept(record)}"
        raise type(error)(active.reason) from error
    except KeyboardInterrupt:
        active.status = "interrupted"
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        active.reason = f"{advice(experiment)}; the run stopped at step {state.step}, {last_kept(record)}"
        raise UserError(active.reason) from error
    finally:
        close(active, record, state, alarms, quiet)


def close(active: ActiveRun, record: RunFolder, state: State, alarms: Alarms | None, quiet: bool) -> None:
    """Complete summary and sinks, also where the summary cannot be written."""
    config, summary = active.experiment.config, active.summary
    summary |= describe_end(state, config.train.tasks, active.status, active.reason, alarms)
    try:
        if config.job == "train":
            summary["convergence"] = describe_convergence(active.experiment, record)
            summary["regularization"] = describe_penalties(active.experiment.regularization, record.read_records())
            summary |= describe_carry(active.experiment.algorithm, state)
        record.write_json("summary.json", summary)
        if config.report and not quiet and active.status != "interrupted":  # whoever stops a run waits for its end
            summary["report"] = leave_report(record)
    except WriteError:
        if not active.reason:  # else it has been told what cannot be written
            raise
    finally:
        for sink in active.sinks:
            sink.finish(summary)


def begin(record: RunFolder, experiment: Experiment) -> None:
    """What is written before anything else."""
    record.create(dataclasses.asdict(experiment.config))
    members = getattr(experiment.dataset, "members", None)
    if members:
        record.write_json("split.json", members)


@contextlib.contextmanager
def follow(experiment: Experiment) -> Iterator[ActiveRun]:
    """The same run in a process that helps with it: nothing is written, nothing is said."""
    active = ActiveRun(experiment, None, Follower(), {})
    try:
        yield active
    except NonFinite as error:
        active.status, active.summary["reason"] = "diverged", str(error)


def leave_report(record: RunFolder) -> str | None:
    """report.html in the run folder. A run is not lost for a page that could not be made of it: the log has why."""
    try:
        return str(write_report([record.path]))
    except Exception:
        log.exception("the report could not be written; metarun-report %s tries again", record.path)
        return None


def watched(experiment: Experiment, record: RunFolder) -> Alarms:
    """The run's alarms, as the records that a resumed run keeps left them: what these raised has been told."""
    config, loss = experiment.config, experiment.algorithm.loss
    spec, val = experiment.train_spec, experiment.test_spec
    chance = chance_level(experiment.dataset, loss, spec, val, config.val.tasks, EPISODE_SEED)
    as_hard = spec.shots <= val.shots and spec.ways >= val.ways and math.isfinite(chance.loss)
    alarms = Alarms(
        config.diagnostics, Baseline(chance, loss.metric, loss.higher_is_better, as_hard, loss.best, loss.signed)
    )
    for kept in record.read_records() if config.resume else ():
        alarms.observe(kept["kind"], kept["step"], kept)
    return alarms


def test(active: ActiveRun, state: State) -> None:
    """Score the meta-parameters on the fixed test episodes."""
    tester = active.experiment.tester()
    active.session.noted(f"testing on {tester.tasks} tasks ...")
    evaluation = tester(active.experiment.tested, state.params)
    if active.record is None:
        return
    experiment = active.experiment
    active.summary |= describe_test(evaluation, tester.oracle(), state.params, experiment.regularization)
    active.summary["published"] = dataclasses.asdict(active.experiment.config.published)
    per_task = {"episodes_sha256": evaluation.episodes_sha256, "steps": evaluation.steps}
    per_task |= {"scores": evaluation.scores.tolist()}
    per_task |= {name: values.tolist() for name, values in evaluation.beside.items()}
    active.record.write_json("test.json", per_task)
    drawn = sample_functions(tester, experiment.tested, state.params)
    if drawn:
        active.record.write_json("functions.json", drawn)
    active.session.tested(evaluation, step=state.best_step)


def build_sinks(config: Config, folder: Path, quiet: bool) -> list[Sink]:
    """metrics.jsonl, the terminal, and the logger that was asked for, which may fail without them."""
    own: list[Sink] = [JsonLines(folder), *([] if quiet else [console_sink()])]
    made = logger_sink(config, folder)
    if made is None:
        return own

    def tell(message: str) -> None:
        log.warning(message)
        for sink in own:
            sink.note(message)

    return [*own, Apart(config.logger.name, made, tell)]


def logger_sink(config: Config, folder: Path) -> Sink | None:
    """Imported when asked for."""
    if config.logger.name == "wandb":
        from metarun.storage.loggers.wandb import WandB

        return WandB(folder, config.logger.project)
    if config.logger.name == "tensorboard":
        from metarun.storage.loggers.tensorboard import TensorBoard

        return TensorBoard(folder)
    if config.logger.name == "mlflow":
        from metarun.storage.loggers.mlflow import MLflow

        return MLflow(folder, config.logger.project)
    return None
