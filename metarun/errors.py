"""Errors that a user can act on: one line with the key, its value and what would be valid."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path

MOST_NAMES = 200  # that a message lists
LONGEST_NAME = 200  # characters of one


class UserError(Exception):
    """A mistake in a command, a setting or a file; the message is one complete line."""


class SettingError(UserError):
    """A setting has a value that cannot work.

    A component knows only its own field names; the code that builds it calls `under("algo")`, so that the message has
    the key of the command line.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key}={value}: {expected}")
        self.key, self.value, self.expected = key, value, expected

    def under(self, group: str) -> SettingError:
        return SettingError(f"{group}.{self.key}", self.value, self.expected)


class WriteError(UserError):
    """A file cannot be written: the disk is full, the folder is gone or may only be read."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> WriteError:
        return cls(f"{path}: cannot be written ({error.strerror or error})")


class TakenOver(WriteError):
    """Another process writes to the run folder of this one, where locks do not hold."""


class Interrupted(KeyboardInterrupt):
    """A stop signal came while there was no step to finish."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


class NonFinite(Exception):
    """A loss or a meta-gradient is NaN or infinite; raised before the optimizer moves."""


class RankLost(Exception):
    """Another process of this job has ended or does not answer; the message names it, and the reason if it is known."""


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raise `SettingError` unless `holds`."""
    if not holds:
        raise SettingError(key, value, expected)


def one_line(error: object) -> str:
    """The text of an error (or a name in a file) on one line, without control characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Suggest the valid names that are close to `name`, or list them all if none is."""
    valid = sorted(str(v) for v in valid)
    lower = {v.lower(): v for v in valid if len(v) <= LONGEST_NAME}
    if name.lower() in lower:
        return f"did you mean {lower[name.lower()]}?"
    close = [lower[v] for v in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "choices: " + list_names(valid) if valid else "there are no choices"


def list_names(names: Iterable[object]) -> str:
    """The names, or the first ones and how many there are more: a table may have a hundred thousand columns."""
    known = [str(name) for name in names]
    more = f", ... and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    cut = (name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in known[:MOST_NAMES])
    return ", ".join(cut) + more
