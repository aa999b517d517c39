"""The observers of a training run: one that logs, saves checkpoints and raises alarms, and one that only listens."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from metarun.config.schema import TrainConfig
from metarun.diagnostics.alarms import Alarms
from metarun.diagnostics.step import Values
from metarun.errors import one_line
from metarun.storage.loggers import Record, Sink
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.evaluation import Evaluation, mean_and_interval
from metarun.training.run import CallbackOptions, State
from metarun.training.signals import StopRequests
from metarun.types import optional

log = logging.getLogger(__name__)


class Recorder:
    """The observer of a run with a folder."""

    def __init__(
        self,
        folder: RunFolder,
        sinks: Sequence[Sink],
        settings: TrainConfig,
        alarms: Alarms | None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.folder, self.sinks, self.callbacks = folder, sinks, list(callbacks)
        self.settings, self.alarms = settings, alarms
        self.requests = StopRequests()
        self.marked: tuple[int, float] | None = None  # step and time that the training speed is measured from

    def on_step(self, state: State) -> None:
        if self.marked is None:
            self.marked = state.step, time.monotonic()
        for sink in self.sinks:
            sink.progress(state.step, state.seconds)
        self._call_back("on_step", state)

    def on_log(self, state: State, values: Values) -> None:
        self._log(Record("train", state.step, values, self._speed(state) | {"seconds": state.seconds}))

    def on_probe(self, state: State, values: Values) -> None:
        self._log(Record("probe", state.step, values, {"seconds": state.seconds}))
        self.marked = None

    def on_validation(self, state: State, evaluation: Evaluation, improved: bool) -> None:
        values = _average(evaluation) | {"improved": improved, **evaluation.optimum}
        if evaluation.unaveraged is not None:
            values["unaveraged"] = evaluation.average(evaluation.unaveraged)[0]
        self._log(Record("val", state.step, values, {"seconds": state.seconds}))
        # Training never resumes from these checkpoints, so they lack what only resuming needs.
        if improved:
            checkpoint.save(self.folder.best, dataclasses.replace(state, rewinding=None, carry={}))
        if self.settings.keep_weights:
            checkpoint.save_weights(self.folder.weights_of(state.step), state)
        self._call_back("on_validation", state, evaluation)
        self.marked = None  # validation is no part of the training speed

    def on_test(self, evaluation: Evaluation, step: int) -> None:
        self._log(Record("test", step, _average(evaluation), {}))
        self._sync()

    def save_checkpoint(self, state: State) -> None:
        self._sync()  # first: a resumed run repeats no record before its checkpoint
        checkpoint.save(self.folder.last, state)
        self.marked = None

    def on_end(self, summary: dict[str, Any]) -> None:
        self._call_back("on_end", summary)

    def _call_back(self, name: str, *arguments: Any) -> None:
        for callback in [*self.callbacks]:
            method = optional(callback, CallbackOptions, name)
            try:
                if method:
                    method(*arguments)
            except Exception as error:
                log.exception("callback %s", type(callback).__name__)
                self.callbacks.remove(callback)
                failed = f"{type(callback).__name__}.{name} failed ({type(error).__name__}: {one_line(error)})"
                self.notify(f"callback {failed}; it is not called again, metarun.log has the traceback")

    def on_divergence(self, step: int, reason: str) -> None:
        if self.alarms:
            self._notify_all(self.alarms.raise_diverged(step, reason))
        self._sync()

    def notify(self, message: str) -> None:
        log.warning(message)
        for sink in self.sinks:
            sink.note(message)

    def on_work(self, label: str, done: int, total: int) -> None:
        for sink in self.sinks:
            sink.work(label, done, total)

    def stop_requested(self) -> bool:
        return self.requests.received

    def signals(self, at_once: bool = False) -> AbstractContextManager[None]:
        return self.requests.listen(at_once)

    def _log(self, record: Record) -> None:
        for sink in self.sinks:
            sink.log(record)
        if self.alarms:
            self._notify_all(self.alarms.observe(record.kind, record.step, record.values))

    def _sync(self) -> None:
        for sink in self.sinks:
            sink.sync()

    def _notify_all(self, messages: list[str]) -> None:
        for message in messages:
            self.notify(message)

    def _speed(self, state: State) -> dict[str, float]:
        """Tasks per second since the last record, and the time that the remaining steps will take at that rate, or what
        is left of `train.max_minutes` if that is less."""
        now, marked = time.monotonic(), self.marked
        self.marked = state.step, now
        if marked is None or state.step == marked[0]:
            return {}
        rate = (state.step - marked[0]) / (now - marked[1])
        left, limit = (self.settings.steps - state.step) / rate, self.settings.max_minutes
        left = left if limit is None else max(0.0, min(left, 60 * limit - state.seconds))
        return {"tasks_per_second": self.settings.tasks * rate, "seconds_left": left}


def _average(evaluation: Evaluation) -> dict[str, float]:
    """The metric with its interval; of several data sets, also the metric on each."""
    of_sets = evaluation.by_set(evaluation.scores[evaluation.headline])
    each = {f"mean/{name}": mean_and_interval(scores)[0] for name, scores in of_sets.items()}
    return {"mean": evaluation.mean, "ci95": evaluation.ci95} | each


class SilentObserver:
    """The observer of a rank other than the first: it writes and prints nothing, but listens to signals."""

    def __init__(self) -> None:
        self.requests = StopRequests()

    def on_step(self, state: State) -> None: ...

    def on_log(self, state: State, values: Values) -> None: ...

    def on_probe(self, state: State, values: Values) -> None: ...

    def on_validation(self, state: State, evaluation: Evaluation, improved: bool) -> None: ...

    def on_test(self, evaluation: Evaluation, step: int) -> None: ...

    def on_end(self, summary: dict[str, Any]) -> None: ...

    def save_checkpoint(self, state: State) -> None: ...

    def notify(self, message: str) -> None: ...

    def on_work(self, label: str, done: int, total: int) -> None: ...

    def stop_requested(self) -> bool:
        return self.requests.received

    def signals(self, at_once: bool = False) -> AbstractContextManager[None]:
        return self.requests.listen(at_once)
