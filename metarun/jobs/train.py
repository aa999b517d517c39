"""job=train and job=evaluate: from settings to a run folder with its result."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from metarun.compute.distributed import connect_processes
from metarun.config.from_run import open_source_run
from metarun.config.schema import Config, to_dict
from metarun.diagnostics.alarms import Alarms, Baseline
from metarun.diagnostics.chance import chance_level
from metarun.errors import NonFinite, RankLost, TakenOver, UserError, WriteError
from metarun.jobs.result import Result
from metarun.jobs.resume import describe_last, has_checkpoint, has_ended, load_ended, refuse_used
from metarun.jobs.summary import (
    continue_history,
    describe_convergence,
    describe_end,
    describe_penalties,
    describe_run,
    describe_test,
    title,
)
from metarun.storage import launches
from metarun.storage.loggers import Sink
from metarun.storage.loggers.console import console_sink
from metarun.storage.loggers.jsonl import JsonLines
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder, link_latest
from metarun.storage.text import shorten
from metarun.training import checkpoint
from metarun.training.average import evaluate_average
from metarun.training.details import describe_queries
from metarun.training.evaluation import EPISODE_SEED, Evaluation, Evaluator
from metarun.training.experiment import NO_PARTS, Experiment, OwnParts, assemble
from metarun.training.function_samples import sample_functions
from metarun.training.loop import train
from metarun.training.memory import is_out_of_memory
from metarun.training.pretrained import start_from
from metarun.training.recorder import Recorder, SilentObserver
from metarun.training.run import State, Trainer
from metarun.training.task_samples import sample_tasks
from metarun.types import Algorithm, AlgorithmOptions, DatasetOptions, Params, optional

log = logging.getLogger(__name__)


def train_job(config: Config, record: RunFolder, quiet: bool = False, own: OwnParts = NO_PARTS) -> Result:
    """Train, from the start or from where a run stopped, then test the best checkpoint; `quiet` prints nothing."""
    if connect_processes().on_first(lambda: has_ended(config, record)):
        return load_ended(config, record, quiet, own)
    experiment, trainer, state = start(config, record, own)
    with open_run(experiment, record, state, quiet, trains=True) as run:
        with run.observer.signals():
            run.status = train(trainer, state, run.observer)
        if run.status != "interrupted":
            test_best(run, record, state)
    return Result(run.status, run.summary, record.path, state.tested, experiment, run.observer.requests.number)


def start(config: Config, record: RunFolder, own: OwnParts = NO_PARTS) -> tuple[Experiment, Trainer, State]:
    """The objects of a run, and its state before the first step or at its last checkpoint."""
    experiment = connect_processes().in_turn(lambda: assemble(config, own))
    trainer = experiment.trainer()
    goes_on = connect_processes().on_first(lambda: has_checkpoint(config, record))
    pretrained = None if goes_on else config.train.pretrained
    state = trainer.start(partial(start_from, pretrained) if pretrained else None)
    if goes_on:
        checkpoint.restore(record.last, state)
    return experiment, trainer, state


def test_best(run: ActiveRun, record: RunFolder, state: State) -> None:
    """Score the best checkpoint of a run that was trained."""
    if connect_processes().on_first(lambda: checkpoint.exists(record.best)):
        checkpoint.restore_best(record.best, state)
    with run.observer.signals(at_once=True) if connect_processes().size == 1 else contextlib.nullcontext():
        test(run, state)


def evaluate_job(config: Config, record: RunFolder, own: OwnParts = NO_PARTS) -> Result:
    """Test the best checkpoint of `config.run`, with the changes of the command line."""
    source = open_source_run(config)
    connect_processes().on_first(lambda: refuse_used(record))
    experiment = connect_processes().in_turn(lambda: assemble(config, own))
    state = experiment.trainer().start()
    checkpoint.restore_tested(checkpoint.best_of(source), state)
    with open_run(experiment, record, state) as run:
        known = source.read_summary()
        run.summary |= {key: known[key] for key in ("train_ways", "train_shots") if key in known}
        test(run, state)
        run.status = "completed"
    return Result(run.status, run.summary, record.path, state.tested, experiment)


@dataclass
class ActiveRun:
    """A run whose folder and sinks are open."""

    experiment: Experiment
    record: RunFolder | None  # None: another rank writes
    observer: Recorder | SilentObserver
    summary: dict[str, Any]
    status: str = "failed"
    reason: str = ""
    taken_over: bool = False  # the folder is that of another process now
    sinks: Sequence[Sink] = ()


def _announce_change(record: RunFolder, history: Sequence[dict[str, Any]], step: int) -> None:
    """Print what has changed where a run is resumed with other versions or on another processor."""
    if len(history) < 2 or history[-1].get("from_step") != step:
        return
    before, now = history[-2:]
    keys = [key for key in now if key != "from_step" and before.get(key, now[key]) != now[key]]
    changed = ", ".join(f"{key} {shorten(now[key])} (was {shorten(before[key])})" for key in keys)
    print_notice(
        f"{record.path}: continues with {changed or 'other versions'}: from step {step} its bits may be others"
    )


@contextlib.contextmanager
def open_run(
    experiment: Experiment, record: RunFolder, state: State, quiet: bool = False, trains: bool = False
) -> Iterator[ActiveRun]:
    """Write the folder's first files and start the sinks; at the end, however it comes, complete summary and sinks. On
    other ranks than the first, follow the run. One that trains has alarms.

    A `NonFinite` inside ends the block: the run's status is then "diverged", and the reason is in the summary.
    """
    if not experiment.placement.processes.is_first:
        with follow_run(experiment) as run:
            yield run
        return
    config = experiment.config
    if trains and (damaged := record.drop_after(state.step)):  # the steps after it will be repeated
        print_notice(f"{record.path}/metrics.jsonl: {damaged} damaged lines were dropped; their records are lost")
    alarms = build_alarms(experiment, record) if trains else None
    record.create(to_dict(config))
    link_latest(record.path)
    members = optional(experiment.dataset, DatasetOptions, "members")
    if members:
        record.write_json("split.json", members)
    sinks = build_sinks(config, record.path, quiet)
    summary = describe_run(experiment, str(record.path))
    if trains:
        launches.mark(record.path)
        summary["history"] = continue_history(record.read_summary() if config.resume else {}, state.step)
        _announce_change(record, summary["history"], state.step)
    record.write_json("summary.json", summary)
    recorder = Recorder(record, sinks, config.train, alarms, experiment.callbacks)
    run = ActiveRun(experiment, record, recorder, summary, sinks=sinks)
    run_facts = {"name": record.path.name, "folder": str(record.path), "title": title(summary), "step": state.step}
    run_facts |= {"steps": config.train.steps, "max_minutes": config.train.max_minutes}
    run_facts |= {"metric": summary["metric"], "config": to_dict(config)}
    for sink in sinks:
        sink.start(run_facts)
    if alarms and experiment.dataset.kind != "control":
        episodes = experiment.dataset.episodes("train", config.seed, 0, range(2), experiment.train_spec)
        lines = alarms.check_inputs(episodes.support.x)
        for line in lines if state.step == 0 else ():
            recorder.notify(line)
    try:
        yield run
    except NonFinite as error:
        kept = f"; the last good checkpoint is {record.last}" if record.last.exists() else ""
        run.status, run.reason = "diverged", f"{error}{kept}"
        recorder.on_divergence(state.step, str(error))
    except (RankLost, WriteError) as error:
        run.status, run.taken_over = "failed", isinstance(error, TakenOver)
        run.reason = f"{error}; the run stopped at step {state.step}, {describe_last(record)}"
        raise type(error)(run.reason) from error
    except KeyboardInterrupt:
        run.status = "interrupted"
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        run.reason = f"{suggest_less_memory(experiment)}; the run stopped at step {state.step}, {describe_last(record)}"
        raise UserError(run.reason) from error
    finally:
        close_run(run, record, state, alarms, quiet)


def close_run(run: ActiveRun, record: RunFolder, state: State, alarms: Alarms | None, quiet: bool) -> None:
    """Complete summary and sinks, the sinks also if the summary cannot be written."""
    config, summary = run.experiment.config, run.summary
    summary |= describe_end(state, config.train.tasks, run.status, run.reason, alarms)
    with contextlib.ExitStack() as ending:  # in reverse, each of them whatever the others raise
        ending.callback(run.observer.requests.release)
        ending.callback(run.observer.on_end, summary)
        for sink in reversed(run.sinks):
            ending.callback(sink.finish, summary)
        if run.taken_over:
            return
        try:
            write_summary(run, record, state)
            if config.report and not quiet and run.status != "interrupted":  # an interrupted run ends at once
                summary["report"] = leave_report(record)
        except WriteError:
            if not run.reason:  # else the user has read already what cannot be written
                raise


def write_summary(run: ActiveRun, record: RunFolder, state: State) -> None:
    """Complete the summary by what the records show, and write it."""
    if run.experiment.config.job == "train":
        run.summary["convergence"] = describe_convergence(run.experiment, record)
        run.summary["regularization"] = describe_penalties(run.experiment.regularization, record.read_records())
        if state.carry:  # of a StatefulLearner: its metrics at the end, such as its environment steps
            learner: Any = run.experiment.algorithm
            run.summary["collected"] = learner.metrics(state.carry)
    record.write_json("summary.json", run.summary)


@contextlib.contextmanager
def follow_run(experiment: Experiment) -> Iterator[ActiveRun]:
    """The same run on a rank that helps with it: it writes and prints nothing."""
    run = ActiveRun(experiment, None, SilentObserver(), {})
    try:
        yield run
    except NonFinite as error:
        run.status, run.summary["reason"] = "diverged", str(error)
    finally:
        run.observer.requests.release()


def test(run: ActiveRun, state: State) -> None:
    """Score the meta-parameters on the fixed test episodes."""
    experiment = run.experiment
    tester = experiment.tester()
    label, total = f"testing on {tester.tasks} tasks", tester.tasks
    run.observer.on_work(label, 0, total)
    tester = dataclasses.replace(tester, on_tasks=lambda done: run.observer.on_work(label, done, total))
    params = experiment.fit_head(state.tested)
    evaluation = evaluate_average(
        lambda params: tester(experiment.final, experiment.fit_head(params)), state.params, state.average
    )
    if run.record is None:
        return
    run.summary |= describe_test(evaluation, tester.oracle(), params, experiment.regularization)
    run.summary["interval"] = experiment.interval
    run.summary["test_precision"] = experiment.test_precision
    run.summary["published"] = dataclasses.asdict(experiment.config.published)
    per_task: dict[str, Any] = {"episodes_sha256": evaluation.episodes_sha256, "steps": evaluation.steps}
    per_task |= {"scores": evaluation.scores.tolist()}
    per_task |= {name: values.tolist() for name, values in evaluation.beside.items()}
    if evaluation.sets:
        per_task["sets"] = list(evaluation.sets)
    if evaluation.unaveraged is not None:
        per_task["unaveraged"] = evaluation.unaveraged.tolist()
    per_task["result"] = {
        key: run.summary[key] for key in ("headline", "mean", "ci95", "errors", "interval", "test_precision")
    }
    run.record.write_json("test.json", per_task)
    if experiment.config.test.details:
        run.record.write_table("details.csv", describe_queries(tester, experiment.final, params))
    leave_samples(run.record, tester, experiment.final, params, evaluation)
    run.observer.on_test(evaluation, step=state.best_step)


def leave_samples(
    record: RunFolder, tester: Evaluator, learner: Algorithm, params: Params, evaluation: Evaluation
) -> None:
    """Write a few test tasks for the report's pictures; if that fails, the result stands and the log has the reason."""
    try:
        functions = sample_functions(tester, learner, params)
        tasks = sample_tasks(tester, learner, params, evaluation)
    except Exception:
        log.exception("no test tasks could be described for the report's pictures")
        return
    for name, found in (("functions.json", functions), ("tasks.json", tasks)):
        if found:
            record.write_json(name, found)


def leave_report(record: RunFolder) -> str | None:
    """Write report.html into the run folder; a report that fails does not cost the run: the log has the reason."""
    from metarun.report.write import write_report  # here, since training needs nothing of it

    try:
        return str(write_report([record.path], interactive=True))
    except Exception:
        log.exception("the report could not be written; metarun-report %s tries again", record.path)
        return None


def build_alarms(experiment: Experiment, record: RunFolder) -> Alarms:
    """The run's alarms in the state that the records of a resumed run leave them: these alarms were printed already."""
    config, loss = experiment.config, experiment.algorithm.loss
    spec, val = experiment.train_spec, experiment.test_spec
    if optional(experiment.algorithm, AlgorithmOptions, "numbered_classes"):  # its loss is of all classes
        spec = spec._replace(ways=experiment.dataset.numbered()[1])  # type: ignore[attr-defined]
    chance = chance_level(experiment.dataset, loss, spec, val, config.val.tasks, EPISODE_SEED)
    as_hard = spec.shots <= val.shots and spec.ways >= val.ways and math.isfinite(chance.loss)
    mixed = optional(experiment.dataset, DatasetOptions, "task_sets") is not None
    alarms = Alarms(
        config.diagnostics,
        Baseline(chance, loss.metric, loss.higher_is_better, as_hard, loss.best, loss.signed, mixed),
    )
    for kept in record.read_records() if config.resume else ():
        alarms.observe(kept["kind"], kept["step"], kept)
    return alarms


def build_sinks(config: Config, folder: Path, quiet: bool) -> list[Sink]:
    """metrics.jsonl, the terminal, and the logger of `logger=`, whose failure costs neither of them."""
    own: list[Sink] = [JsonLines(folder), *([] if quiet else [console_sink()])]

    def notify(message: str) -> None:
        log.warning(message)
        for sink in own:
            sink.note(message)

    chosen = build_logger(config, folder, notify)
    if chosen is None:
        return own
    from metarun.storage.loggers.isolated import IsolatedSink

    return [*own, IsolatedSink(config.logger.name, chosen, notify)]


def build_logger(config: Config, folder: Path, notify: Callable[[str], None]) -> Sink | None:
    """The sink of `logger=`, whose library is imported only here; `notify` receives where a run is stored."""
    if config.logger.name == "wandb":
        from metarun.storage.loggers.wandb import WandB

        return WandB(folder, config.logger.project, notify)
    if config.logger.name == "tensorboard":
        from metarun.storage.loggers.tensorboard import TensorBoard

        return TensorBoard(folder)
    if config.logger.name == "mlflow":
        from metarun.storage.loggers.mlflow import MLflow

        return MLflow(folder, config.logger.project)
    return None


def suggest_less_memory(experiment: Experiment) -> str:
    """Name the setting to lower: tasks at once first, since that changes no result but by rounding."""
    tasks = experiment.config.train.tasks
    chunk = experiment.placement.chunk(experiment.train_spec, experiment.dataset.input_shape()) or tasks
    at_once = min(chunk, tasks)
    if at_once > 1:
        return (
            f"out of memory with {at_once} tasks at once: device.chunk_size={at_once // 2} takes half of it, "
            "device.memory_mb=NUMBER as many tasks as fit"
        )
    could_checkpoint = optional(experiment.algorithm, AlgorithmOptions, "inner_checkpoint") is False
    fewer = "algo.inner_checkpoint=1 or " if could_checkpoint else ""
    return (
        f"out of memory with one task at once: {fewer}a lower data.queries, algo.inner_steps or model size needs less"
    )
