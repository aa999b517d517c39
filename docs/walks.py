"""Draw where a trained PEARL walks on the point robot, to docs/img/walks.png: python docs/walks.py RUN

Goals lie on the grey arc. Left: z ~ N(0, I), before anything is known of the goal. Right: z the mean of the posterior
after all of a test's explored trajectories, for its first six goals (stars).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from figures import COLOURS, plt, save
from matplotlib.axes import Axes
from torch import Tensor

import metarun
from metarun.config.from_run import reuse_settings
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.evaluation import EPISODE_SEED
from metarun.training.experiment import Experiment, assemble
from metarun.types import Batch, Params

WALKS, COUNTED, GOALS = 60, 200, 6
NEAR = 0.2


def load(run: Path) -> tuple[Experiment, Params]:
    """The run's learner and the weights that it was tested with."""
    typed = ["job=evaluate", f"run={run}"]
    experiment = assemble(reuse_settings(metarun.compose(typed), typed, metarun.compose))
    state = experiment.trainer().start()
    checkpoint.restore_tested(checkpoint.best_of(RunFolder(run)), state)
    return experiment, state.params


def walk(learner: Any, params: Params, y: Tensor, z: Tensor) -> Tensor:
    """Places of a trajectory for each z, [n, H + 1, 2]."""
    start = torch.zeros(len(z), 2)
    path = learner.collection.roll_out(learner, params, start, y.expand(len(z), -1), z)
    return torch.cat([start[:, None], path.next], 1)


def unknowing(axes: Axes, experiment: Experiment, params: Params) -> None:
    learner: Any = experiment.tested
    dataset: Any = experiment.dataset
    z = torch.randn(COUNTED, learner.settings.latent, generator=torch.Generator().manual_seed(0))
    walks = walk(learner, params, dataset.tasks("test")[:1], z)
    for places in walks[:WALKS]:
        axes.plot(*places.T, color="0.45", lw=0.6)
    axes.set_title("nothing is known")
    (x, y), degrees = walks[:, -1].T, 180 / torch.pi
    near = (torch.hypot(x, y) - 1).abs() <= NEAR
    angles = torch.atan2(y, x) * degrees
    where = f"{angles.min():.0f} to {angles.max():.0f} degrees"
    print(f"of {COUNTED} walks {int(near.sum())} end within {NEAR} of the unit circle, all of them at {where}")


def knowing(axes: Axes, experiment: Experiment, params: Params) -> None:
    learner: Any = experiment.tested
    spec = experiment.test_spec
    tasks = experiment.dataset.episodes("test", EPISODE_SEED, 0, range(GOALS), spec)
    for i, colour in enumerate(COLOURS[:GOALS]):
        support, y = Batch(tasks.support.x[i], tasks.support.y[i]), tasks.query.y[i, :1]
        *_, belief = learner.explore_steps(params, support, spec.shots)
        (places,) = walk(learner, params, y, belief.z.mu[None])
        axes.plot(*places.T, color=colour, lw=1.2)
        axes.plot(*y[0, :2], "*", color=colour, ms=9)
    axes.set_title(f"after {spec.shots} explored trajectories")


def main(run: Path) -> None:
    experiment, params = load(run)
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained", sharex=True, sharey=True)
    angles = torch.linspace(0, torch.pi, 100)
    with torch.no_grad():
        for axes, draw in zip(panels, (unknowing, knowing), strict=True):
            axes.plot(angles.cos(), angles.sin(), color="0.8", lw=8, zorder=0)
            draw(axes, experiment, params)
            axes.set_aspect("equal")
    save(figure, "walks.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
