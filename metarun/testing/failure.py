"""How a check fails: one AssertionError that says what was checked, what was found, and the usual cause."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from metarun.errors import UserError, nearest, one_line

Checks = Mapping[str, Callable[[Any], None]]
"""The steps of a check by name; each takes the case and raises AssertionError."""


def expect(holds: bool, found: str, cause: str = "") -> None:
    """Raise AssertionError unless `holds`, with what was found instead and what usually causes it."""
    if not holds:
        raise AssertionError(f"{found}\nusual cause: {cause}" if cause else found)


def run_checks(title: str, checks: Checks, case: Any, skip: Collection[str]) -> None:
    """Run the steps in turn, but for those to skip."""
    for name, check in checks.items():
        if name not in skip:
            with naming(f"{title}, {name}"):
                check(case)


def refuse_unknown_steps(skip: Collection[str], checks: Checks) -> None:
    """Raise ValueError for a name in `skip` that no step has: a misspelled one would skip nothing."""
    if isinstance(skip, str):
        raise ValueError(f"skip={skip!r}: must be a list of names, as [{skip!r}]")
    for name in skip:
        if name not in checks:
            raise ValueError(f"skip={name!r}: no such step, {nearest(name, checks)}")


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Put what is checked before each failure of the block; an error of the checked code is a failure too."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from (error.__cause__ or None)
    except UserError as error:
        raise AssertionError(f"{what}: {error}") from error
    except Exception as error:  # of the checked code
        raise AssertionError(f"{what}: raised {type(error).__name__}: {one_line(error)[:500]}") from error


def call_with(make: Callable[..., Any], provided: Mapping[str, Any]) -> Any:
    """Call with those of the keywords that the callable has a parameter for."""
    parameters = inspect.signature(make).parameters
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in provided
    ]
    advice = ", ".join(f"{name}=..." for name in missing)
    expect(not missing, f"cannot be made without {', '.join(missing)}; functools.partial(CLASS, {advice}) gives them")
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return make(**{name: value for name, value in provided.items() if every or name in parameters})


def name_of(make: Any) -> str:
    """The name of a class, a function, a partial of one, or an object's class."""
    make = getattr(make, "func", make)
    return getattr(make, "__name__", type(make).__name__)
