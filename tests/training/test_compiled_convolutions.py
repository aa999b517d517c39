"""Which convolution networks are compiled without being asked for, and that their meta-gradients stay the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.folder_data import FOLDERS, SIDE
from helpers.image_files import as_folder
from torch import Tensor
from torch.func import grad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import max_pool2d

from metarun.algorithms.losses import FunctionLoss
from metarun.algorithms.maml import MAML
from metarun.cli.compose import compose
from metarun.compute.compilation import compile_function
from metarun.models.conv4 import halve
from metarun.training import meta_gradient
from metarun.training.experiment import assemble
from metarun.training.meta_gradient import (
    MetaGradients,
    build_meta_gradient,
    build_step_gradient,
    decisive_parts,
    should_compile_step,
)
from metarun.training.run import Trainer
from metarun.types import Params, Task

SMALL = ["data=folder", f"data.image_size={SIDE}", "data.ways=2", "data.shots=1", "data.queries=1", "model=conv4"]
SMALL += ["data.test_queries=1"]
SMALL += ["model.filters=4", "train.tasks=3", "train.steps=1000", "device.threads=1"]

ALONE = "model.pool=max model.depth=3 device.chunk_size=1"
"""Tasks one at a time."""


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
        (f"{ALONE} train.steps=1334", True),  # 4002 tasks
        (f"{ALONE} train.steps=1333", False),
        (f"{ALONE} train.steps=1334 device.chunk_size=2", False),
        (f"{ALONE} train.steps=9000 algo.first_order=true", False),
        (f"{ALONE} train.steps=9000 algo=anil", False),
        (f"{ALONE} train.steps=9000 algo=boil", True),
        (f"{ALONE} train.steps=9000 algo=imaml", True),
        (f"{ALONE} train.steps=9000 algo=reptile algo.train_shots=2", False),
        (f"{ALONE} train.steps=9000 algo=protonet", False),
        ("algo=imaml model.pool=max model.depth=3 train.tasks=1 train.steps=4000", True),
    ],
)
def test_convolutions_that_train_long_are_compiled(
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


def test_of_tasks_that_are_taken_alone_one_is_compiled(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without a compiler: the function that it is given computes one task, and gives the same."""
    given: list[tuple[int, ...]] = []

    def compile_function(function: Callable[..., Any], *_: Any) -> Callable[..., Any]:
        def call(params: Params, task: Task) -> Any:
            given.append(tuple(task.support.x.shape))
            return function(params, task)

        return call

    monkeypatch.setattr(meta_gradient, "compile_function", compile_function)
    trainer = trainer_of(images, *ALONE.split())
    params, tasks = trainer.start().params, trainer.tasks(0)
    found = build_step_gradient(trainer, params, compiled=True)(params, tasks)
    assert given == [tuple(tasks.support.x.shape[1:])] * 3
    torch.testing.assert_close(found, build_meta_gradient(trainer)(params, tasks), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_a_compiled_max_pool_is_that_of_torch(size: tuple[int, int]) -> None:
    """Values, ties, NaN, and both derivatives."""
    x = torch.randint(0, 3, (2, 3, *size), generator=torch.Generator().manual_seed(0)).double()
    x[0, 0, 1, 1] = torch.nan
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def derivatives(pool: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        def first(x: Tensor) -> Tensor:
            return grad(lambda x: pool(x).pow(3).sum())(x)

        return pool(x), first(x), grad(lambda x: (first(x) * v).sum())(x)

    expected = derivatives(lambda x: max_pool2d(x, 2))
    traced = make_fx(halve)(x)
    assert "max_pool" not in traced.code
    torch.testing.assert_close(derivatives(traced), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(derivatives(halve), expected, rtol=0, atol=0, equal_nan=True)


def test_an_exported_network_keeps_the_operator() -> None:
    class Pool(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return halve(x)

    program = torch.export.export(Pool(), (torch.zeros(1, 1, 4, 4),))
    assert "max_pool2d" in program.graph_module.code


@pytest.mark.parametrize(
    "more",
    [
        "algo=protonet model.norm=population train.tasks=1",
        pytest.param("algo=maml model.norm=batch", marks=pytest.mark.long),
        pytest.param("algo=maml model.norm=joined", marks=pytest.mark.long),
        pytest.param("algo=reptile algo.train_shots=2 model.norm=batch", marks=pytest.mark.long),
        pytest.param("algo=imaml model.norm=batch", marks=pytest.mark.long),
        pytest.param(f"{ALONE} train.steps=2000 model.norm=batch", marks=pytest.mark.long),
        pytest.param(f"{ALONE} train.steps=2000 algo=imaml model.norm=batch", marks=pytest.mark.long),
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
