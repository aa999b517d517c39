"""MLflow (`logger=mlflow`, `metarun[mlflow]`): mlflow.db in the current folder, or the store of MLFLOW_TRACKING_URI.

The store is set here and not left to MLflow, which takes an existing folder `mlruns` for an old store and refuses it.
Records are sent in batches: a store that does not answer delays a run, but does not end it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarun.errors import SettingError, UserError, one_line
from metarun.storage.json_values import flatten_keys
from metarun.storage.locks import file_lock
from metarun.storage.loggers import Record, Sink

log = logging.getLogger(__name__)

STORE = Path("mlflow.db")
RUN_FILE = "mlflow.json"
LONGEST_KEY, LONGEST_VALUE = 250, 6000  # of a parameter; MLflow refuses longer ones
LONGEST_TAG = 5000
MOST_METRICS, MOST_PARAMS = 1000, 100  # in one batch
OFTEN, SELDOM = 5.0, 60.0  # seconds between batches, and after one that failed
ENDS = {"completed": "FINISHED", "time is up": "FINISHED", "interrupted": "KILLED"}


class MLflow(Sink):
    def __init__(self, folder: Path, project: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # not 7, which take minutes
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param, RunTag
        except ImportError as error:
            raise not_installed() from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each table that it makes
        self.client_of, self.metric, self.param, self.tag = MlflowClient, Metric, Param, RunTag
        self.folder, self.project = folder, project
        self.waiting: list[Any] = []  # metrics that are not sent yet
        self.next = 0.0
        self.client: Any = None
        self.run_id = ""

    def start(self, run: dict[str, Any]) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        try:
            # Two jobs of a sweep must not both make the tables.
            with contextlib.nullcontext() if uri else file_lock(STORE):
                self.client = self.client_of(tracking_uri=uri or f"sqlite:///{STORE}")
                self.run_id = self._resume(run["step"]) or self._create(run)
                self._log_settings(run["config"])
        except ImportError as error:  # of what a local store needs besides
            raise not_installed() from error
        except Exception as error:
            where = "the store of MLFLOW_TRACKING_URI" if uri else STORE
            raise UserError(f"logger=mlflow: {where} cannot be used ({one_line(error)[:300]})") from error

    def log(self, record: Record) -> None:
        values = {**record.values, **record.timing}
        self._enqueue({f"{record.kind}/{name}": value for name, value in values.items()}, record.step)
        if time.monotonic() >= self.next or len(self.waiting) >= MOST_METRICS:
            self._send()

    def finish(self, summary: dict[str, Any]) -> None:
        numbers = {k: v for k, v in summary.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        self._enqueue({f"summary/{name}": value for name, value in numbers.items()}, summary.get("steps_done") or 0)
        self._send()
        status = str(summary["status"])
        tags = {"status": status, "reason": str(summary.get("reason") or "")}
        with log_trouble():
            self.client.log_batch(self.run_id, tags=self._tags(tags))
            self.client.set_terminated(self.run_id, ENDS.get(status, "FAILED"))
        if self.waiting:
            log.warning("logger=mlflow: %d numbers could not be sent; metrics.jsonl has them", len(self.waiting))

    def _resume(self, step: int) -> str:
        """Return the id of the run that this one resumes, "" if the store has none."""
        if not step:
            return ""
        try:
            run_id = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))["run_id"]
            self.client.update_run(run_id, status="RUNNING")
        except Exception:  # begun with another logger, or in another store
            return ""
        return str(run_id)

    def _create(self, run: Mapping[str, Any]) -> str:
        found = self.client.get_experiment_by_name(self.project)
        experiment_id = found.experiment_id if found else self.client.create_experiment(self.project)
        created = self.client.create_run(experiment_id, run_name=run["name"])
        (self.folder / RUN_FILE).write_text(json.dumps({"run_id": created.info.run_id}) + "\n", encoding="utf-8")
        return str(created.info.run_id)

    def _log_settings(self, config: Mapping[str, Any]) -> None:
        """Log the settings that the run does not have yet (they cannot be changed), and tags to find it by."""
        known = self.client.get_run(self.run_id).data.params
        settings = {key: value for key, value in flatten_settings(config).items() if key not in known}
        params = [self.param(key, value) for key, value in settings.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.run_id, params=params[start : start + MOST_PARAMS])
        choices = {group: config["choices"][group] for group in ("algo", "data") if group in config["choices"]}
        group = os.environ.get("WANDB_RUN_GROUP")
        tags = {**choices, "status": "running", "folder": str(self.folder), **({"group": group} if group else {})}
        self.client.log_batch(self.run_id, tags=self._tags(tags))

    def _tags(self, tags: Mapping[str, str]) -> list[Any]:
        return [self.tag(key, value[:LONGEST_TAG]) for key, value in tags.items()]

    def _enqueue(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.waiting += [self.metric(clean_key(k), to_float(v), now, step) for k, v in values.items() if v is not None]

    def _send(self) -> None:
        self.next = time.monotonic() + SELDOM
        with log_trouble():
            while self.waiting:
                self.client.log_batch(self.run_id, metrics=self.waiting[:MOST_METRICS])
                del self.waiting[:MOST_METRICS]
            self.next = time.monotonic() + OFTEN


@contextlib.contextmanager
def log_trouble() -> Iterator[None]:
    """Log an error of the store instead of raising it; the run goes on, for metrics.jsonl has its metrics."""
    try:
        yield
    except Exception as error:
        log.warning("logger=mlflow: %s", one_line(error)[:300])


def not_installed() -> SettingError:
    return SettingError("logger", "mlflow", "is not installed; pip install 'metarun[mlflow]'")


def flatten_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Flatten settings to dotted names, cut to the length that MLflow takes."""
    return {clean_key(key): str(value)[:LONGEST_VALUE] for key, value in flatten_keys(config).items()}


def clean_key(key: str) -> str:
    """Replace what MLflow refuses in a key."""
    return re.sub(r"[^\w\-./ :]", "_", key)[:LONGEST_KEY]


def to_float(value: float) -> float:
    """Turn infinity into NaN: a store would keep it as the largest float."""
    return float(value) if math.isfinite(value) else math.nan
