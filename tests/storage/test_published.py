"""Rows with a published figure: they compose, train two steps, and what a run reached is held against the paper."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.image_files import png

import metarun
from benchmarks import reproduce, results
from benchmarks.ship import ship
from benchmarks.tables import TABLES, over_seeds
from metarun.config import catalogue
from metarun.config.schema import Config, check
from metarun.errors import UserError
from metarun.report.statistics.intervals import normal_interval
from metarun.report.statistics.student import t_quantile
from metarun.storage.published import Comparison, compare, describe
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint

CONF = Path(__file__).resolve().parents[2] / "conf"
PUBLISHED = [
    catalogue.flat_name(name)
    for name in catalogue.list_options("experiment")
    if "published:" in (CONF / "experiment" / f"{name}.yaml").read_text()
]
IMAGES = ("omniglot_", "miniimagenet_", "cifar_fs_")
SHORT = [row for row in PUBLISHED if row.startswith("omniglot_5w1s_") and row.endswith("_cpu")] + ["gp_np"]
# tests/test_completion.py trains on data=completion.
TRAINED = [row for row in PUBLISHED if not row.startswith("completion_")]
ROWS = [row if row in SHORT else pytest.param(row, marks=pytest.mark.long) for row in TRAINED]
CHECKED = [
    row if row in SHORT or row.startswith("sinusoid_5s_") else pytest.param(row, marks=pytest.mark.long)
    for row in PUBLISHED
]
ABSENT = [name for name in ("gymnasium", "mujoco") if importlib.util.find_spec(name) is None]
SIZES = ("ways", "shots", "queries", "test_queries", "rotations")
TINY = (
    *("train.steps=2", "train.tasks=2", "val.tasks=1", "test.tasks=2", "test.steps=1", "report=false"),
    *("diagnostics=off", "device.compile=false", "device.chunk_size=null", "model.filters=4"),
)


@pytest.fixture(scope="module", autouse=True)
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of small random pictures, as many classes and pictures as the largest episode needs."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, classes in (("train", 64), ("val", 20), ("test", 20)):
        for name in range(classes):
            (root / split / f"{split}{name}").mkdir(parents=True)
            for i in range(30 if split == "train" else 20):
                pixels = draw.integers(0, 255, (16, 16), dtype=np.uint8)
                (root / split / f"{split}{name}" / f"{i}.png").write_bytes(png(pixels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield root


def small(row: str, root: Path) -> Config:
    """The row with its algorithm, episodes and schedule; one on images on the small pictures."""
    if row.startswith("halfcheetah_") and ABSENT:
        pytest.skip(f"needs {' and '.join(ABSENT)}: pip install 'metarun[rl]'")
    images = row.startswith(IMAGES)
    config = metarun.compose([f"experiment={row}", *(TINY if images else TINY[:-1])])
    if images:
        own = metarun.compose(["data=folder", f"data.root={root}", "data.image_size=16"]).data
        config.data = own | {k: config.data[k] for k in SIZES}
        config.published = dataclasses.replace(config.published)
    return config


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_two_steps(row: str, stand_in: Path, tmp_path: Path) -> None:
    config = small(row, stand_in)
    result = metarun.run(config, tmp_path)
    assert result.status == "completed"
    assert result.summary["published"]["source"]


@functools.cache
def composed(row: str) -> Config:
    """To be read alone: composing takes a third of a second."""
    return metarun.compose([f"experiment={row}"])


@pytest.mark.parametrize("row", CHECKED)
def test_every_row_says_where_its_figure_is_printed(row: str) -> None:
    config = composed(row)
    check(config)
    assert config.published.source
    if config.published.value is not None:
        assert 40 < config.published.value < 100
        assert f"_{config.data['ways']}w{config.data['shots']}s_" in row
        assert config.train.steps >= 700
    if config.published.trained_as:
        assert trained(config) == trained(composed(config.published.trained_as))


ON_A_CLASSIFIER = ("SimpleShot", "simpleshot", "Baseline", "TIM")


def trained(config: Config) -> tuple[Any, ...]:
    """What decides a training, with the sizes of its episodes as they come out."""
    sizes = ("train_ways", "train_shots")
    data = {k: v for k, v in config.data.items() if k not in ("ways", "shots", "test_queries")}
    algo = {k: v for k, v in config.algo.items() if k not in sizes}
    if algo["_target_"].rpartition(".")[2] in ON_A_CLASSIFIER:  # other settings are of the test, see below
        algo = {"classifier": algo.get("classifier", "linear")}
    episodes = tuple(config.algo.get(f"train_{k}") or config.data[k] for k in ("ways", "shots"))
    # Reptile's gradient asks no query set, so that what normalises one makes no difference (test_meta_gradients.py).
    model = {k: v for k, v in config.model.items() if k != "norm" or "reptile" not in config.algo["_target_"]}
    return config.seed, algo, data, model, config.optim, config.train, episodes


@pytest.mark.parametrize("row", ["omniglot_5w1s_baseline_cpu", "omniglot_5w1s_tim_cpu"])
def test_learners_on_a_classifier_train_the_same_weights(row: str, stand_in: Path, tmp_path: Path) -> None:
    assert composed(row).published.trained_as == "omniglot_5w1s_simpleshot_cpu"
    runs = [metarun.run(small(name, stand_in), tmp_path / name) for name in (row, "omniglot_5w1s_simpleshot_cpu")]
    weights, expected = (run.summary["params_sha256"] for run in runs)
    assert weights == expected


@pytest.mark.parametrize("row", [row for row in PUBLISHED if row.endswith("_cpu")])
def test_a_shorter_row_is_tested_as_the_published_one(row: str) -> None:
    short, whole = composed(row), composed(row.removesuffix("_cpu"))
    assert short.train.steps * short.train.tasks < whole.train.steps * whole.train.tasks
    for key in ("ways", "shots", "test_queries", "split", "rotations"):
        assert short.data[key] == whole.data[key], key
    assert (short.model["norm"], short.published.value) == (whole.model["norm"], whole.published.value)


# ------------------------------------------------------------------------------------------------- comparing


SUMMARY = {
    "metric": "accuracy",
    "mean": 0.975,
    "ci95": 0.003,
    "curve": [{"step": 0, "mean": 3.0, "ci95": 0.2}, {"step": 5, "mean": 0.4, "ci95": 0.05}],
}
NONE = {"value": None, "ci95": None, "values": [], "steps": [], "source": "somewhere", "goal": None, "trained_as": None}


@pytest.mark.parametrize(
    ("value", "ci95", "verdict"),
    [(97.5, None, "agrees"), (97.79, None, "agrees"), (97.81, None, "below"), (97.99, 0.4, "agrees"),
     (98.01, 0.4, "below"), (97.19, None, "above")],
)  # fmt: skip
def test_a_row_agrees_where_a_test_of_the_difference_does(value: float, ci95: float | None, verdict: str) -> None:
    """sqrt(0.3^2 + 0.4^2) = 0.5: the intervals touch up to a difference of 0.7."""
    (found,) = compare(NONE | {"value": value, "ci95": ci95}, SUMMARY)
    assert found.verdict == verdict


def test_a_regression_is_compared_after_each_step_that_the_paper_names() -> None:
    found = compare(NONE | {"steps": [1, 5], "values": [0.67, 0.38]}, SUMMARY | {"metric": "mse"})
    assert found == [Comparison(5, 0.38, 0.0, 0.4, 0.05)]
    assert found[0].verdict == "agrees"
    assert describe(found, "A\nB") == "published: 0.38 (no interval) after 5 steps, this agrees; A B"


def test_agreement_is_rejected_for_5_percent_of_equal_means() -> None:
    """Two independent means of 100 and 50 tasks with the same expectation; 2 000 pairs, three standard errors."""
    rng, pairs = np.random.default_rng(0), 2000
    verdicts = []
    for _ in range(pairs):
        ours, theirs = (normal_interval(rng.normal(0.5, 0.1, n)) for n in (100, 50))
        summary = {"metric": "mse", "mean": ours.mean, "ci95": ours.half, "curve": []}
        verdicts.append(compare(NONE | {"value": theirs.mean, "ci95": theirs.half}, summary)[0].verdict)
    rejected = 1 - verdicts.count("agrees") / pairs
    assert rejected == pytest.approx(0.05, abs=0.005 + 3 * math.sqrt(0.05 * 0.95 / pairs))  # 1.96 for t: 0.055


def test_a_mean_without_an_interval_decides_nothing() -> None:
    row = SUMMARY["curve"][1] | {"heavy": True}
    found = compare(NONE | {"steps": [5], "values": [0.1]}, SUMMARY | {"metric": "mse", "curve": [row]})
    found += compare(NONE | {"value": 10.0}, SUMMARY | {"headline": "median"})
    found += compare(NONE | {"value": 10.0}, SUMMARY | {"mean": None, "ci95": None})
    assert [c.verdict for c in found] == ["undecided"] * 3
    text = "published: 0.1 (no interval) after 5 steps, undecided: this mean has no interval; A"
    assert describe(found[:1], "A") == text


def test_without_a_figure_nothing_is_compared() -> None:
    assert compare(NONE, SUMMARY) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["published.value=98"], r"published\.source=: must name"),
        (["published.value=98", "published.source=x", "published.values=[2]", "published.steps=[1]"], "one value or"),
        (
            ["published.source=x", "published.values=[2]"],
            r"published\.values=\[2\.0\]: must be one for each of steps=\[\]",
        ),
    ],
)
def test_a_figure_without_a_source_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(metarun.compose(overrides))


def test_a_run_tested_otherwise_has_no_published_figure(tmp_path: Path) -> None:
    row = ["experiment=sinusoid_5s_maml", *TINY[:-1]]
    metarun.run(metarun.compose(row), tmp_path / "run")
    found = {}
    for change in ("data.shots=5", "data.shots=7", "experiment=sinusoid_maml"):
        typed = [f"run={tmp_path / 'run'}", "job=evaluate", change]
        changed = metarun.compose(typed)
        found[change] = (changed.published.source, changed.published.values)
    row = ("Finn et al. 2017, table 2", [0.67, 0.38, 0.35])
    other = ("Finn et al. 2017, figure 2 and 6, as curves", [])
    assert found == {"data.shots=5": row, "data.shots=7": ("", []), "experiment=sinusoid_maml": other}


# ------------------------------------------------------------------------------------------------- make reproduce


@pytest.mark.long
def test_a_row_is_trained_tested_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same command again trains nothing; another row of the same training is a test of it."""
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- Sinusoids: made by benchmarks/results.py -->\n<!-- end of Sinusoids -->\nafter\n")
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "results.json")
    tiny = [o for o in TINY[:-1] if o != "test.steps=1"]
    arguments = ["sinusoid_maml", "--outputs", str(tmp_path), *tiny]
    assert reproduce.main(arguments) == 0
    first = json.loads((tmp_path / "results.json").read_text())
    metrics = (tmp_path / "sinusoid_maml/seed0/metrics.jsonl").read_bytes()
    assert reproduce.main(arguments) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert reproduce.main(["sinusoid_5s_maml", *arguments[1:]]) == 0
    assert (tmp_path / "sinusoid_maml/seed0/metrics.jsonl").read_bytes() == metrics
    rows = {r["row"]: r for r in json.loads((tmp_path / "results.json").read_text())}
    assert rows["sinusoid_5s_maml"]["params_sha256"] == rows["sinusoid_maml"]["params_sha256"]
    assert (rows["sinusoid_5s_maml"]["shots"], rows["sinusoid_maml"]["shots"]) == (5, 10)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| sinusoid_5s_maml | 0 |" in text
    assert "0.67 / 0.38 / 0.35" in text


@pytest.mark.parametrize("row", ["no_such_row", "sweep_seeds"])
def test_what_is_no_row_is_refused_in_one_line(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main([row]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_is_what_the_records_make_of_it() -> None:
    """No figure of the tables is typed by hand."""
    for name, table in TABLES.items():
        text = (results.DOCS / table.page).read_text()
        assert f"<!-- {name}: made by" in text
        assert table.markdown(results.load(results.RECORDS)) in text


def test_tables_hold_records_by_what_was_measured() -> None:
    """A likelihood of single targets stands in one column, whichever headline its learner has; what is not known is
    left empty."""
    common = {"data": "gp", "seed": 0, "steps_done": 10, "tasks_seen": 160, "seconds": 90.0}
    found = {name: {"mean": at, "ci95": 0.01} for at, name in enumerate(("pointwise_log_likelihood", "mse"), 2)}
    np_row = {"row": "a", "metric": "log_likelihood", "mean": -1.0, "ci95": 0.5, "beside": found}
    maml = {"row": "b", "metric": "mse", "mean": None, "ci95": None, "beside": {}}
    lines = TABLES["Gaussian process"].markdown([common | np_row, common | maml, {"data": "sinusoid"}]).split("\n")
    assert lines[2:] == [
        "| a | 0 | 2.000 +- 0.010 |  |  | 3.000 +- 0.010 |  | 10 x 16 | 1.5 |",
        "| b | 0 |  |  |  | not finite |  | 10 x 16 | 1.5 |",
    ]


def test_the_overview_has_the_mean_of_the_seeds_and_the_smaller_tasks_first() -> None:
    def record(row: str, ways: int, mean: float) -> dict[str, Any]:
        sizes = {"data": "omniglot", "ways": ways, "shots": 1, "norm": "joined" if row == "plain" else "batch"}
        return {"row": row, "algo": "reptile", "mean": mean, "published": {"value": 97.5}, **sizes}

    records = [record("a", 20, 0.5), record("b", 5, 0.7), record("b", 5, 0.8), record("plain", 5, 0.6)]
    assert TABLES["Omniglot, in short"].markdown(records).split("\n") == [
        "|  | 5-way 1-shot | 20-way 1-shot |",
        "|---|---|---|",
        "| `reptile` | 75.0 (97.5) | 50.0 (97.5) |",
        "| `reptile`, not transductive | 60.0 (97.5) |  |",
    ]


def test_learners_are_compared_by_problem_with_their_minutes() -> None:
    image = {"metric": "accuracy", "norm": "batch", "ways": 5, "shots": 1, "seconds": 600.0}
    function = {"norm": None, "seconds": 60.0, "row": "gp_x", "data": "gp"}
    records = [
        image | {"row": "r0", "algo": "maml", "data": "cifar_fs", "mean": 0.5},
        image | {"row": "r0", "algo": "maml", "data": "cifar_fs", "mean": 0.6, "seconds": 1200.0},
        image | {"row": "r1", "algo": "maml", "data": "omniglot", "mean": 0.9},
        function | {"algo": "maml", "metric": "mse", "mean": 0.25},
        function | {"algo": "cnp", "metric": "log_likelihood", "mean": 1.0, "beside": {"mse": {"mean": 0.125}}},
        function | {"algo": "maml", "metric": "mse", "mean": 9.0, "data": "sinusoid", "row": "sinusoid_5s_maml"},
    ]
    assert TABLES["Learners"].markdown(records).split("\n") == [
        "|  | Omniglot, 5-way 1-shot | CIFAR-FS, 5-way 1-shot | Gaussian process, MSE |",
        "|---|---|---|---|",
        "| `cnp` |  |  | 0.125, 1 min |",
        "| `maml` | 90.0, 10 min | 55.0, 15 min | 0.250, 1 min |",
    ]


def test_seeds_are_combined_with_the_variance_of_both() -> None:
    """Means 0.95 and 0.97: s^2 = 2e-4, s^2 / 2 = 1e-4 with 1 degree of freedom; 1.96 standard errors of 0.0196, so
    v = 1e-4 with 99. df = (2e-4)^2 / (1e-8 / 1 + 1e-8 / 99) = 3.96."""
    seeds = [{"row": "a", "seed": k, "mean": m, "ci95": 0.0196, "n_tasks": 100, "seconds": 60.0 + 60 * k}
             for k, m in enumerate((0.95, 0.97))]  # fmt: skip
    found = over_seeds(seeds)
    assert (found["seed"], found["mean"], found["seconds"]) == ("mean of 2", pytest.approx(0.96), 90.0)
    assert found["ci95"] == pytest.approx(t_quantile(0.975, 3.96) * math.sqrt(2e-4), rel=1e-9)


def test_the_mean_of_seeds_is_held_in_95_percent() -> None:
    """Three seeds of variance 1 and a test of variance 1 that they share, 3 000 times: the lengths are for 95 %; with
    so few seeds Satterthwaite's approximation errs by up to 2 %."""
    rng, held = np.random.default_rng(0), []
    for _ in range(3000):
        means = rng.normal(size=3) + rng.normal()
        found = over_seeds([{"mean": m, "ci95": 1.96, "n_tasks": 600, "seconds": 1.0} for m in means])
        held.append(abs(found["mean"]) <= found["ci95"])
    assert 0.93 <= np.mean(held) <= 0.98


def test_a_sinusoid_row_shows_its_median_and_where_the_mean_has_no_interval() -> None:
    curve: list[dict[str, Any]] = [{"step": k, "mean": 0.5, "ci95": 0.1} for k in (0, 1)]
    median = {"median": 0.25, "median_low": 0.2, "median_high": 0.3, "heavy": True}
    curve += [{"step": 5, "mean": None, "ci95": None} | median, {"step": 10, "mean": 1.5e12, "ci95": 1.0} | median]
    record = {"row": "a", "seed": 0, "data": "sinusoid", "metric": "mse", "curve": curve, "errors": {"failed": 3},
              "n_tasks": 600, "published": NONE, "steps_done": 10, "tasks_seen": 40, "seconds": 60.0}  # fmt: skip
    line = TABLES["Sinusoids"].markdown([record]).split("\n")[2]
    expected = ["0.500 +- 0.100", "0.500 +- 0.100", "heavy tail", "1.5e+12, heavy tail", "", "0.250 (0.200 to 0.300)"]
    assert line == f"| a | 0 | {' | '.join(expected)} | 3 of 600 | 10 x 4 | 1.0 |"


def test_a_kept_run_is_small_and_tests_as_it_did(tmp_path: Path) -> None:
    """Without the optimizer's state it cannot be trained on, and says so."""
    run = RunFolder(tmp_path / "run")
    typed = [*TINY[:-1], "train.checkpoint_every=1"]
    trained = metarun.run(metarun.compose(typed), run.path)
    kept = RunFolder(tmp_path / "kept")
    ship(run, kept.path, "metarun seed=0")
    assert kept.best.stat().st_size < 0.6 * run.best.stat().st_size
    assert "metarun seed=0" in (kept.path / "README.md").read_text()
    again = ["job=evaluate", f"run={kept.path}"]
    config = metarun.compose(again)
    tested = metarun.run(config, tmp_path / "tested").summary
    for key in ("mean", "ci95", "episodes_sha256", "params_sha256", "best_step"):
        assert tested[key] == trained.summary[key], key
    assert kept.has_ended()
    with pytest.raises(UserError, match="can be tested, not trained on"):
        checkpoint.restore(kept.best, trained.experiment.trainer().start())
