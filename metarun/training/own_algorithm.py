"""What an algorithm's class must have, and what torch's errors in its code mean: one line for whoever wrote it."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarun.compute.task_axis import PerTask, find_cause
from metarun.config.components import component_class, locate
from metarun.config.schema import Config
from metarun.errors import UserError, one_line
from metarun.training.memory import is_out_of_memory
from metarun.types import CARRIED, Algorithm, Metrics, Params, Task

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


def check_results(algorithm: Algorithm) -> PerTask:
    """The algorithm's `meta_grad`; of a class outside of metarun with a check of what it returns, which raises
    `UserError`."""
    made = type(algorithm)
    if made.__module__.startswith("metarun."):
        return algorithm.meta_grad
    name = f"{made.__module__}.{made.__qualname__}.meta_grad"

    def meta_grad(params: Params, task: Task) -> tuple[Params, Metrics]:
        found: Any = algorithm.meta_grad(params, task)
        pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, dict) for part in found)
        if not pair:
            raise UserError(f"{name}: must return a gradient and metrics, two dictionaries of tensors")
        for key, value in params.items():
            shape, needed = [*found[0][key].shape] if key in found[0] else "missing", [*value.shape]
            if shape != needed and not key.startswith(CARRIED):
                raise UserError(f"{name}: the gradient of {key} is {shape}; it must be {needed}, as the parameter")
        if "loss" not in found[1]:
            raise UserError(f"{name}: its metrics lack `loss`; losses.score_prediction returns them")
        return found

    return meta_grad


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
