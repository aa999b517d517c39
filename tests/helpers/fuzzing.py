"""How many cases a fuzzed test tries, and what counts as a sound end."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarun.cli import main

MANY = int(os.environ.get("METARUN_FUZZ_CASES", "1000"))  # of each test in the long suite
SLOWEST = 20.0  # seconds of a case: a hang
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large,
          HealthCheck.filter_too_much, HealthCheck.large_base_example]  # fmt: skip


def cases(count: int) -> Any:
    """So many cases, without a deadline, the same ones every time."""
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS,
        print_blob=False,
    )  # fmt: skip


def fuzzed(few: int, **strategies: Any) -> Callable[[Any], Any]:
    """The test twice: with `few` cases, and with many where those are asked for."""

    def decorate(test: Any) -> Any:
        made = given(**strategies)(test)
        return pytest.mark.parametrize("count", [few, pytest.param(MANY, marks=pytest.mark.long)], ids=["few", "many"])(
            _with_count(made)
        )

    return decorate


def _with_count(made: Any) -> Any:
    def test(count: int, **fixtures: Any) -> None:
        cases(count)(made)(**fixtures)

    own = inspect.signature(made).parameters.values()
    count = inspect.Parameter("count", inspect.Parameter.KEYWORD_ONLY)
    test.__signature__ = inspect.Signature([*own, count])  # type: ignore[attr-defined]
    test.__name__, test.__doc__ = made.__name__, made.__doc__
    return test


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """No more than so many MB beyond what this process has, on Linux."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + more * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["train", "val", "test", "completed", "accuracy", "mse", "$\\frac{", "<b>", 10**400, -1, 0, 1e308]),  # noqa: E501
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
"""Values of any shape."""


class End(NamedTuple):
    code: int
    out: str
    err: str


def called(main: Callable[[], Any], argv: Sequence[str]) -> End:
    """A command in this process: its exit code and what it said; an exception that gets out fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code, began = 0, time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", [*argv]):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    assert time.monotonic() - began < SLOWEST
    return End(code, out.getvalue(), err.getvalue())


def metarun(*words: str) -> End:
    """`metarun WORDS`, in this process and without the traces it leaves in it."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with mock.patch.dict(os.environ):
        return called(main.main, ["metarun", *words])


def sound(end: End) -> None:
    """0; 2 with one line; or 1 with a line that asks for a report. No traceback in any case."""
    assert "Traceback (most recent call last)" not in end.out + end.err, end.err
    assert end.code in (0, 1, 2), end
    lines = end.err.strip().splitlines()
    if end.code == 2:
        assert lines, end
    if end.code == 1:
        assert "please report it with the traceback in" in lines[-1], end


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def damaged(content: bytes, changes: Sequence[tuple[int, int]], cut: int) -> bytes:
    """Bytes with some of them exchanged and the end cut off."""
    raw = bytearray(content or b"\0")
    for at, byte in changes:
        raw[at % len(raw)] = byte
    return bytes(raw[: len(raw) - cut % len(raw)] if cut else raw)


DAMAGE = st.tuples(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6), st.integers(0, 1 << 12) | st.just(0)
)
