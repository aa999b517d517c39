"""The metarun command as it is typed, in a process of its own, without the seconds that a start of Python takes.

A server, started at the first command of a test session, imports what a training run imports and forks for each
command. The fork has the folder, the variables, the files of stdout and stderr and the arguments of the command, and
ends with its exit code. What is about the start itself (imports, signals to the interpreter, PYTHONPATH) is tested with
real starts.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


class Command:
    """A command that was started; what the tests use of `subprocess.Popen`."""

    def __init__(self, arguments: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="metarun-command-")
        self.files = {name: str(Path(self.place.name, name)) for name in ("out", "err")}
        self.returncode: int | None = None
        self.pid: int = ask({"arguments": arguments, "cwd": str(cwd), "env": env, **self.files})

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.files["out"], timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (Path(self.files[name]).read_text() for name in ("out", "err"))
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def started(*arguments: str, cwd: Path, **variables: str) -> Command:
    return Command(list(arguments), cwd, {**os.environ, **variables})


def metarun(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = started(*arguments, cwd=cwd, **variables)
    out, err = command.communicate()
    assert command.returncode is not None
    return subprocess.CompletedProcess(list(arguments), command.returncode, out, err)


SERVERS: list[subprocess.Popen[str]] = []


def ask(question: dict[str, Any]) -> Any:
    if not SERVERS:
        pipe = subprocess.PIPE
        SERVERS.append(subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, cwd=ROOT))
        atexit.register(SERVERS[0].kill)
    server = SERVERS[0]
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(question), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


def serve() -> None:
    """Answers questions until nobody asks any more."""
    import torch._inductor  # what compiles takes most of its time for this

    from metarun import jobs
    from metarun.cli import main
    from metarun.jobs import train
    from metarun.report.page import render as page

    imported = (torch, main, jobs, train, page)
    for line in sys.stdin:
        question = json.loads(line)
        answer = state_of(question["poll"]) if "poll" in question else fork(question)
        print(json.dumps(answer), flush=True)
    assert imported


def state_of(pid: int) -> int | None:
    """The exit code of a command that has ended, negative after a signal."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def fork(question: dict[str, Any]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    return pid if pid else become(question)


def become(question: dict[str, Any]) -> NoReturn:
    """The command, in this process."""
    code: Any = 1
    try:
        for number, name in enumerate((os.devnull, question["out"], question["err"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(name, flags, 0o600), number)
        sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(question["env"])
        os.chdir(question["cwd"])
        sys.path[0] = question["cwd"]
        sys.argv = [str(ROOT / "metarun/__main__.py"), *question["arguments"]]
        sys.orig_argv = [sys.executable, *sys.argv]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run() -> int:
    from metarun.cli.main import main

    try:
        main()
    except SystemExit as ending:
        atexit._run_exitfuncs()
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


if __name__ == "__main__":
    serve()
