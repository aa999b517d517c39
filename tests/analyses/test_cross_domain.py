"""The weights of a run on test tasks of other data sets."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.analyses import Run, analyse, refusal, train
from helpers.colours import class_folders
from PIL import Image

import metarun
from metarun.analyses.analysis import Context
from metarun.analyses.cross_domain import name_apart
from metarun.jobs.train_together import train_runs
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import build_dataset
from metarun.types import EpisodeSpec


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """Six classes of pictures of noise, which are hard to tell apart."""
    for name in (f"kind{i}" for i in range(6)):
        (folder / "other" / name).mkdir(parents=True)
        draw = np.random.default_rng([*name.encode()])
        for i in range(5):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "other" / name / f"{i}.png")
    return folder / "other"


def test_each_set_has_the_score_of_job_evaluate_and_an_interval_of_independent_samples(
    protonet: Run, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = f"analysis.sets={{new: {{data: folder, root: {other}, split: all}}, cub: {{root: {other}, split: ratio}}}}"
    summary, rows, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=6")
    own, new, cub = rows
    found = [(r["data"], r["own"], r["classes"]) for r in rows]
    assert found == [("folder", True, 6), ("new", False, 6), ("cub", False, 2)]
    assert own["mean"] == json.loads((protonet[1] / "summary.json").read_text())["mean"]
    assert new["changed"] == "image_size 84 to 16"
    assert "difference" not in own

    more = ["data=folder", f"data.root={other}", "data.csv=null", "data.split=all", "data.ways=2", "data.queries=2"]
    more += ["data.test_queries=2", "device.compile=false", "report=false"]
    config = metarun.compose(["job=evaluate", f"run={protonet[1]}", *more])
    tested = metarun.run(config, other.parent / "evaluated").summary
    assert (new["mean"], new["episodes"]) == (tested["mean"], tested["episodes_sha256"][:12])
    assert 0 < new["mean"] < 1

    apart = np.var(new["scores"], ddof=1) + np.var(own["scores"], ddof=1)
    assert new["difference"] == pytest.approx(np.mean(new["scores"]) - np.mean(own["scores"]))
    assert new["half_difference"] == pytest.approx(1.96 * (apart / 6) ** 0.5)
    assert summary["sets"]["cub"]["mean"] == cub["mean"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["data", "classes", "ways", "shots", "test", "accuracy", "difference", "changed"] in lines
    assert ["folder", "(the", "run's)", "6", "2", "1", "100.00", "±", "0.00", "%"] in lines


def test_population_statistics_are_those_of_the_set_or_of_the_run(protonet: Run, other: Path) -> None:
    sets = f"analysis.sets={{new: {{data: folder, root: {other}, split: all}}}}"
    _, of_set, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=6")
    _, of_run, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=6", "analysis.statistics=run")
    assert of_set[0] == of_run[0]
    assert of_set[1]["episodes"] == of_run[1]["episodes"]
    assert of_set[1]["scores"] != of_run[1]["scores"]


def test_a_set_without_enough_classes_is_left_out_with_the_reason(
    protonet: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(folder / "few", [f"c{i}" for i in range(4)], each=5)
    sets = f"analysis.sets={{few: {{data: folder, root: {root}}}}}"
    _, rows, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=3")
    reason = rows[1]["left_out"]
    assert reason.startswith("ways=2: the test split has 1 class, and a task needs 2 or more")
    assert reason.endswith("data.split=all tests a trained run on all 4 classes")
    assert "left out: " in capsys.readouterr().out


@pytest.fixture(scope="module")
def learners(folder: Path, photographs: list[str]) -> Path:
    """Runs of other learners: one with larger images, one with a head that is trained with more classes."""
    resized = [setting for setting in photographs if not setting.startswith("data.image_size=")]
    train(folder / "learners" / "larger", "algo=r2d2", *resized, "data.image_size=24", "data.shots=2", "seed=3")
    train(folder / "learners" / "head", "algo=maml", *photographs, "algo.train_ways=3", "algo.zero_head=true")
    return folder / "learners"


def test_several_runs_are_a_table_with_paired_differences_to_the_first(
    protonet: Run, other: Path, learners: Path, photographs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    new = f"{{data: folder, root: {other}, split: all}}"
    settings = [f"analysis.sets={{new: {new}}}", "analysis.tasks=6", f"analysis.others=[{learners},{protonet[1]}]"]
    summary, rows, folder = analyse(protonet, "cross_domain", *settings)
    by_cell = {(r["run"], r["data"]): r for r in rows}
    assert [*by_cell] == [(run, data) for run in ("protonet", "head", "larger") for data in ("folder", "new")]
    assert [(by_cell[run, "new"]["algo"], by_cell[run, "new"]["seed"]) for run in summary["runs"]] == [
        ("protonet", 0),
        ("maml", 0),
        ("r2d2", 3),
    ]

    for run in ("head", "larger"):  # what job=evaluate finds with the first run's shots
        for data, asked in (("folder", []), ("new", ["data=folder", f"data.root={other}", "data.split=all"])):
            own = [*asked, *(["data.csv=null"] if asked else []), "data.ways=2", "data.shots=1", "data.queries=2"]
            command = ["job=evaluate", f"run={learners / run}", *own, "data.test_queries=2"]
            config = metarun.compose([*command, "algo.train_ways=3"] if run == "head" else command)
            tested = metarun.run(dataclasses.replace(config, report=False), folder / f"tested-{run}-{data}").summary
            found = by_cell[run, data]
            assert (found["mean"], found["episodes"]) == (tested["mean"], tested["episodes_sha256"][:12])

    for run in ("head", "larger"):
        first, found = by_cell["protonet", "new"], by_cell[run, "new"]
        differences = np.array(found["scores"]) - np.array(first["scores"])
        assert found["to_first"] == pytest.approx(differences.mean())
        assert found["half_to_first"] == pytest.approx(1.96 * differences.std(ddof=1) / 6**0.5)
        own = np.mean(by_cell[run, "folder"]["scores"])
        assert found["difference"] == pytest.approx(found["mean"] - own)
    assert "to_first" not in by_cell["protonet", "new"]

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["run", "algo", "seed", "folder", "(the", "first", "run's)", "new"] in lines
    assert ["difference", "to", "protonet,", "task", "by", "task"] in lines
    assert ["changed,", "new:", "image_size", "84", "to", "24", "(larger)"] in lines
    assert summary["runs"]["head"]["new"]["to_first"] == by_cell["head", "new"]["to_first"]


def test_a_head_that_was_trained_with_more_classes_has_the_rows_of_the_test(learners: Path) -> None:
    config = metarun.compose(["job=analyze", f"run={learners / 'head'}", "analysis=cross_domain"])
    context = Context(config, RunFolder(learners / "head"), learners, train_runs)
    assert context.open_for_test(learners / "head").params["head.weight"].shape[0] == 2


def test_a_set_has_the_same_pictures_for_runs_with_images_of_other_sizes(
    protonet: Run, other: Path, learners: Path
) -> None:
    """Or their differences task by task would be none."""
    first, other_run = (metarun.compose(["job=evaluate", f"run={run}"]) for run in (protonet[1], learners / "larger"))
    spec, which = EpisodeSpec(2, 1, 2), ("test", 0, 0, range(6))
    same, larger = (build_dataset(config) for config in (first, other_run))
    assert (same.input_shape(), larger.input_shape()) == ((3, 16, 16), (3, 24, 24))
    for named in ("class_names", "query_names"):
        assert getattr(same, named)(*which, spec) == getattr(larger, named)(*which, spec)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ("[/no/such]", "analysis.others: /no/such: there is no such folder"),
        ("[{other}]", "analysis.others: {other}: is not a run folder and holds none"),
        ("[{points}]", "analysis.others={points}: data.ways=2: must be 1: data=sinusoid is regression"),
        ("[{blank}]", "analysis.others={blank}: {blank}/checkpoints: no checkpoint to read"),
        ("1", "analysis.others=1: must be a list"),
    ],
)
def test_runs_that_do_not_go_together_are_refused_in_one_line(
    protonet: Run, points: Run, other: Path, folder: Path, others: str, message: str
) -> None:
    places = {"other": other, "points": points[1], "blank": folder / "blank"}
    shutil.copytree(protonet[1], folder / "blank", dirs_exist_ok=True)
    shutil.rmtree(folder / "blank" / "checkpoints")
    settings = [f"analysis.sets={{cub: {other}}}", f"analysis.others={others.format(**places)}"]
    assert refusal(lambda: analyse(protonet, "cross_domain", *settings)).startswith(message.format(**places))


def test_runs_of_functions_are_compared_where_their_inputs_and_metrics_are_alike(
    points: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for algo, data in (("cnp", "sinusoid"), ("reptile", "sinusoid"), ("maml", "linear")):
        settings = [s for s in points[0] if not s.startswith(("algo", "data=", "model"))]
        train(folder / f"{algo}-{data}", f"algo={algo}", f"data={data}", *settings)

    def compared(name: str) -> list[dict[str, Any]]:
        sets = "analysis.sets={noisy: {data: sinusoid, noise: 0.5}}"
        return analyse(points, "cross_domain", sets, "analysis.tasks=4", f"analysis.others=[{folder / name}]")[1]

    assert len({row["episodes"] for row in compared("reptile-sinusoid")}) == 2
    assert "test mse, 5-shot, 4 tasks of each data set" in capsys.readouterr().out
    assert refusal(lambda: compared("cnp-sinusoid")).startswith("analysis.others=cnp-sinusoid: reports log_likelihood,")
    wrong = "analysis.others=maml-linear: learned regression of inputs ["
    assert refusal(lambda: compared("maml-linear")).startswith(wrong)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("null", "analysis.sets=None: must be {NAME: PATH, ...}"),
        ("{birds: /nowhere}", "analysis.sets.birds=/nowhere: birds is no data set, choices: "),
        ("{x: {data: fodler}}", "analysis.sets.x.data=fodler: did you mean folder?"),
        ("{cub: {root: /nowhere, ways: 3}}", "analysis.sets.cub.ways=3: cannot be set; all sets have that of the run"),
        ("{cub: {rot: /nowhere}}", "analysis.sets.cub.rot: no such setting of data=cub, did you mean root"),
        ("{cub: /no/such}", "analysis.sets.cub: data.root=/no/such: there is no such folder"),
        ("{cub: 3}", "analysis.sets.cub=3: must be {NAME: PATH, ...}"),
        ("{sinusoid: null}", "analysis.sets.sinusoid=sinusoid: is regression of inputs [1]; the run learned"),
    ],
)
def test_wrong_sets_are_refused_in_one_line_before_anything_is_measured(protonet: Run, sets: str, message: str) -> None:
    assert refusal(lambda: analyse(protonet, "cross_domain", f"analysis.sets={sets}")).startswith(message)


def test_folders_of_the_same_name_are_told_apart_by_what_differs() -> None:
    seeds = [Path("/rows/maml/seed0"), Path("/rows/anil/seed0")]
    assert name_apart(seeds) == ["maml", "anil"]
    assert name_apart([*seeds, Path("/rows/maml/seed1")]) == ["maml/seed0", "anil/seed0", "maml/seed1"]
    assert name_apart([Path("a/1"), Path("b/2")]) == ["1", "2"]
