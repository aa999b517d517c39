"""The training loop outside of the meta-gradient: its share of a run's time, and what it is spent on.

    METARUN_DATA=PATH python benchmarks/loop.py         # MAML on sinusoids, and four algorithms on Omniglot
    python benchmarks/loop.py --data sinusoid           # without images
    python benchmarks/loop.py --seconds 5               # of steps, of each pair

Real steps with default settings, sinks, measures and checkpoints in a temporary folder, and without validation.
Microseconds a step, means over all steps; the goal for `outside` is at most 10 % of the time.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

PAIRS = [("maml", "sinusoid"), *((algo, "omniglot") for algo in ("maml", "protonet", "reptile", "imaml"))]
FEWEST_STEPS = 3


def measure(algo: str, data: str, seconds: float, more: list[str]) -> dict[str, float]:
    """Seconds a step by phase, `whole` and `steps` beside them."""

    import metarun
    from metarun.training.experiment import assemble
    from metarun.training.meta_gradient import build_step_gradient, should_compile_step

    experiment = assemble(metarun.compose([f"algo={algo}", f"data={data}", *more]))
    trainer = experiment.trainer()
    state = trainer.start()
    pays = should_compile_step(trainer, state.params)
    meta_gradient = build_step_gradient(trainer, state.params, pays)
    for _ in range(3):
        meta_gradient(state.params, trainer.tasks(0))
    with tempfile.TemporaryDirectory() as folder:
        return run(experiment, state, meta_gradient, Path(folder), seconds) | {"compiled": pays}


def run(experiment: Any, state: Any, meta_gradient: Any, folder: Path, seconds: float) -> dict[str, float]:
    """Train for so long, and so many records and checkpoints as belong to the steps done."""
    from rich.console import Console

    from metarun.jobs.profile.phases import NEVER, Stopwatch, mark_loop
    from metarun.jobs.train import build_alarms
    from metarun.storage.loggers.console import PlainConsole
    from metarun.storage.loggers.jsonl import JsonLines
    from metarun.storage.run_folder import RunFolder
    from metarun.training.loop import validate
    from metarun.training.recorder import Recorder

    record, trainer = RunFolder(folder), experiment.trainer()
    record.last.parent.mkdir()
    sinks = [JsonLines(folder), PlainConsole(Console(file=io.StringIO()))]
    for sink in sinks:
        sink.start({"steps": trainer.settings.steps, "metric": "loss", "title": "", "folder": ""})
    session = Recorder(record, sinks, trainer.settings, build_alarms(experiment, record))
    settings = dataclasses.replace(trainer.settings, eval_every=NEVER)
    watch = Stopwatch(trainer.placement.device)
    loop = mark_loop(dataclasses.replace(trainer, settings=settings), state, meta_gradient, session, watch)

    def steps() -> None:
        end = time.perf_counter() + seconds
        while loop.state.step < FEWEST_STEPS or time.perf_counter() < end:
            loop.step()
            validate(loop.trainer, loop.state, loop.observer)

    laps = watch.lap(steps)
    for sink in sinks[:1]:
        sink.finish({})
    done = loop.state.step
    return {name: spent / done for name, spent in laps.items()} | {"whole": sum(laps.values()) / done, "steps": done}


COLUMNS = ("sampling", "to the device", "optimizer", "rest of the step", "measures", "writing records", "checkpoint")


def row(algo: str, data: str, found: dict[str, float]) -> str:
    outside = 1 - found["meta-gradient"] / found["whole"]
    name = f"{algo} {data}{' (compiled)' if found['compiled'] else ''}"
    figures = (f"{1e6 * found.get(column, 0.0):.0f}" for column in COLUMNS)
    cells = name, f"{found['steps']:.0f}", f"{1e3 * found['whole']:.3g}", f"{100 * outside:.1f} %", *figures
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of steps of each pair")
    parser.add_argument("--data", default=None, help="only this data set")
    parser.add_argument("--algo", default=None, help="only this algorithm")
    parser.add_argument("settings", nargs="*", help="more settings, as metarun takes them")
    arguments = parser.parse_args()
    print(f"| algorithm and data | steps | a step, ms | outside | {' | '.join(f'{c}, us' for c in COLUMNS)} |")
    print("|" + "---|" * (4 + len(COLUMNS)))
    for algo, data in PAIRS:
        if arguments.data in (None, data) and arguments.algo in (None, algo):
            print(row(algo, data, measure(algo, data, arguments.seconds, arguments.settings)), flush=True)


if __name__ == "__main__":
    main()
