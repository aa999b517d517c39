"""The inside of the meta-gradient, from a trace: whose time it was, by part of the algorithm and by kind of operator.

part      the method of the algorithm that was running: `adapt` is the inner loop, others by their own names; `predict`
          belongs to the outer objective, as does what runs in no method; `around` is what is done for all tasks
          together: batching by vmap, mean, penalties, the check for finite numbers
kind      backward: inside of an autograd node; forward: inside of the network or the loss; rest: steps, metrics, Python
So (inner loop, backward) is the inner backward pass, (outer objective, forward) the forward pass on the queries and
(outer objective, backward) the meta backward pass, second order included.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from metarun.jobs.profile.marks import FORWARD, PREFIX, TASK
from metarun.jobs.profile.trace import Spent

BACKWARD = "autograd::engine::evaluate_function"
KINDS = ("forward", "backward", "rest")
INNER, OUTER, AROUND = "inner loop", "outer objective", "around the tasks"
FIXED = {INNER, OUTER, AROUND}
METHODS = {"adapt": INNER, "predict": OUTER, FORWARD: OUTER}
SMALL = 0.01  # share below which a method of the algorithm is no line of its own

GROUPS = (
    ("fused kernels", r"cpp_fused|triton|graph_\d+|CompiledFunction"),
    ("convolution", r"conv"),
    ("matrix product", r"\b(\w*mm|matmul|bmm|baddbmm|dot|mv|linear|einsum|addmv|addr)\b"),
    ("normalisation", r"batch_norm|group_norm|layer_norm|var_mean|\bvar\b"),
    ("pooling", r"pool"),
    ("softmax and losses", r"softmax|nll_|cross_entropy|mse_loss"),
    ("indexing", r"index|gather|scatter|embedding|nonzero|take"),
    ("reductions", r"\b(sum|mean|max|amax|min|argmax|all|any|norm|linalg_vector_norm|prod|std|isfinite)\b"),
    (
        "copies and layout",
        r"copy|clone|contiguous|\bto\b|reshape|view|permute|transpose|\bt\b|expand|stride|movedim|squeeze|\bcat\b|stack"
        r"|empty|zeros|ones|fill|zero_|slice|select|split|unbind|narrow|flatten|pad|repeat|detach|alias|chunk|resize",
    ),
)
ELEMENTWISE, OVERHEAD = "element by element", "Python and autograd"


class Part(NamedTuple):
    """A line of the table; shares of the meta-gradient's time."""

    name: str
    forward: float
    backward: float
    rest: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.rest


class Group(NamedTuple):
    """Operators of a kind: calls in one meta-gradient, and their own share of its time, without what they call."""

    name: str
    calls: float
    share: float


def parts(spent: list[Spent]) -> list[Part]:
    """Inner loop and outer objective, other methods of the algorithm, what is around the tasks."""
    whole, totals = total(spent), _sums((part_of(path), own) for path, own in spent)
    lines = {name for name, own in totals.items() if name in FIXED or own >= SMALL * whole}
    cells = _sums(((_line(path, lines), kind_of(path)), own / whole) for path, own in spent)
    order = [INNER, OUTER, *sorted(lines - FIXED, key=lambda name: -totals[name]), AROUND]
    return [Part(n, *(cells.get((n, kind), 0.0) for kind in KINDS)) for n in order if n in lines | {OUTER}]


def total(spent: Iterable[Spent]) -> float:
    """Microseconds; above 0, so that shares exist."""
    return sum(own for _, own in spent) or 1.0


def _line(path: tuple[str, ...], lines: set[str]) -> str:
    name = part_of(path)
    return name if name in lines else OUTER


def _sums(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for key, value in pairs:
        found[key] = found.get(key, 0.0) + value
    return found


def part_of(path: tuple[str, ...]) -> str:
    """By the outermost method inside of a task's meta-gradient."""
    methods = [name.removeprefix(PREFIX) for name in path if name.startswith(PREFIX)]
    if TASK not in methods:
        return AROUND
    inside = methods[methods.index(TASK) + 1 :]
    return METHODS.get(inside[0], inside[0].strip("_").replace("_", " ")) if inside else OUTER


def kind_of(path: tuple[str, ...]) -> str:
    if any(name.startswith(BACKWARD) for name in path):
        return "backward"
    return "forward" if PREFIX + FORWARD in path else "rest"


def groups(spent: list[Spent], steps: int) -> list[Group]:
    """The kinds of operators, the longest first; an operator inside of one of its kind is no further call."""
    whole = total(spent)
    shares = _sums((group_of(path[-1]), own / whole) for path, own in spent)
    calls = _sums((group_of(path[-1]), _is_call(path) / steps) for path, own in spent)
    return sorted((Group(name, calls[name], share) for name, share in shares.items()), key=lambda g: -g.share)


def _is_call(path: tuple[str, ...]) -> bool:
    name = group_of(path[-1])
    return name != OVERHEAD and (len(path) < 2 or group_of(path[-2]) != name)


@functools.cache
def group_of(name: str) -> str:
    """Of an event's name: operators of torch, compiled kernels; all else is what runs between them."""
    operator = name.removeprefix("aten::")
    for group, pattern in GROUPS[: None if "::" in name and not name.startswith(BACKWARD) else 1]:
        if re.search(pattern, operator):
            return group
    return ELEMENTWISE if name.startswith("aten::") else OVERHEAD
