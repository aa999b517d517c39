"""logger=mlflow: what is sent, and that a store which does not answer costs no run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from metarun.errors import SettingError, UserError
from metarun.storage.loggers import Record
from metarun.storage.loggers import mlflow as sink_module
from metarun.storage.loggers.mlflow import MLflow, clean_key, flatten_settings, to_float

TINY = ("train.steps=4", "train.tasks=2", "train.log_every=1", "train.eval_every=2", "train.checkpoint_every=2",
        "val.tasks=2", "test.tasks=2", "test.steps=1", "device.compile=off", "report=false")  # fmt: skip
RUN = {"name": "a", "step": 0, "config": {"choices": {"algo": "maml", "data": "sinusoid"}, "train": {"steps": 4}}}


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Pair(NamedTuple):
    key: str
    value: str


class Client:
    """Stands for MLflow's client: keeps what it is sent, refuses what MLflow refuses."""

    made: list[Client] = []  # noqa: RUF012

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.broken = tracking_uri, False
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.metrics: list[Metric] = []
        self.status, self.begun, self.batches = "", 0, 0
        Client.made.append(self)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"id of {name}"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.begun += 1
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def update_run(self, run_id: str, status: str) -> None:
        if run_id != "r1":
            raise KeyError(run_id)

    def get_run(self, run_id: str) -> Any:
        return types.SimpleNamespace(data=types.SimpleNamespace(params=self.params))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        if self.broken:
            raise ConnectionError("nobody\nanswers")
        assert len(metrics) <= 1000
        assert len(params) <= 100
        assert all(len(p.key) <= 250 and len(p.value) <= 6000 for p in params)
        self.batches += 1
        self.metrics += metrics
        self.params |= {p.key: p.value for p in params}
        self.tags |= {t.key: t.value for t in tags}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An MLflow whose client is the one above; a folder to run in."""
    entities = types.ModuleType("mlflow.entities")
    entities.Metric, entities.Param, entities.RunTag = Metric, Pair, Pair  # type: ignore[attr-defined]
    package = types.ModuleType("mlflow")
    package.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(Client, "made", [])
    monkeypatch.setattr(sink_module, "OFTEN", 0.0)
    monkeypatch.setattr(sink_module, "SELDOM", 0.0)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(folder: Path, **changes: Any) -> tuple[MLflow, Client]:
    sink = MLflow(folder, "project")
    sink.start(RUN | changes)
    return sink, Client.made[-1]


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SettingError, match=r"^logger=mlflow: is not installed; pip install 'metarun\[mlflow\]'$"):
        MLflow(tmp_path, "project")


def test_settings_are_sent_within_mlflows_limits(pretended: Path) -> None:
    config = {"choices": {"algo": "maml"}, "algo": {f"k{at}": at for at in range(150)}, "data": {"x": "y" * 9000}}
    _, client = started(pretended, config=config)
    assert len(client.params) == 152
    assert client.params["algo.k149"] == "149"
    assert client.params["data.x"] == "y" * 6000
    assert clean_key("reg.a@b" + "x" * 300) == "reg.a_b" + "x" * 243
    assert flatten_settings({"a": {"b": [1, 2]}, "c": None}) == {"a.b": "[1, 2]", "c": "None"}


def test_numbers_are_sent_with_their_steps_and_the_summary_at_the_end(pretended: Path) -> None:
    sink, client = started(pretended)
    sink.log(Record("train", 3, {"loss": 0.5, "grad_norm/body": math.inf}, {"seconds": 2.0}))
    sink.log(Record("val", 4, {"mean": 0.25, "improved": True}, {}))
    sink.finish({"status": "completed", "mean": 0.125, "diverged": False, "steps_done": 4, "algo": "maml", "x": None})
    sent = {(m.key, m.step): m.value for m in client.metrics}
    assert math.isnan(sent.pop(("train/grad_norm/body", 3)))
    assert sent == {
        ("train/loss", 3): 0.5, ("train/seconds", 3): 2.0, ("val/mean", 4): 0.25, ("val/improved", 4): 1.0,
        ("summary/mean", 4): 0.125, ("summary/steps_done", 4): 4.0,
    }  # fmt: skip
    assert client.status == "FINISHED"
    assert client.tags["status"] == "completed"
    assert math.isnan(to_float(-math.inf))


@pytest.mark.parametrize(
    ("status", "end"),
    [("time is up", "FINISHED"), ("interrupted", "KILLED"), ("diverged", "FAILED"), ("failed", "FAILED")],
)
def test_how_a_run_ended_is_told(status: str, end: str, pretended: Path) -> None:
    sink, client = started(pretended)
    sink.finish({"status": status, "reason": "since"})
    assert (client.status, client.tags["status"], client.tags["reason"]) == (end, status, "since")


def test_a_sweeps_name_is_a_tag(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "12-00-00")
    assert started(pretended)[1].tags["group"] == "12-00-00"
    monkeypatch.delenv("WANDB_RUN_GROUP")
    assert "group" not in started(pretended)[1].tags


def test_the_store_is_a_file_in_the_current_folder_or_what_the_environment_says(
    pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(pretended)[1].uri == "sqlite:///mlflow.db"
    (pretended / ".mlflow.db.lock").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert started(pretended)[1].uri == "http://tracker"
    assert not (pretended / ".mlflow.db.lock").exists()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_resumed_run_goes_on_under_its_id_and_a_new_one_does_not(pretended: Path) -> None:
    assert started(pretended)[1].begun == 1
    assert json.loads((pretended / "mlflow.json").read_text()) == {"run_id": "r1"}
    assert started(pretended, step=2)[1].begun == 0
    assert started(pretended, step=0)[1].begun == 1
    (pretended / "mlflow.json").write_text('{"run_id": "of another store"}')
    assert started(pretended, step=2)[1].begun == 1


def test_a_store_that_stops_answering_costs_no_numbers_and_no_run(
    pretended: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink, client = started(pretended)
    client.broken = True
    sink.log(Record("train", 1, {"loss": 1.0}, {}))
    client.broken = False
    sink.log(Record("train", 2, {"loss": 2.0}, {}))
    assert [m.value for m in client.metrics] == [1.0, 2.0]
    client.broken = True
    sink.finish({"status": "completed", "mean": 3.0})
    assert "nobody answers" in caplog.text
    assert "1 numbers could not be sent" in caplog.text


def test_what_waited_long_is_sent_in_several_batches(pretended: Path) -> None:
    sink, client = started(pretended)
    client.broken = True
    for step in range(25):
        sink.log(Record("train", step, {f"x{at}": 1.0 for at in range(100)}, {}))
    client.broken = False
    sink.finish({"status": "completed"})
    assert len(client.metrics) == len({(m.key, m.step) for m in client.metrics}) == 2500


def test_a_store_that_cannot_be_used_is_a_users_mistake(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionError("no such\nhost")

    monkeypatch.setattr(Client, "get_experiment_by_name", refuse)
    with pytest.raises(UserError, match=r"^logger=mlflow: mlflow.db cannot be used \(no such host\)$"):
        started(pretended)


@pytest.mark.long
def test_a_run_and_its_resumption_are_one_run_of_a_real_store(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow's store needs sqlalchemy")
    env = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "PYTHONPATH")}
    env |= {"WANDB_RUN_GROUP": "a sweep", "PYTHONPATH": str(Path(__file__).parents[2])}

    def metarun(*words: str) -> None:
        typed = [sys.executable, "-m", "metarun", *words]
        done = subprocess.run(typed, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

    metarun(*TINY, "logger=mlflow", "hydra.run.dir=run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    metarun("resume=run")
    assert not (tmp_path / "mlruns").exists()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("metarun").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "4"
    assert run.data.tags["group"] == "a sweep"
    assert run.data.metrics["summary/mean"] == pytest.approx(summary["mean"])
    assert {m.step for m in client.get_metric_history(run.info.run_id, "train/loss")} == {1, 2, 3, 4}
