"""The settings: their types and their ranges."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

import metarun
from metarun.config.schema import Config
from metarun.errors import UserError
from metarun.training.experiment import assemble


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.inner_steps=0"], r"algo\.inner_steps=0: must be at least 1"),
        (["algo.inner_lr=-1"], r"algo\.inner_lr=-1\.0: must be above 0"),
        (["algo.inner_lr=nan"], r"algo\.inner_lr=nan: must be above 0"),
        (["optim.lr=0"], r"optim\.lr=0\.0: must be above 0 and finite"),
        (["optim.lr=inf"], r"optim\.lr=inf: must be above 0 and finite"),
        (["train.steps=0"], r"train\.steps=0: must be at least 1"),
        (["seed=-1"], r"seed=-1: must be at least 0"),
        (["data.shots=0"], r"data\.shots=0: must be a whole number of at least 1"),
        (["data.shots=1.5"], r"data\.shots=1\.5: must be a whole number of at least 1"),
        (["algo.train_shots=0"], r"algo\.train_shots=0: must be a whole number"),
        (["device=cuda"], r"device\.name=cuda: this machine has none; choices: cpu"),
        (["device.chunk_size=0"], r"device\.chunk_size=0: choices: auto, null"),
        (["device.compile=maybe"], r"device\.compile=maybe: choices: auto, on, off"),
        (["model.hidden=[]"], r"model\.hidden=\[\]: must be a list of widths"),
        (["model=conv4"], r"model\._target_=conv4: needs images.*try model=mlp"),
        (["algo._target_=os.system"], r"algo\._target_=os\.system: is outside of metarun; add its package"),
        (["algo._target_=metarun.algorithms.maml.MAMLL"], r"algo\._target_=.*cannot be imported"),
        (["+algo.inner_lrr=1"], r"algo\.inner_lrr: no such setting, did you mean inner_lr"),
        (["~algo.inner_lr"], r"algo\.inner_lr: is missing"),
        (["algo=imaml", "algo.prox=0"], r"algo\.prox=0\.0: must be above 0"),
        (["algo=imaml", "algo.cg_steps=0"], r"algo\.cg_steps=0: must be at least 1"),
        (["algo=imaml", "algo.curvature=fisher"], r"algo\.curvature=fisher: choices: hessian, gauss_newton"),
        (["algo=reptile", "algo.inner_optimizer=adagrad"], r"algo\.inner_optimizer=adagrad: choices: sgd, adam"),
        (["algo=reptile", "algo.moments=kept"], r"algo\.moments=kept: choices: fresh, carried"),
        (
            ["algo=reptile", "algo.moments=carried", "algo.inner_optimizer=sgd"],
            r"algo\.moments=carried: needs inner_op",
        ),
        (["data.amplitude=[5,1]"], r"data\.amplitude=\[5\.0, 1\.0\]: must be \[low, high\]"),
        (["data.amplitude=5"], r"data\.amplitude=5: must be a list of 2 numbers"),
        (["reg=l2", "reg.weight=-1"], r"reg\.weight=-1\.0: must be at least 0"),
    ],
)
def test_values_that_cannot_work_are_refused_with_key_value_and_choices(overrides: list[str], message: str) -> None:
    if overrides == ["device=cuda"]:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match=message):
        assemble(metarun.compose(overrides))


def test_the_settings_schema_annotates_every_field() -> None:
    assert set(typing.get_type_hints(Config)) == set(Config.__dataclass_fields__)


def test_a_network_at_the_root_of_the_settings_is_told_what_its_yaml_has_too_much(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/deep.yaml").write_text("# @package _global_\n_target_: metarun.models.mlp.mlp\n")
    with pytest.raises(UserError, match=r"^_target_: .* a YAML of model has no line `# @package _global_`$"):
        metarun.compose(["model=deep"], tmp_path)
