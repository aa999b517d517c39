"""Trainings of one small program: side by side in one process, over one after another in one process.

    python -m benchmarks.trainings                          # 4 and 16 seeds of four learners on sinusoids
    python -m benchmarks.trainings --steps 200 --rounds 1

What `analysis=seeds` does with short, uncompiled trainings, with records, alarms, checkpoints and two validations, on
one thread. Times are of the training (`seconds` in summary.json). The two take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from pathlib import Path

LEARNERS = {
    "MAML, 1 inner step": ["algo=maml"],
    "MAML, 5 inner steps": ["algo=maml", "algo.inner_steps=5", "algo.test_inner_steps=5"],
    "Reptile": ["algo=reptile"],
    "iMAML": ["algo=imaml"],
}


def train(learner: str, runs: int, steps: int, together: bool) -> float:
    """Seconds of a training, the mean over the runs."""
    import metarun
    from metarun.jobs.train_together import train_runs
    from metarun.storage.run_folder import RunFolder

    settings = [*LEARNERS[learner], "data=sinusoid", f"train.steps={steps}", f"train.eval_every={steps // 2}"]
    settings += [f"device.side_by_side={together}", "device.threads=1", "device.compile=off", "report=false"]
    with tempfile.TemporaryDirectory() as folder:
        asked = [(metarun.compose([*settings, f"seed={s}"]), RunFolder(Path(folder) / str(s))) for s in range(runs)]
        return statistics.mean(result.summary["seconds"] for result in train_runs(asked, range(runs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print("| learner | runs | one after another, ms a step | side by side, ms a step of a run | ratio |")
    print("|---|---|---|---|---|")
    for learner in LEARNERS:
        for runs in (4, 16):
            rounds = []
            for _ in range(asked.rounds):
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    alone = process.apply(train, (learner, 2, asked.steps, False))
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    rounds.append((alone, process.apply(train, (learner, runs, asked.steps, True))))
            ratios = sorted(a / b for a, b in rounds)
            alone, beside = (1e3 * statistics.median(r[i] for r in rounds) / asked.steps for i in (0, 1))
            spread = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {learner} | {runs} | {alone:.3f} | {beside:.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
