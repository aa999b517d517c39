"""metarun beside higher, TorchOpt, JAX and a plain torch loop, on the same tasks, weights, losses and threads.

    python -m benchmarks.peers                    # all cases
    python -m benchmarks.peers --quick            # three minutes
    python -m benchmarks.peers --only omniglot    # the cases with this in their name
    python -m benchmarks.peers --grid             # MAML against the loop over ways, shots, queries, tasks, filters
    python -m benchmarks.peers --show FILE.json   # the figures of an earlier run as a table in Markdown

A measured step is one meta-gradient and one update of the weights, on fixed tasks. Before anything is timed, loss and
meta-gradient of every side are held against the plain loop's, in float64 on two of the tasks, and the losses around its
first update in float32 on all; a disagreement ends the benchmark. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers import table
from benchmarks.peers.cases import CASES, Case, grid
from benchmarks.peers.measure import Disagreement, Failed, Plan, measure, thread_variables
from benchmarks.peers.tasks import IMAGES, synthesise

FORMS = ("metarun", "loop", "jax-vmap", "jax-map", "jax-unrolled", "jax-patches")
RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> int:
    arguments = parsed()
    if arguments.show:
        say(*table.markdown(json.loads(arguments.show.read_text())))
        return 0
    thread_variables(arguments.threads)
    about = table.machine(arguments.threads, arguments.device)
    say(*table.facts(about))
    cases = chosen(arguments)
    plan = Plan(arguments.rounds or (3 if arguments.quick or arguments.grid else 7), 0.5 if arguments.quick else 1.0)
    name = "grid" if arguments.grid else "quick" if arguments.quick else "peers"
    target = arguments.json or RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    with tempfile.TemporaryDirectory(prefix="metarun-bench-") as folder:
        os.environ["METARUN_CACHE"] = str(Path(folder, "cache"))
        for kind in IMAGES.keys() & {case.images for case in cases}:
            synthesise(kind, Path(folder, kind))
        try:
            for results in run(cases, Path(folder), arguments.threads, plan):
                table.write(target, about, results)
        except Disagreement as error:
            sys.exit(f"the sides do not compute the same: {error}")
        except Failed as error:
            sys.exit(str(error).strip().splitlines()[-1])
    say(f"written: {target}")
    return 0


def run(cases: tuple[Case, ...], folder: Path, threads: int, plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """The results so far, after each case."""
    results = []
    for case in cases:
        say(f"{case.name} ...")
        results.append(measure(case, folder, threads, plan, say))
        say("", *table.lines(results[-1]))
        yield results


def chosen(arguments: argparse.Namespace) -> tuple[Case, ...]:
    cases = grid() if arguments.grid else CASES
    if arguments.quick:
        cases = tuple(case for case in cases if case.quick)
    if arguments.forms:
        cases = tuple(replace(case, sides=FORMS) for case in cases if "jax" in case.sides)
    if arguments.device == "cuda":
        cases = tuple(replace(c, device="cuda", sides=tuple(s for s in c.sides if s != "jax")) for c in cases)
    return tuple(case for case in cases if arguments.only in case.name)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the main cases, fewer rounds")
    parser.add_argument("--grid", action="store_true", help="metarun against the loop over sizes of episodes")
    parser.add_argument("--forms", action="store_true", help="the forms that JAX was tried in")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--rounds", type=int, default=None, help="turns that each side takes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="on cuda without JAX")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="where the figures go (benchmarks/results/...)")
    parser.add_argument("--show", type=Path, default=None, metavar="FILE", help="an earlier run's figures, as Markdown")
    return parser.parse_args()


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
