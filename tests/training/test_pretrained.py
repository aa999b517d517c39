"""A training that starts from the weights of another run."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.analyses import POINTS

import metarun
from metarun.errors import SettingError
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.experiment import assemble
from metarun.training.pretrained import start_from


@pytest.fixture(scope="module")
def maml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "maml"
    metarun.run(metarun.compose([*POINTS, "algo=maml", "seed=3"]), folder)
    return folder


def start(*settings: str) -> dict[str, torch.Tensor]:
    config = metarun.compose([*POINTS, *settings])
    return assemble(config).trainer().start(partial(start_from, config.train.pretrained)).params


def test_weights_of_the_same_name_and_shape_are_taken(maml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = checkpoint.read_weights(checkpoint.best_of(RunFolder(maml)))
    params = start("algo=metasgd", f"train.pretrained={maml}")
    assert all(torch.equal(params[name], stored[name]) for name in stored)
    assert capsys.readouterr().err == f"train.pretrained={maml}: 4 tensors of 4\n"
    assert any(name not in stored for name in params)  # its rates
    params = start("algo=maml", "model.hidden=[8,4]", f"train.pretrained={maml}")
    new = "block1.weight (is not there), block1.shift (is not there), head.weight ([1, 8] there, [1, 4] here)"
    assert f"3 tensors of 6; new are {new}\n" in capsys.readouterr().err
    assert torch.equal(params["block0.weight"], stored["block0.weight"])


def test_a_training_begins_where_the_other_ended_and_can_be_resumed_without_it(maml: Path, tmp_path: Path) -> None:
    lasting = tmp_path / "lasting"
    shutil.copytree(maml, lasting)
    config = [*POINTS, "algo=reptile", f"train.pretrained={lasting}", "optim.lr=1e-30"]
    result = metarun.run(metarun.compose(config), tmp_path / "run")
    stored = checkpoint.read_weights(checkpoint.best_of(RunFolder(maml)))
    for name, weight in stored.items():
        torch.testing.assert_close(result.params[name], weight, rtol=0, atol=1e-20)
    shutil.rmtree(lasting)
    more = [*config, f"resume={tmp_path / 'run'}", "train.steps=5"]
    assert metarun.run(metarun.compose(more), tmp_path / "run").summary["steps_done"] == 5


def test_a_folder_without_these_weights_is_refused(maml: Path, tmp_path: Path) -> None:
    for run, settings, reason in (
        (tmp_path, [], "is no folder of a run with a checkpoint"),
        (maml, ["model.hidden=[5]", "algo=cnp"], "has none of this network's weights"),
    ):
        with pytest.raises(SettingError, match=reason) as refused:
            start(f"train.pretrained={run}", *settings)
        assert refused.value.key == "train.pretrained"
