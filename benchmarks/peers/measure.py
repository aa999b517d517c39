"""Cases are measured: a process for each side, gradients compared, then rounds in which the sides take turns."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.cases import Case
from benchmarks.peers.tasks import Work
from benchmarks.peers.worker import Order, serve

TOLERANCES = {"gradient_error": 1e-6, "loss_error": 1e-9, "first_loss_error": 1e-3, "second_loss_error": 1e-2}
"""Relative. The first two are of two tasks in float64; the others of all tasks in float32, where a unit within rounding
of its kink can change the gradient by a thousandth, and the loss after one update of Adam accordingly. Of photos-maml-5
(84x84, five inner steps) the losses of loop and metarun agree to 2e-15 in float64 on all tasks; in float32 the loop's
is 3e-5 from that, and metarun's 2e-4."""


class Disagreement(Exception):
    """Two sides do not compute the same thing."""


class Failed(Exception):
    """A side could not do it; the message says why."""


@dataclass(frozen=True)
class Plan:
    """How long everything may take."""

    rounds: int
    seconds: float  # of one side's turn
    most: int = 2000  # steps in a turn
    too_slow: float = 20.0  # seconds of a step beyond which a side gets one turn only


class Process:
    """The other end of `worker.serve`."""

    def __init__(self, order: Order) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, order), daemon=False)
        self.process.start()
        other.close()

    def ask(self, *command: Any) -> Any:
        try:
            self.pipe.send(command)
            done, answer = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            raise Failed("its process ended (out of memory?)") from None
        if not done:
            raise Failed(answer)
        return answer

    def close(self) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


@contextmanager
def process(order: Order) -> Iterator[Process]:
    made = Process(order)
    try:
        yield made
    finally:
        made.close()


def thread_variables(threads: int) -> None:
    """What the processes inherit."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
        os.environ[name] = str(threads)


def measure(case: Case, images: Path, threads: int, plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    """A case's result: for each side its times by round, ratios to metarun, memory, or why there is none."""
    with ExitStack() as stack:
        sides = {s: stack.enter_context(process(Order(s, case, images, threads))) for s in case.sides}
        work, few = sides["metarun"].ask("draw")
        expected = Expected(sides["loop"].ask("exact", few), sides["loop"].ask("build", work)["losses"])
        found = {s: prepared(s, p, (work, few), expected, tell) for s, p in sides.items()}
        running = {s: p for s, p in sides.items() if "why" not in found[s]}
        times = rounds(running, plan)
        for side, taken in times.items():
            found[side] |= summary(taken, times["metarun"]) | {"peak_mb": running[side].ask("peak")}
    return {"case": case.name, "title": case.title, "tasks": len(work.arrays["support_x"]), "sides": found}


class Expected(NamedTuple):
    """What the plain loop computes."""

    exact: tuple[float, Mapping[str, Any]]  # loss and meta-gradient of two tasks, float64
    losses: list[float]  # of all tasks before the first and the second step, float32


def prepared(
    side: str, process: Process, work: tuple[Work, Work], expected: Expected, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Hold a side's gradient and losses against the plain loop's, and make it ready to be timed."""
    try:
        loss, gradient = process.ask("exact", work[1])
        answer = process.ask("build", work[0])
    except Failed as error:
        why = str(error).strip().splitlines()[-1]
        if side in ("metarun", "loop"):
            raise Failed(f"{side}: {error}") from None
        tell(f"  {side}: {why}")
        return {"why": why}
    errors = {
        "gradient_error": gradient_error(gradient, expected.exact[1]),
        "loss_error": relative(loss, expected.exact[0]),
        "first_loss_error": relative(answer["losses"][0], expected.losses[0]),
        "second_loss_error": relative(answer["losses"][1], expected.losses[1]),
    }
    agree(side, errors)
    tell(f"  {side}: agrees (gradient {errors['gradient_error']:.0e}), first step {answer['first_s']:.1f} s")
    return {"first_s": answer["first_s"], **errors}


def agree(side: str, errors: dict[str, float]) -> None:
    """Raise `Disagreement` unless every error is within its tolerance; NaN is not."""
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCES[name]}
    if wrong:
        raise Disagreement(f"{side}: " + ", ".join(f"{name} {error:.1e}" for name, error in wrong.items()))


def relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


def gradient_error(found: Mapping[str, Any], exact: Mapping[str, Any]) -> float:
    """|g - g_64| / |g_64| over all weights; infinite where names or shapes differ."""
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in exact.items()}:
        return float("inf")
    away = sum(float(np.square(found[k] - exact[k]).sum()) for k in exact)
    return float(np.sqrt(away / sum(float(np.square(v).sum()) for v in exact.values())))


def rounds(sides: dict[str, Process], plan: Plan) -> dict[str, list[float]]:
    """The median step of each side in each round; who begins changes from round to round."""
    order, times = list(sides), {s: [] for s in sides}  # type: ignore[var-annotated]
    for k in range(plan.rounds):
        for side in order[k % len(order) :] + order[: k % len(order)]:
            if times[side] and times[side][0] > plan.too_slow:
                times[side].append(times[side][0])
            else:
                times[side].append(statistics.median(sides[side].ask("steps", plan.seconds, plan.most)))
    return times


def summary(taken: list[float], metarun: list[float]) -> dict[str, Any]:
    """Median and range over rounds of a step's seconds, and of how many times as long it takes as metarun's."""
    ratios = [a / b for a, b in zip(taken, metarun, strict=True)]
    return {"step_s": spread(taken), "metarun_is_faster_by": spread(ratios), "rounds_s": taken}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
