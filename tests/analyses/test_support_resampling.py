"""The same test tasks with other support sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.alphabets import SPEC, alphabets, draw, drawn_classes
from helpers.analyses import Run, analyse

import metarun
from metarun.analyses.analysis import Context
from metarun.analyses.support_resampling import SupportResampling, resample_support
from metarun.data.sinusoid import Sinusoid
from metarun.errors import UserError
from metarun.jobs.train_together import train_runs
from metarun.report.statistics.variance import nested_components
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import assemble
from metarun.types import Batch, EpisodeSpec, Task

SINUSOID = Sinusoid((0.1, 5.0), (0.0, 3.14), (-5.0, 5.0), 0.0)


@pytest.mark.parametrize("data", [alphabets(), SINUSOID], ids=["images", "points"])
def test_support_sets_are_disjoint_and_the_queries_the_same(data: Any) -> None:
    draws = 4
    task = resample_support(data, 7, SPEC, draws)
    whole = draw(data, range(7, 8), SPEC._replace(shots=SPEC.shots * draws))
    assert torch.equal(task.support.x.flatten(0, 1), whole.support.x[0])
    rows = [x.numpy().tobytes() for x in torch.cat([task.support.x.flatten(0, 1), task.query.x[0]])]
    assert len(set(rows)) == len(rows)
    for r in range(draws):
        assert torch.equal(task.query.x[r], whole.query.x[0])
        assert torch.equal(task.query.y[r], whole.query.y[0])
        if data is not SINUSOID:
            assert torch.bincount(task.support.y[r]).tolist() == [SPEC.shots] * SPEC.ways
            shown = drawn_classes(Task(*(Batch(b.x[r : r + 1], b.y[r : r + 1]) for b in task)))[0]
            names = {int(y): int(c) for y, c in zip(torch.cat([b.y[r] for b in task]), shown, strict=True)}
            labelled = torch.cat([b.y[r] for b in task]).tolist()
            assert [names[y] for y in labelled] == shown.tolist()  # a label means one class in all draws


class EpisodeSource:
    """The part of an experiment that the sizes depend on."""

    def __init__(self, dataset: Any, spec: EpisodeSpec) -> None:
        self.dataset, self.test_spec = dataset, spec


@pytest.mark.parametrize(
    ("images", "shots", "queries", "asked", "expected"),
    [
        (20, 1, 15, None, (10, 10)),  # fewer queries so that ten draws fit
        (20, 5, 15, None, (3, 5)),  # fewer draws
        (20, 1, 15, 15, (5, 15)),  # the queries that were asked for
        (12, 5, 15, None, (2, 2)),  # fewer queries than five, for two draws
        (200, 5, 15, None, (10, 15)),
    ],
)
def test_as_many_draws_are_made_as_the_classes_hold(
    images: int, shots: int, queries: int, asked: int | None, expected: tuple[int, int]
) -> None:
    experiment: Any = EpisodeSource(alphabets(each=images), EpisodeSpec(3, shots, queries))
    assert SupportResampling(5, 10, asked).choose_sizes(experiment) == expected


def test_too_few_images_for_two_support_sets_are_refused_in_one_line() -> None:
    experiment: Any = EpisodeSource(alphabets(each=12), EpisodeSpec(3, 6, 5))
    with pytest.raises(UserError, match=r"^analysis.draws=10: not even two support sets of 6 shots .* images of class"):
        SupportResampling(5, 10, None).choose_sizes(experiment)


def test_support_sets_are_resampled_and_the_table_resumes(points: Run) -> None:
    summary, rows, folder = analyse(points, "support_resampling", "analysis.tasks=4", "analysis.draws=3")
    assert [len(r["scores"]) for r in rows] == [3] * 4
    expected = nested_components([r["scores"] for r in rows])
    assert summary["share_support"] == pytest.approx(expected.share)
    assert summary["worst_draw"] == pytest.approx(np.mean([max(r["scores"]) for r in rows]))
    table = folder / "results.jsonl"
    lines = table.read_text().splitlines(True)
    table.write_text("".join(lines[:2]) + lines[2][:20])
    assert analyse(points, "support_resampling", "analysis.tasks=4", "analysis.draws=3")[1] == rows


def test_each_draw_is_scored_as_if_it_were_the_only_one(points: Run) -> None:
    _, rows, _ = analyse(points, "support_resampling", "analysis.tasks=2", "analysis.draws=2")
    experiment = assemble(metarun.compose(points[0]))
    context = Context(experiment.config, RunFolder(points[1]), points[1], train_runs)
    learner, params = experiment.tested, context.run.params
    for index, row in enumerate(rows):
        support, query = resample_support(experiment.dataset, index, experiment.test_spec, 2)
        for r in range(2):
            *_, phi = learner.adaptations(params, Batch(support.x[r], support.y[r]), 3)
            score = learner.loss.score(learner.predict(phi, query.x[r]), query.y[r])
            assert float(score) == pytest.approx(row["scores"][r], rel=1e-4)  # there by vmap, in float32
