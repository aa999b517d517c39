"""Mistakes of somebody who comes from other programs, one line each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import metarun
from metarun.cli.advice import find_keys, list_paths, write_whole_numbers
from metarun.cli.overrides import read_arguments
from metarun.errors import UserError

MISTAKES = [
    (["--algo", "maml"], "--algo: settings have no dashes; write algo=maml"),
    (["--algo=maml"], "--algo=maml: settings have no dashes; write algo=maml"),
    (["--lr", "0.1"], "--lr: settings have no dashes; write optim.lr=0.1 or algo.inner_lr=0.1 or optim.learned_lr=0.1"),
    (["--seed", "3"], "--seed: settings have no dashes; write seed=3"),
    (["--batch-size=3"], "--batch-size=3: settings have no dashes; write train.tasks=3"),
    (["--config", "x.yaml"], "--config: settings of yours stand in FOLDER/experiment/x.yaml; write -cd FOLDER exp"),
    (["--config=my/x.yaml"], "--config=my/x.yaml: settings of yours stand in FOLDER/experiment/x.yaml; write -cd "),
    (["config=x.yaml"], "config=x.yaml: settings of yours stand in FOLDER/experiment/x.yaml; write -cd FOLDER exp"),
    (["x.yaml"], "x.yaml: settings of yours stand in FOLDER/experiment/x.yaml; write -cd FOLDER experiment=x"),
    (["--frobnicate"], "--frobnicate: no such flag, choices: --cfg, "),
    (["maml"], "maml: a setting is KEY=VALUE, as train.steps=100; did you mean algo=maml?"),
    (["Omniglot"], "Omniglot: a setting is KEY=VALUE, as train.steps=100; did you mean data=omniglot?"),
    (["train"], "train: a setting is KEY=VALUE, as train.steps=100; did you mean job=train?"),
    (["list"], "list: is no setting; a setting is KEY=VALUE, as train.steps=100; metarun --help lists them"),
    (["algo", "=", "maml"], "algo = maml: write it without spaces: algo=maml"),
    (["steps=100"], "steps: no such setting, did you mean train.steps or test.steps or algo.inner_steps?"),
    (["lr=0.1"], "lr: no such setting, did you mean optim.lr or algo.inner_lr or optim.learned_lr?"),
    (["train.lr=0.1"], "train.lr: no such setting, did you mean optim.lr or algo.inner_lr or optim.learned_lr?"),
    (["algo=imaml", "algo.lr=0.1"], "algo.lr: no such setting, did you mean algo.inner_lr or optim.lr or optim"),
    (["train.epochs=3"], "train.epochs: no such setting, did you mean train.steps?"),
    (["train.stps=3"], "train.stps: no such setting, did you mean steps?"),
    (["seed=1,2"], "seed=1,2: several values are a sweep: metarun -m seed=1,2; a list is seed=[1,2]"),
    (["epochs=4"], "epochs: no such setting, did you mean train.steps?"),
    (["shots=5"], "shots: no such setting, did you mean data.shots or algo.train_shots?"),
    (["foo=5"], "foo: no such setting, choices: algo, "),
    (["device=gpu"], "device=gpu: no such option, write device=cuda"),
    (
        ["device=cuda:1"],
        "device=cuda:1: no such option, write device=cuda, and choose the GPU by CUDA_VISIBLE_DEVICES=1",
    ),
    (["algo=MAML"], "algo=MAML: no such option, did you mean maml?"),
    (["train.steps=1.5"], "train.steps=1.5: must be a whole number"),
]


@pytest.mark.parametrize(
    ("words", "line"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_answered_by_what_to_write(words: list[str], line: str) -> None:
    with pytest.raises(UserError) as refused:
        metarun.compose(words)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("train.steps=1e4", "train.steps=10000"),
        ("train.steps=1.5e+1", "train.steps=15"),
        ("train.steps=100.0", "train.steps=100"),
        ("optim.lr=1.0", "optim.lr=1.0"),
        ("train.steps=100.5", "train.steps=100.5"),
        ("optim.lr=1e-3", "optim.lr=1e-3"),
        ("train.steps=1.25e1", "train.steps=1.25e1"),
        ("train.steps=1e400", "train.steps=1e400"),
        ("data.root=1e4/x", "data.root=1e4/x"),
    ],
)
def test_whole_numbers_may_have_an_exponent(word: str, read: str) -> None:
    assert write_whole_numbers(word) == read


def test_whole_floats_train() -> None:
    assert metarun.compose(["train.steps=1e2", "optim.lr=1e-3"]).train.steps == 100


def test_settings_are_found_by_their_last_part_first() -> None:
    settings = {"train": {"steps": 1}, "algo": {"inner_steps": 2, "steps": 3}, "hydra": {"steps": 4}}
    assert find_keys("steps", settings) == ["train.steps", "algo.steps", "algo.inner_steps"]
    assert "train.steps" in list_paths(settings)


def test_the_latest_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run=latest: there is no run below"):
        read_arguments(["job=evaluate", "run=latest"])
    for age, run in enumerate(("outputs/a/older", "outputs/b/sweep/newer", "outputs/c/oldest")):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        file = tmp_path / run / "checkpoints/last.pt"
        file.touch()
        os.utime(file, (100 + (age, 9, -5)[age],) * 2)
    assert "outputs/b/sweep/newer" in read_arguments(["job=evaluate", "resume=latest"])[-1]
    assert capsys.readouterr().err == "resume=latest: outputs/b/sweep/newer\n"


def test_the_version_is_metaruns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from metarun.cli.main import run_command

    monkeypatch.setattr("sys.argv", ["metarun", "--version"])
    assert run_command() == 0
    assert capsys.readouterr().out == f"metarun {metarun.__version__}\n"
