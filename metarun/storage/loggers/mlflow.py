"""MLflow (`logger=mlflow`, `metarun[mlflow]`): mlflow.db in the current folder, or what MLFLOW_TRACKING_URI says.

The store is named here and not left to MLflow, which takes a folder `mlruns` for an old store where there is one and
then refuses it. Records are sent in batches: a store that does not answer delays a run, but does not end it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from metarun.errors import SettingError, UserError, one_line
from metarun.storage.json_values import flatten_keys
from metarun.storage.locks import file_lock
from metarun.storage.loggers import Record

log = logging.getLogger(__name__)

STORE = Path("mlflow.db")
RUN_FILE = "mlflow.json"
LONGEST_KEY, LONGEST_VALUE = 250, 6000  # of a parameter; MLflow refuses longer ones
LONGEST_TAG = 5000
MOST_METRICS, MOST_PARAMS = 1000, 100  # in one batch
OFTEN, SELDOM = 5.0, 60.0  # seconds between batches, and after one that failed
ENDS = {"completed": "FINISHED", "time is up": "FINISHED", "interrupted": "KILLED"}

T = TypeVar("T")


class MLflow:
    def __init__(self, folder: Path, project: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import: nothing is sent unasked
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # not 7, which take minutes
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param, RunTag
        except ImportError as error:
            raise missing() from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
        self.client_of, self.metric, self.param, self.tag = MlflowClient, Metric, Param, RunTag
        self.folder, self.project = folder, project
        self.waiting: list[Any] = []  # metrics that are not sent yet
        self.next = 0.0
        self.client: Any = None
        self.run_id = ""

    def start(self, run: dict[str, Any]) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        try:
            with (
                contextlib.nullcontext() if uri else file_lock(STORE)
            ):  # two jobs of a sweep must not both make the tables
                self.client = self.client_of(tracking_uri=uri or f"sqlite:///{STORE}")
                self.run_id = self._continued(run["step"]) or self._begun(run)
                self._describe(run["config"])
        except ImportError as error:  # of what a local store needs besides
            raise missing() from error
        except Exception as error:
            where = "the store of MLFLOW_TRACKING_URI" if uri else STORE
            raise UserError(f"logger=mlflow: {where} cannot be used ({one_line(error)[:300]})") from error

    def progress(self, step: int) -> None:
        """Nothing to send."""

    def log(self, record: Record) -> None:
        values = {**record.values, **record.timing}
        self._take({f"{record.kind}/{name}": value for name, value in values.items()}, record.step)
        if time.monotonic() >= self.next or len(self.waiting) >= MOST_METRICS:
            self._send()

    def note(self, message: str) -> None:
        """Notes stay in metarun.log."""

    def finish(self, summary: dict[str, Any]) -> None:
        numbers = {k: v for k, v in summary.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        self._take({f"summary/{name}": value for name, value in numbers.items()}, summary.get("steps_done") or 0)
        self._send()
        status = str(summary["status"])
        tags = {"status": status, "reason": str(summary.get("reason") or "")}
        with trouble_told():
            self.client.log_batch(self.run_id, tags=self._tags(tags))
            self.client.set_terminated(self.run_id, ENDS.get(status, "FAILED"))
        if self.waiting:
            log.warning("logger=mlflow: %d numbers could not be sent; metrics.jsonl has them", len(self.waiting))

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.project)
        return found.experiment_id if found else self.client.create_experiment(self.project)

    def _continued(self, step: int) -> str:
        """The id of the run that this one resumes, if the store has it."""
        if not step:
            return ""
        try:
            run_id = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))["run_id"]
            self.client.update_run(run_id, status="RUNNING")
        except Exception:  # begun with another logger, or in another store
            return ""
        return str(run_id)

    def _begun(self, run: Mapping[str, Any]) -> str:
        made = self.client.create_run(self._experiment(), run_name=run["name"])
        (self.folder / RUN_FILE).write_text(json.dumps({"run_id": made.info.run_id}) + "\n", encoding="utf-8")
        return str(made.info.run_id)

    def _describe(self, config: Mapping[str, Any]) -> None:
        """Settings that the run does not have yet (they cannot be changed), and tags to find it by."""
        known = self.client.get_run(self.run_id).data.params
        settings = {key: value for key, value in parameters(config).items() if key not in known}
        for batch in batches([self.param(k, v) for k, v in settings.items()], MOST_PARAMS):
            self.client.log_batch(self.run_id, params=batch)
        choices = {group: config["choices"][group] for group in ("algo", "data") if group in config["choices"]}
        group = os.environ.get("WANDB_RUN_GROUP")
        tags = {**choices, "status": "running", "folder": str(self.folder), **({"group": group} if group else {})}
        self.client.log_batch(self.run_id, tags=self._tags(tags))

    def _tags(self, tags: Mapping[str, str]) -> list[Any]:
        return [self.tag(key, value[:LONGEST_TAG]) for key, value in tags.items()]

    def _take(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.waiting += [self.metric(named(k), as_float(v), now, step) for k, v in values.items() if v is not None]

    def _send(self) -> None:
        self.next = time.monotonic() + SELDOM
        with trouble_told():
            while self.waiting:
                self.client.log_batch(self.run_id, metrics=self.waiting[:MOST_METRICS])
                del self.waiting[:MOST_METRICS]
            self.next = time.monotonic() + OFTEN


@contextlib.contextmanager
def trouble_told() -> Iterator[None]:
    """A store that does not answer is told of in the log; the run goes on, for its numbers are in metrics.jsonl."""
    try:
        yield
    except Exception as error:
        log.warning("logger=mlflow: %s", one_line(error)[:300])


def missing() -> SettingError:
    return SettingError("logger", "mlflow", "is not installed; pip install 'metarun[mlflow]'")


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """All settings by dotted name, as long as MLflow takes them."""
    return {named(key): str(value)[:LONGEST_VALUE] for key, value in flatten_keys(config).items()}


def named(key: str) -> str:
    """A key with nothing in it that MLflow refuses."""
    return re.sub(r"[^\w\-./ :]", "_", key)[:LONGEST_KEY]


def as_float(value: float) -> float:
    """Infinity as NaN: a store would keep it as the largest number there is."""
    return float(value) if math.isfinite(value) else math.nan


def batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for at in range(0, len(items), size):
        yield list(items[at : at + size])
