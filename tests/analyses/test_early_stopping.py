"""Which weights of a run are best for a data set, by activations of inputs without labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.analyses import Run, analyse, refusal, train

import metarun
from metarun.diagnostics.activation_moments import aggregate_moments, find_parting
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.experiment import assemble

MORE = ["train.steps=10", "train.eval_every=2", "train.keep_weights=true", "optim.lr=0.03"]


@pytest.fixture(scope="module")
def kept(folder: Path, photographs: list[str]) -> Run:
    settings, path = train(folder / "kept", "algo=maml", *photographs, *MORE)
    shutil.copy(RunFolder(path).weights_of(10), RunFolder(path).best)  # as if the last validation were the best
    return settings, path


def test_the_weights_of_every_validation_are_kept(kept: Run) -> None:
    source = RunFolder(kept[1])
    assert source.kept_steps() == [2, 4, 6, 8, 10]
    last, of_last_step = (checkpoint.read_weights(path) for path in (source.last, source.weights_of(10)))
    assert all(torch.equal(last[name], of_last_step[name]) for name in last)
    assert source.weights_of(10).stat().st_size < source.last.stat().st_size / 2


def test_the_choice_is_that_of_the_formulas(kept: Run, folder: Path) -> None:
    other = folder / "photos"
    sets = f"analysis.sets={{new: {{data: folder, root: {other}, split: all}}, own: {{data: folder, root: {other}}}}}"
    summary, rows, _ = analyse(kept, "early_stopping", sets, "analysis.tasks=5")
    assert [(row["data"], row["step"]) for row in rows] == [(n, s) for n in ("new", "own") for s in (2, 4, 6, 8, 10)]
    source = RunFolder(kept[1])
    best = 10
    for name in ("new", "own"):
        own = [row for row in rows if row["data"] == name and row["step"] <= best]
        expected = None
        for layer, moments in own[0]["moments"]["source"].items():
            for moment in moments:
                target, base = ([row["moments"][k][layer][moment] for row in own] for k in ("target", "source"))
                parting = find_parting(target, base)
                if parting and (not expected or parting.score > expected[1].score):
                    expected = own[parting.start]["step"], parting
        found = summary["sets"][name]
        assert found["by_activations"]["step"] == (expected[0] if expected else best)
        assert found["by_validation"]["step"] == best
        means = {row["step"]: row["mean"] for row in rows if row["data"] == name}
        assert found["best_of_test"]["mean"] == max(means.values())
        difference = means[found["by_activations"]["step"]] - means[best]
        assert found["difference"] == pytest.approx(difference, abs=1e-6)
    validations = {r["step"]: r["mean"] for r in source.read_records() if r["kind"] == "val"}
    assert {row["step"]: row["validation"] for row in rows} == validations


def test_the_moments_are_those_of_one_support_set_and_of_training_inputs(kept: Run) -> None:
    _, rows, _ = analyse(kept, "early_stopping", "analysis.tasks=5")
    experiment = assemble(metarun.compose([*kept[0]]))
    x = experiment.dataset.episodes("test", 0, 0, range(5, 6), experiment.test_spec).support.x[0]
    weights = checkpoint.read_weights(RunFolder(kept[1]).weights_of(6))
    expected = experiment.algorithm.model.activations(weights, x)
    found = rows[2]["moments"]["target"]
    assert {layer: pytest.approx(aggregate_moments(h), rel=1e-5) for layer, h in expected.items()} == found


def test_a_run_without_kept_weights_is_refused(protonet: Run) -> None:
    message = refusal(lambda: analyse(protonet, "early_stopping"))
    assert "has the weights of 0 steps, and needs 3" in message
    assert "train.keep_weights=true" in message


def test_a_resumed_run_keeps_the_weights_of_the_whole_run(folder: Path, photographs: list[str], kept: Run) -> None:
    settings = ["algo=maml", *photographs, *MORE]
    stopped = folder / "stopped"
    metarun.run(metarun.compose([*settings, "train.max_minutes=0.000001"]), stopped)
    assert RunFolder(stopped).kept_steps() != [2, 4, 6, 8, 10]
    metarun.run(metarun.compose([f"resume={stopped}", "train.max_minutes=null"]), stopped)
    ours, theirs = RunFolder(stopped), RunFolder(kept[1])
    assert ours.kept_steps() == [2, 4, 6, 8, 10]
    for step in ours.kept_steps():
        mine, other = (checkpoint.read_weights(f.weights_of(step)) for f in (ours, theirs))
        assert all(torch.equal(mine[name], other[name]) for name in mine)
