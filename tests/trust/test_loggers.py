"""A logger that raises, hangs or is slow costs a run nothing but a note; without one nothing is sent anywhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.loggers import Strange, raising

import metarun
from metarun.jobs import train
from metarun.storage.loggers import isolated

ROOT = Path(__file__).resolve().parents[2]
TINY = ("train.steps=4", "train.tasks=2", "train.log_every=1", "train.eval_every=2", "train.checkpoint_every=2",
        "val.tasks=2", "test.tasks=2", "test.steps=1", "device.compile=off", "report=false")  # fmt: skip


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_run_with_a_broken_logger_has_the_numbers_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "build_logger", lambda *_: None)
    metarun.run(metarun.compose([*TINY]), tmp_path / "without")
    monkeypatch.setattr(train, "build_logger", lambda *_: Strange("log", raising(OSError("away"))))
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
