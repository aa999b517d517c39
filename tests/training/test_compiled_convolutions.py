"""Which convolution networks are compiled without being asked for, and that their meta-gradients stay the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.folder_data import FOLDERS, SIDE
from helpers.image_files import as_folder

from metarun.algorithms.losses import FunctionLoss
from metarun.algorithms.maml import MAML
from metarun.cli.compose import compose
from metarun.compute.compilation import compile_function
from metarun.training.experiment import assemble
from metarun.training.meta_gradient import MetaGradients, build_meta_gradient, decisive_parts, should_compile_step
from metarun.training.run import Trainer

SMALL = ["data=folder", f"data.image_size={SIDE}", "data.ways=2", "data.shots=1", "data.queries=1", "model=conv4"]
SMALL += ["data.test_queries=1"]
SMALL += ["model.filters=4", "train.tasks=3", "train.steps=1000", "device.threads=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_folder(tmp_path_factory.mktemp("images"), FOLDERS)


def trainer_of(images: Path, *more: str) -> Trainer:
    return assemble(compose([*SMALL, f"data.root={images}", "model.pool=stride", *more])).trainer()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", True),
        ("algo=imaml", True),
        ("algo=protonet train.tasks=1", True),
        ("train.steps=999", False),
        ("device.compile=off", False),
        ("model.pool=max model.depth=3", False),
        ("device.chunk_size=2", True),  # two chunks
        ("device.chunk_size=1", False),
        ("algo.multi_step_until=500", False),  # another step each time
        ("algo.first_order_until=500", False),
        ("device.compile=on algo.first_order_until=500 train.steps=1", True),
    ],
)
def test_matrix_products_that_train_long_are_compiled(
    more: str, expected: bool, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    trainer = trainer_of(images, *more.split())
    assert should_compile_step(trainer, trainer.start().params) == expected


def test_parts_of_a_user_stay_uncompiled(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    trainer = trainer_of(images)
    assert isinstance(trainer.algorithm, MAML)
    loss = FunctionLoss(lambda prediction, y: prediction.square().mean())
    own = replace(trainer, algorithm=replace(trainer.algorithm, loss=loss))
    params = own.start().params
    assert not should_compile_step(own, params)

    def step(x: torch.Tensor) -> torch.Tensor:
        return x

    assert compile_function(step, own.placement, params, decisive_parts(own)) is step


@pytest.mark.parametrize(
    "more",
    [
        "algo=protonet model.norm=population train.tasks=1",
        pytest.param("algo=maml model.norm=batch", marks=pytest.mark.long),
        pytest.param("algo=maml model.norm=joined", marks=pytest.mark.long),
        pytest.param("algo=reptile algo.train_shots=2 model.norm=batch", marks=pytest.mark.long),
        pytest.param("algo=imaml model.norm=batch", marks=pytest.mark.long),
    ],
)
def test_the_meta_gradient_is_that_without_compiling(
    more: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    trainer = trainer_of(images, "device.precision=float64", *more.split())
    params, tasks = trainer.start().params, trainer.tasks(0)
    found = MetaGradients(trainer, params, print).at(0)(params, tasks)
    expected = build_meta_gradient(trainer)(params, tasks)
    assert len(list(tmp_path.glob("*.so"))) == 1
    torch.testing.assert_close(found.metrics, expected.metrics, rtol=1e-9, atol=1e-12)
    for name, gradient in expected.mean.items():
        torch.testing.assert_close(found.mean[name], gradient, rtol=0, atol=1e-9 * float(gradient.abs().max()) + 1e-14)
