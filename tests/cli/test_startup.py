"""What a start imports and copies: --help and completion do without torch, training without what draws and exports.

Nothing here is timed; a clock says little on a busy machine.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from metarun import jobs
from metarun.cli.compose import SCHEMA
from metarun.cli.main import set_up_process
from metarun.config import schema

HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "jinja2", "wandb", "PIL", "rich", "tensorboard")
NOT_FOR_TRAINING = ("torchvision", "matplotlib", "jinja2", "wandb", "PIL", "tensorboard", "safetensors")
COMPILER = ("torch._dynamo", "torch._inductor")

LEFT = """
import json, sys
from {module} import main
try:
    main()
finally:
    json.dump([name for name in {modules} if name in sys.modules], open("left.json", "w"))
"""
"""Runs a console script and leaves the modules, of those asked for, that it imported."""


def imported(code: str, *arguments: str, cwd: Path, **environment: str) -> tuple[set[str], str]:
    """Which modules the code left as imported, and what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads((cwd / "left.json").read_text())), done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cfg", "job"], ["--hydra-help"], ["-sc", "install=bash"], ["cache"]]
)
def test_help_and_settings_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = LEFT.format(module="metarun.cli.main", modules=HEAVY)
    found, _ = imported(code, *arguments, cwd=tmp_path, METARUN_CACHE=str(tmp_path / "none"))
    assert found == set()
    assert {path.name for path in tmp_path.iterdir()} == {"left.json"}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("metarun al", "algo. algo="),
        ("metarun algo=i", "algo=imaml"),
        ("metarun data=omniglot algo.inner_l", "algo.inner_lr="),
        ("metarun job=e", "job=evaluate job=export"),
        ("metarun algo=maml optim.name=", "optim.name=adam optim.name=adamw optim.name=sgd"),
        ("metarun report=f", "report=false"),
        ("metarun run=l", "run=latest"),
    ],
)
def test_completion_offers_groups_options_and_settings_and_imports_nothing_heavy(
    line: str, offered: str, tmp_path: Path
) -> None:
    code = LEFT.format(module="metarun.cli.main", modules=HEAVY)
    words = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    found, printed = imported(code, "-sc", "query=bash", cwd=tmp_path, **words)
    assert found == set()
    assert printed.strip() == offered


@pytest.mark.parametrize("setting", ["data.shots=0", "device=cuda", "train.steps=0"])
def test_what_settings_alone_show_is_refused_before_torch_is_imported(setting: str, tmp_path: Path) -> None:
    code = LEFT.format(module="metarun.cli.main", modules=HEAVY)
    command = [sys.executable, "-c", code, setting]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if setting == "device=cuda" and "none" not in done.stderr:
        pytest.skip("this machine has a CUDA device")
    assert done.returncode == 2
    assert done.stderr.startswith(f"metarun: {setting.replace('device', 'device.name')}: ")
    assert json.loads((tmp_path / "left.json").read_text()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"left.json"}


def test_the_help_of_reports_imports_nothing_heavier_than_numpy(tmp_path: Path) -> None:
    found, _ = imported(LEFT.format(module="metarun.cli.report", modules=HEAVY), "--help", cwd=tmp_path)
    assert found <= {"numpy"}


def test_a_run_without_a_report_does_without_what_draws_reads_images_exports_or_compiles(tmp_path: Path) -> None:
    code = LEFT.format(module="metarun.cli.main", modules=(*NOT_FOR_TRAINING, *COMPILER))
    tiny = ["train.steps=1", "train.tasks=2", "val.tasks=2", "test.tasks=2", "test.steps=1"]
    found, _ = imported(code, *tiny, "device.compile=false", "report=false", cwd=tmp_path)
    assert found == set()


def test_every_job_of_the_settings_has_its_function() -> None:
    for job in schema.JOBS:
        assert callable(jobs.load_job(job))


def test_listing_groups_does_not_copy_the_schemas_and_what_is_loaded_is_a_copy_still() -> None:
    store = ConfigStore.instance()
    assert copy.deepcopy([store])[0] is store
    first, second = (store.load("schema.yaml").node for _ in range(2))
    first.train.steps = 7
    assert second.train.steps == SCHEMA.train.steps == schema.Config().train.steps


@pytest.mark.parametrize(("given", "used", "spins"), [(None, "PASSIVE", "10000"), ("ACTIVE", "ACTIVE", None)])
def test_waiting_threads_soon_sleep_unless_asked(
    given: str | None, used: str, spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarun.cli.main.end_with_parent", lambda: None)
    monkeypatch.setattr("metarun.cli.main.offer_values", lambda: None)
    monkeypatch.setattr("os.environ", {} if given is None else {"OMP_WAIT_POLICY": given})
    set_up_process()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT")) == (used, spins)
