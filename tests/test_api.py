"""`metarun.compose`, `metarun.run`: Python and the command line are one path, with the same results and errors."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import metarun as command
from torch import Tensor

import metarun
from metarun.training.experiment import assemble
from metarun.types import Batch, EpisodeSpec, Task

TINY = ["train.steps=4", "train.tasks=2", "val.tasks=2", "test.tasks=5", "report=false", "diagnostics=off"]
TINY += ["device.compile=false", "device.threads=1"]


@pytest.fixture(scope="module")
def reptile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose algorithm is not the default one."""
    folder = tmp_path_factory.mktemp("runs") / "reptile"
    metarun.run(metarun.compose(["algo=reptile", *TINY]), folder)
    return folder


def test_evaluating_in_python_is_evaluating_on_the_command_line(reptile: Path, tmp_path: Path) -> None:
    overrides = ["job=evaluate", f"run={reptile}", "test.tasks=20"]
    config = metarun.compose(overrides)
    assert config.algo["_target_"] == "metarun.algorithms.reptile.Reptile"
    summary = metarun.run(config, tmp_path / "python").summary
    assert command(*overrides, f"hydra.run.dir={tmp_path / 'command'}", cwd=tmp_path).returncode == 0
    typed = json.loads((tmp_path / "command/summary.json").read_text())
    same = ("algo", "mean", "curve", "episodes_sha256", "params_sha256", "n_tasks")
    assert {k: summary[k] for k in same} == {k: typed[k] for k in same}


def test_resuming_in_python_continues_the_run(tmp_path: Path) -> None:
    settings, part = ["algo=fomaml", *TINY, "train.eval_every=4"], tmp_path / "part"
    whole = metarun.run(metarun.compose([*settings, "train.steps=8"]), tmp_path / "whole").summary
    metarun.run(metarun.compose(settings), part)
    resumed = metarun.run(metarun.compose([f"resume={part}", "train.steps=8"]))
    assert resumed.folder == part
    assert resumed.summary["steps_done"] == 8
    assert resumed.summary["params_sha256"] == whole["params_sha256"]
    with pytest.raises(metarun.UserError, match="continues in its own folder"):
        metarun.run(metarun.compose([f"resume={part}", "train.steps=9"]), tmp_path / "other")


def test_a_job_that_needs_the_data_of_the_run_has_them(reptile: Path, tmp_path: Path) -> None:
    config = metarun.compose(["job=predict", f"run={reptile}"])
    with pytest.raises(metarun.UserError, match=r"predict\.support=None: job=predict needs the examples"):
        metarun.run(config, tmp_path / "predicted")
    assert config.algo["_target_"] == "metarun.algorithms.reptile.Reptile"


WRONG = [
    (["run=outputs"], r"run=outputs: job=train reads no run; choices: job=evaluate, .*; resume=outputs continues it"),
    (["algo.inner_lrr=1"], r"algo.inner_lrr: no such setting, did you mean inner_lr"),
    (["+foo=1"], r"foo: no such setting"),
    (["+train.foo=3"], r"train.foo: no such setting"),
    (["+optim.betas=[0.9,0.99]"], r"optim.betas: no such setting"),
    (["algo=mamll"], r"algo=mamll: no such option, did you mean maml"),
    (["train.steps=many"], r"train.steps=many"),
    (["seed=0,1"], r"seed"),
    (["foo"], r"foo: is no setting; a setting is KEY=VALUE"),
    (["algo.inner_lr=[1,"], r"algo.inner_lr=\[1,: cannot be read; close its brackets"),
    (["train.steps=1e"], r"train.steps=1e: must be a whole number"),
    (["resume=/nowhere"], r"/nowhere: is not a run folder"),
]


@pytest.mark.parametrize(("overrides", "line"), WRONG, ids=[o[0] for o, _ in WRONG])
def test_a_mistake_is_the_line_of_the_command_line(overrides: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(metarun.UserError, match=line) as caught:
        metarun.compose(overrides)
    assert "\n" not in str(caught.value)
    typed = command(*overrides, cwd=tmp_path)
    assert typed.returncode == 2
    if overrides != ["seed=0,1"]:  # the command line names -m
        assert typed.stderr == f"metarun: {caught.value}\n"
    assert not (tmp_path / "outputs").exists() or not any((tmp_path / "outputs").rglob("metrics.jsonl"))


def test_one_string_is_no_list_of_overrides() -> None:
    with pytest.raises(metarun.UserError, match=r"takes a list of overrides, as compose\(\['algo=maml'\]\)"):
        metarun.compose("algo=maml")


def test_settings_are_read_and_set_as_attributes(tmp_path: Path) -> None:
    config = metarun.compose(TINY)
    assert config.algo.inner_lr == config.algo["inner_lr"] == 0.01  # type: ignore[attr-defined]
    config.algo.inner_lr = 0.5  # type: ignore[attr-defined]
    assert metarun.build_algorithm(config).inner_lr == 0.5  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="inner_lrr: no such setting, did you mean inner_lr"):
        _ = config.algo.inner_lrr  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["data.ways=5", "algo.train_ways=5"])
def test_ways_mean_nothing_where_there_are_no_classes(key: str, tmp_path: Path) -> None:
    name, _, value = key.partition("=")
    with pytest.raises(metarun.UserError, match=rf"^{name}={value}: must be 1: data=sinusoid is regression"):
        metarun.run(metarun.compose([*TINY, key]), tmp_path / "run")


def test_settings_of_training_have_no_effect_on_a_test(reptile: Path) -> None:
    for key in ("train.steps=9", "optim.lr=0.5", "val.tasks=3"):
        with pytest.raises(metarun.UserError, match=f"{key}: has no effect on job=evaluate"):
            metarun.compose(["job=evaluate", f"run={reptile}", key])


def test_the_curve_of_a_test_reaches_the_step_of_its_result(reptile: Path) -> None:
    again = ["job=evaluate", f"run={reptile}", "test.steps=3"]
    with pytest.raises(metarun.UserError, match=r"algo\.test_inner_steps=3 tests after 3"):
        metarun.compose(again)
    config = metarun.compose([*again, "algo.test_inner_steps=3"])
    assert (config.test.steps, config.algo["test_inner_steps"]) == (3, 3)


def test_an_option_of_its_own_brings_its_own_keys(reptile: Path, tmp_path: Path) -> None:
    """MAML has settings that Reptile lacks, and data=gp settings that the sinusoids lack."""
    config = metarun.compose(["job=evaluate", f"run={reptile}", "algo=maml", "data=gp", "test.tasks=3"])
    assert (config.algo["_target_"], config.data["_target_"]) == (
        "metarun.algorithms.maml.MAML",
        "metarun.data.gp.GaussianProcess",
    )
    assert metarun.run(config, tmp_path / "run").summary["data"] == "gp"


def test_a_relative_root_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reptile: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    assert metarun.compose(["data=folder", "data.root=photos"]).data["root"] == str(tmp_path / "photos")
    assert metarun.compose(["data=folder", "data.root=~/photos"]).data["root"] == str(tmp_path / "photos")
    assert metarun.compose(["data=folder", "data.root=nowhere"]).data["root"] == "nowhere"


def test_flags_may_stand_anywhere_and_unknown_ones_are_one_line(tmp_path: Path) -> None:
    done = command("algo=reptile", "--cfg", "job", "seed=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seed: 3" in done.stdout
    for wrong, line in (
        (["--foo"], "--foo: no such flag, did you mean"),
        (["algo=maml", "-cd"], "argument --config-dir/-cd: expected one argument"),
        (["--cfg", "foo"], "argument --cfg/-c: invalid choice: 'foo'"),
    ):
        done = command(*wrong, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"metarun: {line}")
        assert done.stderr.count("\n") == 1


STRANGER = """# @package _global_
defaults:
  - override /model: mlp
data:
  _target_: mine.waves
  file: ???
  ways: 1
  shots: 5
  queries: 5
  test_queries: 5
"""


def test_a_value_that_a_file_leaves_open_comes_from_the_command_or_from_the_run(own: Any, tmp_path: Path) -> None:
    """And a factory with **kwargs takes any keyword."""
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/stranger.yaml").write_text(STRANGER)
    mine = {"config_dir": tmp_path / "conf"}
    chosen = ["data=stranger", "trusted_modules=[mine]"]
    with pytest.raises(metarun.UserError, match=r"^data\.file: needs a value; its file has"):
        metarun.compose(chosen, **mine)
    config = metarun.compose([*TINY, *chosen, "data.file=a name", "+data.more=3"], **mine)
    metarun.run(config, tmp_path / "run")
    again = metarun.compose([f"run={tmp_path / 'run'}", "job=evaluate", "trusted_modules=[mine]"], **mine)
    assert (again.data["file"], again.data["more"]) == ("a name", 3)
    more = metarun.compose([f"run={tmp_path / 'run'}", "job=evaluate", *chosen[1:], "data.shots=3"], **mine)
    assert (more.data["file"], more.data["shots"]) == ("a name", 3)


class Blobs:
    """Clouds of points around class means, as a user would write it."""

    kind = "classification"

    def input_shape(self) -> tuple[int, ...]:
        return (2,)

    def outputs(self, ways: int) -> int:
        return ways

    def check(self, split: str, spec: EpisodeSpec) -> None: ...

    def episodes(self, split: str, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = []
        for task in tasks:
            random = torch.Generator().manual_seed(zlib.crc32(repr((split, seed, step, task)).encode()))
            means = 5 * torch.randn(spec.ways, 1, 2, generator=random)
            rows = means + torch.randn(spec.ways, spec.shots + spec.queries, 2, generator=random)
            y = torch.arange(spec.ways)[:, None].expand(-1, spec.shots + spec.queries)
            halves = (slice(None, spec.shots), slice(spec.shots, None))
            drawn.append([(rows[:, half].flatten(0, 1), y[:, half].flatten()) for half in halves])
        return Task(*(Batch(*(torch.stack(t) for t in zip(*batch, strict=True))) for batch in zip(*drawn, strict=True)))

    def reference_inputs(self, count: int) -> Tensor:
        return torch.zeros(count, 2)

    def facts(self) -> dict[str, Any]:
        return {"split": "drawn", "split_sha256": "0"}


with torch.random.fork_rng():
    torch.manual_seed(0)  # a built network keeps its parameters, and some map both clouds of points to one place
    MLP = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))


OWN = """
import torch
from torch.nn.functional import huber_loss

class Huber:
    name = metric = "huber"
    higher_is_better, best, signed = False, 0.0, False

    def __init__(self, delta: float = 1.0):
        self.delta = delta

    def __call__(self, prediction, y):
        return huber_loss(prediction, y, delta=self.delta)

    score = __call__

def huber(prediction, y):
    return huber_loss(prediction, y, delta=2.0)

def mae(prediction, y):
    return float((prediction - y).abs().mean())

class Witness:
    def __init__(self, file: str):
        self.file = file

    def note(self, *words):
        with open(self.file, "a") as file:
            print(*words, file=file)

    def on_step(self, state):
        self.note("step", state.step)

    def on_validation(self, state, evaluation):
        self.note("val", state.step, evaluation.mean)

    def on_end(self, summary):
        self.note(summary["status"])

def waves(file: str, **kwargs):
    from metarun.data.sinusoid import Sinusoid

    return Sinusoid((0.1, 5.0), (0.0, 3.14), (-5.0, 5.0), 0.0)

class Broken:
    def on_step(self, state):
        raise ValueError("too bad")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield importlib.import_module("mine")
    del sys.modules["mine"]


def test_an_own_loss_and_metric_are_the_same_in_python_and_as_settings(own: Any, tmp_path: Path) -> None:
    named = ["loss._target_=mine.Huber", "loss.delta=2", "metrics.mae=mine.mae", "trusted_modules=[mine]"]
    by_name = metarun.run(metarun.compose([*TINY, *named]), tmp_path / "named").summary
    plain = metarun.compose(TINY)
    by_function = metarun.run(plain, tmp_path / "function", loss=own.huber, metrics={"mae": own.mae}).summary
    by_object = metarun.run(plain, tmp_path / "object", loss=own.Huber(2.0), metrics={"mae": own.mae}).summary
    assert by_name["metric"] == by_function["metric"] == by_object["metric"] == "huber"
    assert by_name["mean"] == by_function["mean"] == by_object["mean"]
    assert by_name["beside"] == by_function["beside"] == by_object["beside"]
    assert metarun.run(plain, tmp_path / "usual").summary["params_sha256"] != by_name["params_sha256"]
    again = metarun.compose(["job=evaluate", f"run={tmp_path / 'named'}", "trusted_modules=[mine]"])
    assert metarun.run(again, tmp_path / "again").summary["beside"] == by_name["beside"]


def test_an_own_metric_is_that_of_the_predictions(own: Any, tmp_path: Path) -> None:
    """The root of the mean squared error of a task, squared, is the loss that the test reports."""
    summary = metarun.run(
        metarun.compose(TINY), tmp_path / "run", metrics={"again": lambda p, y: float(((p - y) ** 2).mean())}
    ).summary
    assert summary["beside"]["again"]["mean"] == pytest.approx(summary["mean"], rel=1e-6)


def test_callbacks_see_steps_validations_and_the_end(own: Any, tmp_path: Path) -> None:
    words = tmp_path / "words"
    callback = f"callbacks=[{{_target_: mine.Witness, file: {words}}}, mine.Broken]"
    config = metarun.compose([*TINY, "train.eval_every=2", callback, "trusted_modules=[mine]"])
    done = metarun.run(config, tmp_path / "run")
    lines = words.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["step", "step", "val", "step", "step", "val", "completed"]
    assert done.status == "completed"
    plain = metarun.run(metarun.compose([*TINY, "train.eval_every=2"]), tmp_path / "plain")
    assert plain.summary["params_sha256"] == done.summary["params_sha256"]


def test_a_callback_that_raises_is_named_once(own: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metarun.run(metarun.compose(TINY), tmp_path / "run", callbacks=[own.Broken()])
    printed = capsys.readouterr().out
    assert printed.count("callback Broken.on_step failed (ValueError: too bad); it is not called again") == 1


def test_a_python_object_is_asked_for(tmp_path: Path) -> None:
    for group, keyword in (("data", "dataset"), ("model", "model")):
        with pytest.raises(metarun.UserError, match=rf"^{group}=own: needs a Python object; .*{keyword}=\.\.\."):
            metarun.run(metarun.compose([*TINY, f"{group}=own"]), tmp_path / group)


def test_a_loaded_run_has_its_numbers(reptile: Path) -> None:
    run = metarun.load(reptile)
    assert run.summary["mean"] == json.loads((reptile / "summary.json").read_text())["mean"]
    assert run.config.algo["_target_"].endswith("Reptile")
    scores = np.asarray(run.scores)
    assert scores.shape == (5, 33)  # tasks, steps 0 to 32
    assert scores[:, -1].mean() == pytest.approx(run.summary["mean"], abs=0)
    assert set(run.curves) == {"train", "val", "test"}
    records = [json.loads(line) for line in (reptile / "metrics.jsonl").read_text().splitlines()]
    assert [*run.curves["val"]["step"]] == [r["step"] for r in records if r["kind"] == "val"]
    assert run.plot().axes[0].get_xlabel() == "outer steps"
    page = run._repr_html_()
    assert "reptile on sinusoid" in page
    assert "<table>" in page
    with pytest.raises(metarun.UserError, match="/nowhere: is not a run folder"):
        metarun.load("/nowhere")


def test_a_loaded_run_is_tested_again(reptile: Path, tmp_path: Path) -> None:
    run = metarun.load(reptile)
    assert run.evaluate(folder=tmp_path / "same").summary["mean"] == run.summary["mean"]
    again = run.evaluate("data.shots=5", "test.tasks=7", folder=tmp_path / "other").summary
    assert (again["shots"], again["n_tasks"], again["algo"]) == (5, 7, "reptile")


def test_adapting_to_a_test_task_gives_its_score(reptile: Path) -> None:
    run = metarun.load(reptile)
    tasks = assemble(run.config).dataset.episodes("test", 0, 0, range(3), EpisodeSpec(1, 10, 100))
    for i in range(3):
        support, query = ((batch.x[i].numpy(), batch.y[i].numpy()) for batch in tasks)
        predicted = run.adapt(*support).predict(query[0])
        assert float(((predicted - query[1]) ** 2).mean()) == pytest.approx(np.asarray(run.scores)[i, -1], rel=1e-6)
        before = run.adapt(*support, steps=0).predict(query[0])
        assert float(((before - query[1]) ** 2).mean()) == pytest.approx(np.asarray(run.scores)[i, 0], rel=1e-6)
    assert run.adapt([0.0, 1.0], [0.0, 1.0]).predict([0.5]).shape == (1, 1)
    with pytest.raises(metarun.UserError, match=r"x of shape \[2, 3\]: must be \[rows, 1\]"):
        run.adapt([[0.0, 1, 2], [0, 1, 2]], [0.0, 1])
    with pytest.raises(metarun.UserError, match="steps=-1: must be at least 0"):
        run.adapt([0.0], [0.0], steps=-1)


def test_labels_of_a_support_set_are_those_of_its_predictions(tmp_path: Path) -> None:
    """Two clouds of points, far apart, under names that no training task had."""
    config = metarun.compose(["data=own", "algo=protonet", *TINY, "data.ways=2"])
    metarun.run(config, tmp_path / "run", dataset=Blobs(), model=MLP)
    run = metarun.load(tmp_path / "run", dataset=Blobs(), model=MLP)
    near, far = np.zeros((3, 2)), np.full((3, 2), 9.0)
    adapted = run.adapt(np.concatenate([near, far]), ["near"] * 3 + ["far"] * 3)
    assert [*adapted.predict([[0.1, 0], [8, 9], [0, 0.2]])] == ["near", "far", "near"]
    assert adapted.probabilities([[0.1, 0]]).sum() == pytest.approx(1)
    with pytest.raises(metarun.UserError, match=r"data=own: needs a Python object, which was .*Blobs"):
        metarun.load(tmp_path / "run").adapt(near, [0, 0, 0])


def test_a_penalty_on_the_step_of_one_inner_step_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    metarun.run(metarun.compose([*TINY, "reg=prox_l2"]), tmp_path / "one")
    assert "reg=prox_l2: does nothing in training" in capsys.readouterr().err
    metarun.run(metarun.compose([*TINY, "reg=prox_l2", "algo.inner_steps=2"]), tmp_path / "two")
    assert "does nothing" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b", "a(b)", "a=b", "a:b", "a'b", "a,b/c"])
def test_any_path_is_a_run(name: str, reptile: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.parent.mkdir(exist_ok=True)
    shutil.copytree(reptile, folder)
    given = f"run={folder}" if "," not in name else f'run="{folder}"'  # a comma is a sweep on the command line
    assert metarun.compose(["job=evaluate", given, "data.noise=0.1"]).algo["inner_lr"] == 0.02


def test_a_setting_given_twice_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert metarun.compose(["algo=maml", "algo=reptile"]).choices["algo"] == "reptile"
    assert "algo=maml and algo=reptile: the last one counts" in capsys.readouterr().err


def test_the_same_training_in_one_process_gives_the_same_bits(tmp_path: Path) -> None:
    """What another run sets in between (threads, precision, determinism) does not stay."""
    first = metarun.run(metarun.compose(TINY), tmp_path / "first").summary["params_sha256"]
    other = ["algo=imaml", "device.deterministic=true", "device.precision=float64"]
    metarun.run(metarun.compose([*TINY, *other]), tmp_path / "other")
    assert metarun.run(metarun.compose(TINY), tmp_path / "again").summary["params_sha256"] == first


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.hidden=[8]", r"block0.weight is \[40, 1\] there and \[8, 1\] here \(of the network: model"),
        ("algo=metasgd", r"rates.block0.weight is absent there and \[40, 1\] here \(of the algorithm: algo\)"),
        ("reg=l2", None),
    ],
)
def test_weights_that_do_not_fit_are_named(override: str, line: str | None, reptile: Path, tmp_path: Path) -> None:
    config = metarun.compose(["job=evaluate", f"run={reptile}", override])
    if line is None:
        metarun.run(config, tmp_path / "fits")
        return
    with pytest.raises(metarun.UserError, match=line):
        metarun.run(config, tmp_path / "run")


class Net(torch.nn.Module):
    """Batch normalisation, and a head for as many outputs as there are."""

    def __init__(self, outputs: int | None) -> None:
        super().__init__()
        self.body, self.norm = torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, outputs) if outputs else torch.nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)).relu())


def test_a_module_has_the_norm_that_the_algorithm_chooses_for_its_network(tmp_path: Path) -> None:
    for algo, outputs, norm in (("protonet", 2, "population"), ("maml", 2, "batch")):
        config = metarun.compose(["data=own", f"algo={algo}", *TINY, "data.ways=2"])
        summary = metarun.run(config, tmp_path / algo, dataset=Blobs(), model=Net(outputs)).summary
        assert summary["norm"] == norm
    again = metarun.load(tmp_path / "protonet", dataset=Blobs(), model=Net(2)).evaluate(folder=tmp_path / "again")
    assert again.summary["norm"] == "population"


def test_a_loss_or_metric_that_is_no_number_is_refused_before_the_first_step(tmp_path: Path) -> None:
    config = metarun.compose(TINY)
    with pytest.raises(metarun.UserError, match=r"^loss: must be one number for predictions \[100, 1\] and targets"):
        metarun.run(config, tmp_path / "loss", loss=lambda p, y: (p - y) ** 2)
    with pytest.raises(metarun.UserError, match=r"^metrics\.f1: must be one number .*ValueError"):
        metarun.run(config, tmp_path / "metric", metrics={"f1": lambda p, y: "high"})
    assert not (tmp_path / "metric/metrics.jsonl").exists()


def test_a_loaded_run_keeps_its_own_metrics(tmp_path: Path) -> None:
    def mae(prediction: Tensor, y: Tensor) -> float:
        return float((prediction - y).abs().mean())

    done = metarun.run(metarun.compose(TINY), tmp_path / "run", metrics={"mae": mae}).summary
    again = metarun.load(tmp_path / "run", "test.tasks=5", metrics={"mae": mae}).evaluate(folder=tmp_path / "again")
    assert again.summary["beside"] == done["beside"]


@pytest.mark.parametrize(
    ("x", "y", "line"),
    [
        ([1.0, 2.0], [[1.0, 2.0], [3.0, 4.0]], r"support_y=array of shape \[2, 2\]: must be \[rows, 1\]"),
        ([1.0, 2.0], [[[1.0]], [[2.0]]], r"support_y=array of shape \[2, 1, 1\]: must be \[rows, 1\]"),
        ([1.0, 2.0], ["a", "b"], r"support_y: must be an array of numbers"),
        ([1.0, float("nan")], [1.0, 2.0], r"x=array: must hold finite numbers"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], r"support_y=3: must have a row for each of the 2 rows of support_x"),
    ],
)
def test_a_support_set_that_does_not_fit_is_refused(x: Any, y: Any, line: str, reptile: Path) -> None:
    with pytest.raises(metarun.UserError, match=line):
        metarun.load(reptile).adapt(x, y)
