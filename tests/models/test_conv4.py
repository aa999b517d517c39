"""Convolutions as matrix products, and moments of a product without it, against torch's convolution and batch norm."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import assert_same
from torch import Tensor
from torch.func import grad, jvp, vmap

from metarun.compute.compilation import compile_function
from metarun.compute.device import make_placement
from metarun.compute.task_axis import map_tasks, to_channels_last
from metarun.config.schema import DeviceConfig
from metarun.models.conv4 import conv4
from metarun.models.network import Network
from metarun.models.norm import moments, product_moments
from metarun.types import Batch, Params, Task

NORMS = ("batch", "group", "none")
CASES = [
    pytest.param((channels, *side), 18 * channels - below, norm, pool, id=f"{channels}x{side}-{below}-{norm}-{pool}")
    for channels, side, below, norm, pool in itertools.chain(
        itertools.product((1, 3), [(16, 17)], (0, 1), NORMS, ("stride", "max")),
        itertools.product((1,), [(9, 5), (7, 8), (1, 1), (28, 28)], (0,), ["batch"], ["stride"]),
    )
]
"""18 filters a channel are the fewest with which the first block is a product of windows; one less is a convolution."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(model: Network, seed: int = 0) -> Params:
    start = model.init(seed)
    return {k: w.double() + 0.2 * random(*w.shape, seed=seed + i) for i, (k, w) in enumerate(start.items())}


def textbook(params: Params, x: Tensor, norm: str, pool: str) -> Tensor:
    """Logits by torch's own functions."""
    h = x
    for i in range(4):
        h = F.conv2d(h, params[f"block{i}.weight"], stride=2 if pool == "stride" else 1, padding=1)
        gain, shift = params.get(f"block{i}.gain"), params[f"block{i}.shift"]
        if norm == "batch":
            h = F.batch_norm(h, None, None, gain, shift, training=True, eps=1e-5)
        elif norm == "group":
            h = F.group_norm(h, math.gcd(8, h.shape[1]), gain, shift, eps=1e-5)
        else:
            h = h + shift.view(1, -1, 1, 1)
        h = F.relu(h if pool == "stride" else F.max_pool2d(h, 2))
    return F.linear(h.mean((2, 3)), params["head.weight"], params["head.bias"])


def slopes(apply: Any, params: Params, x: Tensor) -> tuple[Params, Params]:
    """The gradient of a loss, and its derivative along the parameters themselves: backward, then through that."""

    def loss(p: Params) -> Tensor:
        return apply(p, x).square().sum() / x.shape[0]

    along = {k: torch.sin(v) for k, v in params.items()}
    return grad(loss)(params), grad(lambda p: sum((g * along[k]).sum() for k, g in grad(loss)(p).items()))(params)


@pytest.mark.parametrize(("shape", "filters", "norm", "pool"), CASES)
def test_outputs_and_both_derivatives_are_those_of_torchs_convolutions(
    shape: tuple[int, int, int], filters: int, norm: str, pool: str
) -> None:
    model = conv4(shape, 3, filters, norm, pool, "mean")
    params, x = lively(model), random(4, *shape, seed=5)
    assert_same(model.apply(params, x), textbook(params, x, norm, pool))
    expected = slopes(lambda p, x: textbook(p, x, norm, pool), params, x)
    for images in (x, to_channels_last(x)):
        for found, right in zip(slopes(model.apply, params, images), expected, strict=True):
            for name in right:
                torch.testing.assert_close(found[name], right[name], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("pool", ["stride", "max"])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_tasks_together_are_tasks_alone(pool: str, chunk: int | None) -> None:
    """Each task steps along its gradient and is differentiated through that, as MAML does."""
    model = conv4((1, 16, 16), 3, 18, "batch", pool, "mean")

    def outer(theta: Params, task: Task) -> Tensor:
        inner = grad(lambda p: model.apply(p, task.support.x).square().mean())(theta)
        phi = {k: theta[k] - 0.1 * inner[k] for k in theta}
        return model.apply(phi, task.query.x).square().mean()

    def meta_grad(theta: Params, task: Task) -> tuple[Params, Params]:
        return grad(outer)(theta, task), {"loss": outer(theta, task)}

    params, nothing = lively(model), torch.zeros(3, 4)
    tasks = Task(*(Batch(random(3, 4, 1, 16, 16, seed=s), nothing) for s in (1, 2)))
    found, metrics = map_tasks(meta_grad, 3, chunk)(params, tasks)
    for t in range(3):
        alone, loss = meta_grad(params, Task(*(Batch(b.x[t], b.y[t]) for b in tasks)))
        torch.testing.assert_close(metrics["loss"][t], loss["loss"], rtol=1e-10, atol=0)
        for name in alone:
            torch.testing.assert_close(found[name][t], alone[name], rtol=1e-8, atol=1e-10)


def test_a_derivative_along_a_direction_is_the_backward_one() -> None:
    """Forward mode goes through the products as well."""
    model = conv4((1, 9, 9), 3, 18, "batch", "stride", "mean")
    params, x = lively(model), random(4, 1, 9, 9)
    along = {k: torch.cos(v) for k, v in params.items()}
    _, forward = jvp(lambda p: model.apply(p, x).square().sum(), (params,), (along,))
    backward = grad(lambda p: model.apply(p, x).square().sum())(params)
    torch.testing.assert_close(forward, sum((g * along[k]).sum() for k, g in backward.items()), rtol=1e-9, atol=0)


def test_moments_of_a_product_are_those_of_the_product() -> None:
    x, weight = 3 + random(5, 4, 6, 7), random(8, 4, seed=1)
    product = torch.einsum("bkij,ok->boij", x, weight)
    for found, right in zip(product_moments(x, weight), moments(product), strict=True):
        assert_same(found, right)


def test_images_without_contrast_have_a_variance_of_zero() -> None:
    """And never one below, whose root would be NaN."""
    x = torch.full((5, 4, 6, 7), 0.1)
    weight = random(64, 4, seed=1).float()
    variance = product_moments(x, weight)[1]
    assert float(variance.min()) >= 0.0
    torch.testing.assert_close(variance, torch.zeros(64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "support", "population"])
def test_statistics_of_another_batch_go_into_the_weights(norm: str) -> None:
    """What `given` moments do to the linear part, as a map of its own: (h - mean) / sqrt(var + eps) gain + shift."""
    model = conv4((1, 16, 16), 3, 18, norm, "stride", "mean")
    params, x = lively(model), random(4, 1, 16, 16, seed=2)
    stats = model.measure(params, random(6, 1, 16, 16, seed=3))
    h = x
    for i, (mean, variance) in enumerate(stats):
        h = F.conv2d(h, params[f"block{i}.weight"], stride=2, padding=1)
        h = F.relu(F.batch_norm(h, mean, variance, params[f"block{i}.gain"], params[f"block{i}.shift"], eps=1e-5))
    assert_same(model.apply(params, x, stats), F.linear(h.mean((2, 3)), params["head.weight"], params["head.bias"]))


def test_images_of_one_channel_are_channels_last_by_their_strides() -> None:
    """By these the network knows what memory order its max-pool is to be given."""
    found = to_channels_last(random(2, 1, 5, 4))
    assert found.stride() == (20, 1, 4, 1)
    assert_same(found, random(2, 1, 5, 4))


def test_one_task_at_a_time_is_channels_last_unless_contiguous_is_asked_for() -> None:
    seen = []

    def look(params: Params, task: Task) -> tuple[Params, Params]:
        seen.append((params["w"].stride(), task.support.x.stride()))
        return {}, {}

    batch = Batch(random(2, 3, 5, 4, 4), torch.zeros(2, 3))
    for memory_format in ("auto", "channels_last", "contiguous"):
        map_tasks(look, 1, None, memory_format)({"w": random(6, 5, 3, 3)}, Task(batch, batch))
    last, plain = ((45, 1, 15, 5), (80, 1, 20, 5)), ((45, 9, 3, 1), (80, 16, 4, 1))
    assert seen == [last, last, plain]


def test_compiled_code_is_kept_beside_the_images_unless_a_place_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    for before, after in ((None, str(tmp_path / "compiled")), (str(tmp_path / "a"), str(tmp_path / "a"))):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        if before:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        compile_function(lambda x: x, make_placement(DeviceConfig(name="cpu")), {})
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == after


def test_weights_of_each_task_are_batched_too() -> None:
    model = conv4((1, 9, 8), 3, 18, "batch", "stride", "mean")
    each = [lively(model, seed) for seed in range(3)]
    stacked = {k: torch.stack([p[k] for p in each]) for k in each[0]}
    x = random(3, 4, 1, 9, 8)
    alone = torch.stack([textbook(p, images, "batch", "stride") for p, images in zip(each, x, strict=True)])
    assert_same(vmap(model.apply)(stacked, x), alone)
