"""What an algorithm's class must have, and what torch's errors in its code mean: one line for whoever wrote it."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarun.compute.task_axis import find_cause
from metarun.config.components import component_class, locate
from metarun.config.schema import Config
from metarun.errors import UserError, one_line
from metarun.training.memory import is_out_of_memory
from metarun.types import Algorithm

MEMBERS = {
    "kinds": 'kinds: ClassVar[tuple[Kind, ...]] = ("regression",), the kinds of data that it learns from',
    "head": "head: ClassVar[bool] = True, or False if the network ends in its features",
    "init": "def init(self, seed: int) -> Params",
    "adapt": "def adapt(self, params: Params, support: Batch) -> Any",
    "adaptations": "def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Any]",
    "predict": "def predict(self, adapted: Any, x: Tensor) -> Tensor",
    "meta_grad": "def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]",
    "model": "model: Model, a field",
    "loss": "loss: Loss, a field",
    "test_inner_steps": "test_inner_steps: ClassVar[int] = 0, the step whose metric is the result",
}
"""The members of `metarun.types.Algorithm`, and what to write where one is missing."""

FIELDS = ("model", "loss", "test_inner_steps")  # which an instance may have and its class not


def locate_algorithm(config: Config) -> tuple[Any, Any]:
    """What `algo._target_` names, and the class of what it makes. Raise `UserError` if that class is not known, or
    lacks a member."""
    target = locate("algo", config.algo, config.trusted_modules)
    made, path = component_class(target), config.algo["_target_"]
    if not isinstance(made, type):
        name = getattr(target, "__name__", path)
        raise UserError(f"algo._target_={path}: does not say what it returns; write def {name}(...) -> CLASS")
    check_members(f"algo._target_={path}", made, [name for name in MEMBERS if name not in FIELDS])
    return target, made


def check_members(name: str, algorithm: Any, needed: Any = tuple(MEMBERS)) -> None:
    """Raise `UserError` for the first member that an algorithm, or its class, lacks."""
    for member in needed:
        if not hasattr(algorithm, member):
            own = algorithm if isinstance(algorithm, type) else type(algorithm)
            raise UserError(f"{name}: {own.__name__} has no `{member}`; write {MEMBERS[member]}")


@contextlib.contextmanager
def explain_errors(algorithm: Algorithm) -> Iterator[None]:
    """Raise `UserError` with class, member and line for an error in code of an algorithm outside of metarun, and where
    an algorithm cannot be batched."""
    made = type(algorithm)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds
        if is_out_of_memory(error):
            raise
        (name, place), cause = find_place(error, made), find_cause(error)
        if cause is None and (not place or made.__module__.startswith("metarun.")):
            raise
        raise UserError(f"{name}{place}: {cause or f'{type(error).__name__}: {one_line(error)[:300]}'}") from error


def find_place(error: BaseException, made: type) -> tuple[str, str]:
    """The class with its innermost method that the error went through, and the file and line in its package: ("own.
    ridge.Ridge.adapt", " (ridge.py, line 40: if gram.sum() > 0:)")."""
    name, place = f"{made.__module__}.{made.__qualname__}", ""
    methods = {id(m.__code__): n for n, m in inspect.getmembers(made, inspect.isfunction)}
    package = made.__module__.partition(".")[0]
    for frame, line in traceback.walk_tb(error.__traceback__):
        method = methods.get(id(frame.f_code))
        name = f"{made.__module__}.{made.__qualname__}.{method}" if method else name
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package:
            path = frame.f_code.co_filename
            place = f" ({Path(path).name}, line {line}: {linecache.getline(path, line).strip()})"
    return name, place
