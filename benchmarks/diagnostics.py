"""What the measures of diagnostics=basic and a probe of diagnostics=full cost, beside the outer steps they belong to.

    METARUN_DATA=... python benchmarks/diagnostics.py        # sinusoid, and Omniglot where METARUN_DATA has it
    python benchmarks/diagnostics.py --steps 5               # fewer repetitions

Steps and measures alternate within one run, so that what else the machine does falls on both. The share is
measures / (log_every * step + measures), as training spends it. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

PAIRS = [(algo, "sinusoid") for algo in ("maml", "fomaml", "reptile", "imaml")]
PAIRS += [(algo, "omniglot") for algo in ("maml", "fomaml", "reptile", "imaml", "protonet", "matchingnet")]


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def alternate(actions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each action, taken in turns after a first round that is not counted."""
    rounds = [[timed(action) for action in actions] for _ in range(repeats + 1)]
    return [float(v) for v in np.median(rounds[1:], axis=0)]


def measure(algo: str, data: str, repeats: int) -> str:
    """One row of the table."""

    import metarun
    from metarun.training.experiment import assemble
    from metarun.training.meta_gradient import build_step_gradient, should_compile_step

    config = metarun.compose([f"algo={algo}", f"data={data}", "diagnostics=full"])
    trainer = assemble(config).trainer()
    state = trainer.start()
    pays = should_compile_step(trainer, state.params)
    meta_gradient = build_step_gradient(trainer, state.params, pays)
    tasks = trainer.tasks(0)
    found = meta_gradient(state.params, tasks)
    assert trainer.measures is not None
    measures, probe = trainer.measures, trainer.probe
    assert probe is not None
    step, basic = alternate(
        [lambda: meta_gradient(state.params, tasks), lambda: measures(state.params, found.grads, tasks)], repeats
    )
    every = config.train.log_every
    probing = alternate([lambda: probe(state.params)], 1)[0]
    cells = f"{algo} {data}{' (compiled)' if pays else ''}", f"{1e3 * step:.1f}", f"{1e3 * basic:.1f}", f"{every}"
    return f"| {' | '.join(cells)} | {100 * basic / (every * step + basic):.1f} % | {probing:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="repetitions of each")
    parser.add_argument("--data", default=None, help="only this data set")
    arguments = parser.parse_args()
    print("| algorithm and data | step, ms | measures, ms | log_every | share of basic | a probe of full, s |")
    print("|---|---|---|---|---|---|")
    for algo, data in PAIRS:
        if arguments.data in (None, data):
            print(measure(algo, data, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
