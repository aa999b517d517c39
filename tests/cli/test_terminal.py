"""What stays on the screen of a terminal: a run in a pseudo-terminal, its output read by an emulator (pyte)."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are of POSIX")
pyte = pytest.importorskip("pyte", reason="needs the emulator pyte (extra dev)")

COMMAND = [sys.executable, "-m", "metarun", "data=sinusoid", "train.tasks=2", "train.eval_every=10", "val.tasks=20"]
COMMAND += ["test.tasks=30", "test.steps=2", "device.compile=false", "device.threads=1", "report=false"]
PATIENCE = 120  # seconds
INTERRUPT = b"\x03"


class Ended(NamedTuple):
    lines: list[str]
    """Of the screen, with those that have scrolled away."""
    cursor: bool
    code: int
    text: str


def run_in_terminal(columns: int, rows: int, *overrides: str, interrupt_at: str = "") -> Ended:
    """A run in a terminal of this size. Ctrl-C is pressed when the text `interrupt_at` appears."""
    screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=1.0)
    stream, written, begun = pyte.ByteStream(screen), b"", time.monotonic()
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that a shell runs in the background ignore it
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        os.execve(sys.executable, [*COMMAND, *overrides], kept | {"TERM": "xterm-256color"})
    while True:
        assert time.monotonic() < begun + PATIENCE, written.decode(errors="replace")
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux's way to tell that the other end is closed
            break
        written += chunk
        stream.feed(chunk)
        if interrupt_at and interrupt_at.encode() in written:
            os.write(terminal, INTERRUPT)
            interrupt_at = ""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    scrolled = ["".join(line[x].data for x in range(columns)) for line in screen.history.top]
    lines = [line.rstrip() for line in [*scrolled, *screen.display]]
    return Ended(lines, not screen.cursor.hidden, code, written.decode())


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_validations_and_the_result_stay_on_the_screen(columns: int, rows: int, tmp_path: Path) -> None:
    ended = run_in_terminal(columns, rows, "train.steps=60", f"hydra.run.dir={tmp_path}/run")
    validations = [line for line in ended.lines if re.match(r"step \d+(/60)?  val mse", line)]
    assert (ended.code, ended.cursor) == (0, True)
    assert [int(re.findall(r"\d+", line)[0]) for line in validations] == [10, 20, 30, 40, 50, 60]
    assert any(line.startswith("test mse") for line in ended.lines)
    assert not any("━" in line for line in ended.lines)  # bars are gone
    assert max(map(len, ended.lines)) <= columns
    assert f"run folder: {tmp_path}/run" in ended.text.splitlines()  # broken by the terminal's edge alone
    assert re.search(r"episodes\s+[0-9a-f]{12}\b", ended.text)


def test_ctrl_c_leaves_a_whole_terminal_and_the_command_to_continue(tmp_path: Path) -> None:
    ended = run_in_terminal(80, 24, "train.steps=100000", f"hydra.run.dir={tmp_path}/run", interrupt_at="val mse")
    assert (ended.code, ended.cursor) == (130, True)
    assert any(re.match(r"step \d+  val mse", line) for line in ended.lines)
    assert f"continue with: metarun resume={tmp_path}/run" in ended.text
    assert not any("━" in line for line in ended.lines[-3:])


def test_ctrl_c_in_a_sweep_leaves_a_whole_terminal(tmp_path: Path) -> None:
    overrides = ["-m", "seed=0,1", "train.steps=100000", f"hydra.sweep.dir={tmp_path}/sweep"]
    ended = run_in_terminal(80, 24, *overrides, interrupt_at="  step ")
    assert (ended.code, ended.cursor) == (130, True)
    assert "the same command goes on from here" in ended.text


@pytest.mark.parametrize("overrides", [[], ["-m", "seed=0"]], ids=["run", "sweep"])
def test_a_cell_of_a_notebook_gets_lines(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    folders = [f"hydra.run.dir={tmp_path}/run", f"hydra.sweep.dir={tmp_path}/sweep"]
    ended = run_in_terminal(80, 24, *overrides, "train.steps=20", *folders)
    assert ended.code == 0
    assert not re.search(r"\x1b\[[\d?]*[AKlh]", ended.text)  # no moving cursor
