"""A logger that raises, hangs or is slow costs a run nothing but a note; without one nothing is sent anywhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import metarun
from metarun.errors import SettingError, UserError
from metarun.jobs import train
from metarun.storage.loggers import Record, isolated
from metarun.storage.loggers.isolated import IsolatedSink

ROOT = Path(__file__).resolve().parents[2]
TINY = ("train.steps=4", "train.tasks=2", "train.log_every=1", "train.eval_every=2", "train.checkpoint_every=2",
        "val.tasks=2", "test.tasks=2", "test.steps=1", "device.compile=off", "report=false")  # fmt: skip
RECORD = Record("train", 1, {"loss": 1.0}, {})


class Strange:
    """A logger that does `what` at one of its calls."""

    def __init__(self, at: str, what: Callable[[], None]) -> None:
        self.at, self.what = at, what
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            self.what()

    def start(self, run: dict[str, Any]) -> None:
        self._called("start")

    def progress(self, step: int) -> None:
        self._called("progress")

    def log(self, record: Record) -> None:
        self._called("log")

    def note(self, message: str) -> None:
        self._called("note")

    def finish(self, summary: dict[str, Any]) -> None:
        self._called("finish")


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "START", 0.2)
    monkeypatch.setattr(isolated, "FINISH", 0.2)


@pytest.mark.parametrize("at", ["start", "log", "note", "finish"])
@pytest.mark.parametrize(
    "error", [ConnectionError("no\nroute"), KeyError(), SystemExit(1), UserError("logger=x: no store")]
)
def test_a_logger_that_raises_is_switched_off_with_one_note(at: str, error: BaseException) -> None:
    warnings: list[str] = []
    strange = Strange(at, raising(error))
    sink = IsolatedSink("x", strange, warnings.append)
    sink.start({})
    for _ in range(3):
        sink.log(RECORD)
        sink.note("a note")
        time.sleep(0.02)
    sink.finish({})
    assert len(warnings) == 1
    assert warnings[0].startswith("logger=x: ")
    assert warnings[0].endswith("; it is switched off; the run goes on, metrics.jsonl has every number")
    assert "\n" not in warnings[0]
    assert strange.calls[-1] == at  # and nothing after it


def test_a_logger_that_is_not_installed_is_refused() -> None:
    with pytest.raises(SettingError, match="is not installed"):
        IsolatedSink("x", Strange("start", raising(SettingError("logger", "x", "is not installed"))), print).start({})


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_a_logger_that_hangs_is_left_behind(impatient: None, at: str) -> None:
    warnings: list[str] = []
    sink = IsolatedSink("x", Strange(at, lambda: time.sleep(60)), warnings.append)
    began = time.monotonic()
    sink.start({})
    for _ in range(1000):
        sink.log(RECORD)
    sink.finish({})
    assert time.monotonic() - began < 2
    assert len(warnings) == 1


def test_a_slow_logger_does_not_slow_the_run_and_gets_everything() -> None:
    warnings: list[str] = []
    strange = Strange("log", lambda: time.sleep(0.01))
    sink = IsolatedSink("x", strange, warnings.append)
    sink.start({})
    began = time.monotonic()
    for _ in range(50):
        sink.log(RECORD)
    assert time.monotonic() - began < 0.2
    sink.finish({})
    assert strange.calls == ["start", *50 * ["log"], "finish"]
    assert warnings == []


def test_what_does_not_fit_is_counted(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "WAITING", 5)
    warnings: list[str] = []
    sink = IsolatedSink("x", Strange("start", lambda: time.sleep(60)), warnings.append)
    sink.start({})
    for _ in range(20):
        sink.log(RECORD)
    sink.finish({})
    assert warnings[-1] == "logger=x: 16 calls were left out; metrics.jsonl has every number"


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_run_with_a_broken_logger_has_the_numbers_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "build_logger", lambda config, folder: None)
    metarun.run(metarun.compose([*TINY]), tmp_path / "without")
    monkeypatch.setattr(train, "build_logger", lambda config, folder: Strange("log", raising(OSError("away"))))
    result = metarun.run(metarun.compose([*TINY, f"logger={name}"]), tmp_path / "with")
    assert result.status == "completed"
    metrics = [(tmp_path / which / "metrics.jsonl").read_bytes() for which in ("without", "with")]
    assert metrics[0] == metrics[1]
    assert capsys.readouterr().out.count(f"logger={name}: OSError: away; it is switched off") == 1


BLOCKED = """
import os, socket
def refuse(*a, **k):
    where = a[1] if len(a) > 1 and isinstance(a[0], socket.socket) else a[:2]
    if isinstance(a[0], socket.socket) and a[0].family == getattr(socket, "AF_UNIX", None):
        return connect(*a, **k)
    with open(os.environ["CALLS"], "a") as file:
        file.write(repr(where) + "\\n")
    raise OSError("the network is off")
connect = socket.socket.connect
class Socket(socket.socket):
    connect = connect_ex = sendto = refuse
socket.socket = Socket
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""


def typed(tmp_path: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], float]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW"))} | variables
    began = time.monotonic()
    command = [sys.executable, "-m", "metarun", *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    return done, time.monotonic() - began


@pytest.mark.slow
def test_nothing_is_sent_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "off").mkdir()
    (tmp_path / "off" / "sitecustomize.py").write_text(BLOCKED)
    calls = tmp_path / "calls"
    path = f"{tmp_path / 'off'}{os.pathsep}{ROOT}"
    nowhere = {"METARUN_CACHE": str(tmp_path / "cache"), "METARUN_DATA": ""}  # not what the tester has

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return typed(tmp_path, *words, PYTHONPATH=path, CALLS=str(calls), **nowhere)[0]

    done = run(*TINY, "hydra.run.dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    assert not calls.exists()
    refused = run("data=omniglot", "algo=protonet")
    assert refused.returncode == 2
    assert "downloading failed" in refused.stderr
    assert calls.exists()  # the block is one


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and says nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                kept.append(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in kept:
        connection.close()


@pytest.mark.long
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_server_that_never_answers_is_waited_for_within_bounds(tmp_path: Path, silent_server: str, name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    where = {"wandb": {"WANDB_BASE_URL": silent_server, "WANDB_API_KEY": 40 * "0", "WANDB_MODE": "online"},
             "mlflow": {"MLFLOW_TRACKING_URI": silent_server}}[name]  # fmt: skip
    done, seconds = typed(tmp_path, *TINY, f"logger={name}", "hydra.run.dir=run", PYTHONPATH=str(ROOT), **where)
    assert done.returncode == 0, done.stderr
    assert seconds < isolated.START + isolated.FINISH + 45
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
    assert f"logger={name}: " in done.stdout
