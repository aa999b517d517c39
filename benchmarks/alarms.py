"""Precision and recall of the alarms, on a collection of healthy runs and of runs that are broken in known ways.

    python -m benchmarks.alarms --folder outputs/alarms        # trains the collection, then prints the tables
    python -m benchmarks.alarms --folder outputs/alarms        # again: reads it; an interrupted one continues

Each learner trains 150 steps on a small problem: healthy with two seeds and two variants, and with each fault
that it can have, weakly and strongly. Weak and strong, and the two seeds of a healthy variant, go to different halves.
Thresholds are chosen on the first half (the F1 of their alarm, the default where it is among the best), and judged on
the second. Alarms are a function of the records, so that other thresholds need no other training.

A raised alarm is right if its fault names it, as `alarm` or among `also` (what follows from the fault too). Recall is
the share of the runs with the alarm's own fault in which it was raised, precision the share of right ones among all
runs in which it was raised.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import metarun
from metarun.config.schema import AlarmConfig, DiagnosticsConfig
from metarun.data.sinusoid import Sinusoid
from metarun.diagnostics.alarms import Alarms, Baseline
from metarun.jobs.train import build_alarms
from metarun.storage.run_folder import RunFolder
from metarun.storage.status import FINAL
from metarun.training.experiment import assemble
from metarun.types import Batch, EpisodeSpec, Split, Task

FEW = ["train.steps=150", "train.log_every=3", "train.eval_every=15", "train.checkpoint_every=150", "val.tasks=50"]
FEW += ["test.tasks=2", "test.steps=1", "diagnostics.tasks=4", "device.compile=off", "device.threads=1"]
FEW += ["report=false", "optim.schedule=constant"]
SINUSOID = ["data=sinusoid", "data.test_queries=20", "model.hidden=[20,20]", "train.tasks=8", "optim.lr=0.01"]
LINEAR = ["data=linear", "data.test_queries=20", "train.tasks=8", "optim.lr=0.03"]
LOGISTIC = ["data=logistic", "data.test_queries=20", "train.tasks=8", "optim.lr=0.03"]
LEARNERS: dict[str, list[str]] = {
    "maml sinusoid": ["algo=maml", *SINUSOID, "algo.test_inner_steps=1"],
    "maml linear": ["algo=maml", *LINEAR, "algo.test_inner_steps=1"],
    "protonet logistic": ["algo=protonet", *LOGISTIC, "model=mlp", "model.hidden=[20]"],
    "imaml sinusoid": ["algo=imaml", *SINUSOID, "algo.inner_steps=4", "algo.test_inner_steps=4"],
    "reptile sinusoid": ["algo=reptile", *SINUSOID, "optim.lr=0.5", "algo.inner_lr=0.01", "algo.test_inner_steps=5"],
}
"""Learner on data -> settings that train healthily."""

HEALTHY = (["seed=0"], ["seed=1"], ["train.tasks=16", "seed=2"], ["train.tasks=16", "seed=3"])

THRESHOLDS: dict[str, tuple[str, ...]] = {
    "diverged": ("diverged",),
    "loss_spike": ("spike",),
    "lost_progress": ("lost",),
    "stuck_at_chance": ("chance",),
    "no_adaptation": ("no_gain",),
    "inner_overfitting": ("overfit",),
    "memorisation": ("memorised", "unsolved"),
    "unstable_inner_rate": ("rises", "grows"),
    "cg_not_converged": ("cg_residual",),
}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the default thresholds, to choose from."""


@dataclass(frozen=True)
class BrokenSinusoid(Sinusoid):
    """Sinusoids whose training targets are `times` as large in `steps` outer steps from `first` on."""

    first: int = 0
    steps: int = 0
    times: float = 1.0

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        task = super().episodes(split, seed, step, tasks, spec)
        broken = split == "train" and self.first <= step < self.first + self.steps
        return Task(*(Batch(part.x, self.times * part.y) for part in task)) if broken else task


@dataclass(frozen=True)
class Fault:
    """A fault, and its settings for a learner, or for all with this word in their name: weak and strong."""

    alarm: str  # the alarm that names it
    also: tuple[str, ...]  # alarms that follow from it
    settings: dict[str, tuple[list[str], list[str]]]


def scales(key: str, weak: float, strong: float) -> tuple[list[str], list[str]]:
    return [f"{key}={weak:g}"], [f"{key}={strong:g}"]


def broken_data(first: int, steps: int, times: tuple[int, int]) -> dict[str, tuple[list[str], list[str]]]:
    chosen = ["trusted_modules=[benchmarks]", "data._target_=benchmarks.alarms.BrokenSinusoid"]
    weak, strong = ([*chosen, f"+data.first={first}", f"+data.steps={steps}", f"+data.times={t}"] for t in times)
    return dict.fromkeys(("maml sinusoid", "reptile sinusoid"), (weak, strong))


NOISE = tuple(["data.amplitude=[0.0,0.0]", f"data.noise={noise}"] for noise in (1, 3))
BLOWN_UP = ("diverged", "loss_spike", "lost_progress", "stuck_at_chance", "no_adaptation", "unstable_inner_rate")
FAULTS: dict[str, Fault] = {
    "inner rate too large": Fault(
        "unstable_inner_rate",
        BLOWN_UP,
        {
            "maml sinusoid": scales("algo.inner_lr", 1, 10),
            "maml linear": scales("algo.inner_lr", 3, 10),
        },
    ),
    "inner rate too small": Fault(
        "no_adaptation",
        ("stuck_at_chance",),
        {
            "maml sinusoid": scales("algo.inner_lr", 1e-6, 1e-9),
            "reptile sinusoid": scales("algo.inner_lr", 1e-6, 1e-9),
            "maml linear": scales("algo.inner_lr", 1e-4, 1e-6),
        },
    ),
    "outer rate too large": Fault(
        "diverged",
        BLOWN_UP,
        {
            "maml sinusoid": scales("optim.lr", 3, 30),
            "maml linear": (["optim=sgd", "optim.lr=3"], ["optim=sgd", "optim.lr=30"]),
        },
    ),
    "outer rate too small": Fault(
        "stuck_at_chance",
        (),
        {
            "maml sinusoid": scales("optim.lr", 1e-6, 1e-8),
            "reptile sinusoid": scales("optim.lr", 1e-4, 1e-6),
        },
    ),
    "targets that are noise": Fault(
        "stuck_at_chance",
        ("no_adaptation", "inner_overfitting"),
        {
            "maml sinusoid": NOISE,
            "reptile sinusoid": NOISE,
            "linear": tuple(["data.centres=[0.0,0.0]", "data.spread=0", f"data.noise={noise}"] for noise in (1, 3)),
            "logistic": (["data.common=0", "data.spread=0.001"], ["data.common=0", "data.spread=0.001", "data.ways=4"]),
        },
    ),
    "a pool of few tasks": Fault(
        "memorisation",
        ("unstable_inner_rate", "stuck_at_chance"),
        {
            "maml sinusoid": scales("train.pool", 3, 1),
            "reptile sinusoid": scales("train.pool", 3, 1),
            "protonet logistic": scales("train.pool", 3, 1),
        },
    ),
    "many steps on noisy rows": Fault(
        "inner_overfitting",
        ("no_adaptation", "stuck_at_chance"),
        {
            "linear": tuple(
                [
                    "data.spread=0.1",
                    f"data.noise={noise}",
                    "data.shots=4",
                    "algo.inner_lr=0.1",
                    "algo.inner_steps=20",
                    "algo.test_inner_steps=20",
                ]
                for noise in (1, 3)
            ),
        },
    ),
    "conjugate gradient too short": Fault(
        "cg_not_converged",
        ("negative_curvature",),
        {"imaml": tuple(["algo.cg_steps=1", f"algo.prox={prox}"] for prox in (0.01, 0.0001))},
    ),
    "lambda too small for the Hessian": Fault(
        "negative_curvature",
        ("cg_not_converged",),
        {"imaml": tuple(["algo.curvature=hessian", f"algo.prox={prox}"] for prox in (0.03, 0.003))},
    ),
    "a broken step": Fault(
        "loss_spike",
        ("diverged", "lost_progress"),
        broken_data(110, 1, (10, 100)),
    ),
    "data that change": Fault(
        "lost_progress",
        ("diverged", "loss_spike", "stuck_at_chance", "no_adaptation"),
        broken_data(75, 75, (5, 50)),
    ),
    "inputs that are all equal": Fault(
        "constant_inputs",
        ("stuck_at_chance", "no_adaptation"),
        {"maml sinusoid": (["data.x_range=[1.0,1.0]"], ["data.x_range=[0.0,0.0]"])},
    ),
}


@dataclass(frozen=True)
class Case:
    """A run of the collection, and the half that it belongs to: 0 to choose thresholds, 1 to judge."""

    name: str
    fault: str | None
    half: int
    settings: list[str]


def list_cases() -> Iterator[Case]:
    for at, (learner, settings) in enumerate(LEARNERS.items()):
        for k, more in enumerate(HEALTHY):
            yield Case(f"{learner} healthy {k}", None, (at + k) % 2, [*settings, *more])
        for row, (name, fault) in enumerate(FAULTS.items()):
            found = next((pair for of, pair in fault.settings.items() if of == learner or of in learner.split()), ())
            for k, more in enumerate(found):
                yield Case(f"{learner} {name} {k}", name, (at + row + k) % 2, [*settings, *more, f"seed={10 + k}"])


@dataclass(frozen=True)
class Recorded:
    """A trained run of the collection: what its alarms are a function of."""

    case: Case
    baseline: Baseline
    settings: DiagnosticsConfig
    records: list[dict[str, Any]]
    beside: frozenset[str]  # alarms that no record raises: equal inputs, a number that is not finite

    def raise_alarms(self, **thresholds: float) -> set[str]:
        """The alarms of this run with other thresholds."""
        limits = dataclasses.replace(self.settings.alarms, **thresholds)
        alarms = Alarms(dataclasses.replace(self.settings, alarms=limits), self.baseline)
        for record in self.records:
            alarms.observe(record["kind"], record["step"], record)
        return {*alarms.raised, *self.beside}


def record(case: Case, folder: RunFolder) -> Recorded:
    """Train a run of the collection, or read it."""
    config = metarun.compose([*FEW, *case.settings])
    if folder.read_summary().get("status") not in FINAL:
        shutil.rmtree(folder.path, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            status = metarun.run(config, folder.path).status
        if status == "interrupted":
            raise KeyboardInterrupt
    baseline = build_alarms(assemble(config), folder).history.run
    summary = folder.read_summary()
    beside = {"constant_inputs"} & summary["alarms"].keys() | ({"diverged"} if summary["diverged"] else set())
    return Recorded(case, baseline, config.diagnostics, folder.read_records(), frozenset(beside))


class Count(NamedTuple):
    """How often an alarm was raised, and how often it was right to."""

    found: int  # of the runs with its own fault
    own: int
    right: int  # of the runs in which it was raised
    raised: int

    @property
    def f1(self) -> float:
        """2 / (1 / precision + 1 / recall)."""
        recall, precision = self.found / max(self.own, 1), self.right / max(self.raised, 1)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def count(alarm: str, runs: Sequence[Recorded], **thresholds: float) -> Count:
    found = own = right = raised = 0
    for run in runs:
        fault = FAULTS.get(run.case.fault or "")
        holds = alarm in run.raise_alarms(**thresholds)
        is_own = fault is not None and fault.alarm == alarm
        own, raised = own + is_own, raised + holds
        found += holds and is_own
        right += holds and fault is not None and alarm in (fault.alarm, *fault.also)
    return Count(found, own, right, raised)


def choose(alarm: str, runs: Sequence[Recorded]) -> dict[str, float]:
    """The thresholds of an alarm with the best F1; the default where it is among them, else the nearest to it."""
    names, default = THRESHOLDS[alarm], AlarmConfig()
    grid = sorted(itertools.product(FACTORS, repeat=len(names)), key=lambda fs: sum(abs(math.log(f)) for f in fs))
    options = [{name: getattr(default, name) * f for name, f in zip(names, fs, strict=True)} for fs in grid]
    return max(options, key=lambda option: count(alarm, runs, **option).f1)  # the first of equals


def print_tables(runs: Sequence[Recorded]) -> None:
    halves = [[run for run in runs if run.case.half == half] for half in (0, 1)]
    print("| alarm | recall | precision | thresholds chosen on the first half | recall with them | precision |")
    print("|---|---|---|---|---|---|")
    for alarm in dict.fromkeys(fault.alarm for fault in FAULTS.values()):
        chosen = choose(alarm, halves[0]) if alarm in THRESHOLDS else {}
        default, other = count(alarm, halves[1]), count(alarm, halves[1], **chosen)
        same = all(value == getattr(AlarmConfig(), name) for name, value in chosen.items())
        named = "the default" if same else ", ".join(f"{name}={value:g}" for name, value in chosen.items())
        cells = [f"{c.found} of {c.own} | {c.right} of {c.raised}" for c in (default, other)]
        print(f"| `{alarm}` | {cells[0]} | {named if alarm in THRESHOLDS else 'none'} | {cells[1]} |")
    healthy = [run for run in halves[1] if run.case.fault is None]
    broken = [run for run in halves[1] if run.case.fault is not None]
    named = sum(bool(run.raise_alarms() & expected(run)) for run in broken)
    print(f"\nhealthy runs with an alarm: {sum(bool(r.raise_alarms()) for r in healthy)} of {len(healthy)}")
    print(f"broken runs with an alarm that is right: {named} of {len(broken)}")


def expected(run: Recorded) -> set[str]:
    fault = FAULTS.get(run.case.fault or "")
    return {fault.alarm, *fault.also} if fault else set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/alarms"), help="of the runs")
    parser.add_argument("--only", default="", help="part of the names of the runs to take")
    arguments = parser.parse_args()
    runs: list[Recorded] = []
    with contextlib.suppress(KeyboardInterrupt):  # the tables are then of the runs that are there
        for case in list_cases():
            if arguments.only in case.name:
                runs.append(record(case, RunFolder(arguments.folder / case.name.replace(" ", "-"))))
                print(describe(runs[-1]), flush=True)
    print()
    print_tables(runs)


def describe(run: Recorded) -> str:
    raised, right = run.raise_alarms(), expected(run)
    shown = [name if name in right else f"{name} (wrong)" for name in sorted(raised)]
    return f"{run.case.name}, half {run.case.half}: {', '.join(shown) or 'none'}"


if __name__ == "__main__":
    main()
