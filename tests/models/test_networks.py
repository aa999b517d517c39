"""The networks of few-shot papers: against torchvision, published parameter counts, and an independent DropBlock."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

import metarun
from metarun.config import catalogue
from metarun.config.components import build
from metarun.data.torchvision import load_torchvision
from metarun.errors import UserError
from metarun.models.conv4 import conv4
from metarun.models.layers import DropBlock, Tape
from metarun.models.module import ModuleNetwork
from metarun.models.resnet import Block, resnet, resnet12, wide_resnet
from metarun.models.signals import cnn1d, gru
from metarun.models.vit import ViT, choose_patch, vit
from metarun.testing import check_model
from metarun.types import Batch, Model, Params, Task

EXACT = 1e-10
RESNET12 = functools.partial(resnet12, widths=(3, 4, 3, 4), drop_block=0.0, readout="mean", norm="batch")
RESNET = functools.partial(resnet, depths=(1, 2), width=3, stem="small", readout="mean", norm="batch")
WIDE = functools.partial(wide_resnet, depth=10, widen=1, strides=(1, 2, 2), dropout=0.0, readout="mean", norm="batch")
VIT = functools.partial(
    vit, patch=None, width=8, depth=2, heads=2, hidden=6, dropout=0.0, readout="token", norm="batch"
)
CNN1D = functools.partial(cnn1d, widths=(3, 4), kernels=(4, 3), norm="batch")
GRU = functools.partial(gru, hidden=4, layers=2, bidirectional=True, dropout=0.0, readout="last", norm="batch")

SMALL: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet12": (RESNET12, (2, 16, 16)),
    "resnet12, DropBlock, flatten, support": (
        functools.partial(RESNET12, drop_block=0.2, readout="flatten", norm="support"),
        (2, 16, 33),
    ),
    "resnet, joined": (functools.partial(RESNET, norm="joined"), (2, 6, 6)),
    "resnet, large stem, population, flatten": (
        functools.partial(RESNET, stem="large", norm="population", readout="flatten"),
        (2, 32, 17),
    ),
    "resnet, running": (functools.partial(RESNET, norm="running"), (2, 6, 6)),
    "wide": (functools.partial(WIDE, dropout=0.1), (2, 6, 5)),
    "wide, flatten": (functools.partial(WIDE, readout="flatten", strides=(2, 2, 2)), (2, 9, 11)),
    "vit": (functools.partial(VIT, dropout=0.1), (2, 14, 14)),
    "vit, mean": (functools.partial(VIT, readout="mean", patch=4), (2, 8, 12)),
    "conv6": (
        functools.partial(conv4, filters=3, norm="batch", pool="max", readout="flatten", depth=6),
        (2, 16, 16),
    ),
    "cnn1d": (CNN1D, (2, 9)),
    "gru": (functools.partial(GRU, dropout=0.1), (2, 5)),
    "gru, mean": (functools.partial(GRU, layers=1, bidirectional=False, readout="mean"), (1, 5)),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_pass_the_public_check(name: str) -> None:
    check_model(*SMALL[name])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(module: nn.Module) -> nn.Module:
    """In float64, every parameter moved, so that none is 0 or 1."""
    module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += 0.1 * draw(*parameter.shape, seed=i)
    return module


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


# ---------------------------------------------------------------- torchvision


def copy_in_order(own: nn.Module, theirs: nn.Module, moved: Callable[[list[str]], list[str]] = list) -> None:
    """Give `own` the weights of `theirs`, tensor by tensor in the order of definition."""
    values = dict(theirs.named_parameters())
    with torch.no_grad():
        for parameter, name in zip(own.parameters(), moved([*values]), strict=True):
            parameter.copy_(values[name].view_as(parameter))


@pytest.mark.parametrize(("before", "stride"), [(6, 1), (4, 2)])
def test_a_block_is_torchvisions(before: int, stride: int) -> None:
    load_torchvision()
    from torchvision.models.resnet import BasicBlock

    changes = stride != 1 or before != 6
    shortcut = nn.Sequential(nn.Conv2d(before, 6, 1, stride, bias=False), nn.BatchNorm2d(6)) if changes else None
    theirs = shaken(BasicBlock(before, 6, stride, shortcut))
    own = Block(before, 6, stride).double()
    copy_in_order(own, theirs)
    x = draw(5, before, 7, 7)
    assert_equal(own(x), theirs(x))


@pytest.mark.parametrize("depths", [(1, 1, 1, 1), (2, 2, 2, 2)])
def test_resnet_is_torchvisions(depths: tuple[int, ...]) -> None:
    """ResNet-10 and ResNet-18 with the large stem: outputs with copied weights, through the adapter as well."""
    load_torchvision()
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.resnet import ResNet as Theirs

    theirs = shaken(Theirs(BasicBlock, list(depths), num_classes=3)).train()
    net = resnet((3, 64, 64), 3, depths, 64, "large", "mean", "batch")
    own = net.source.double()
    copy_in_order(own, theirs)
    x = draw(2, 3, 64, 64)
    expected = theirs(x).detach()
    assert_equal(own(x).detach(), expected)
    assert_equal(net.apply({name: dict(own.named_parameters())[k].detach() for name, k in net.names}, x), expected)


def test_vit_is_torchvisions() -> None:
    load_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    theirs = shaken(VisionTransformer(28, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3))
    own = ViT(3, 49, 4, 8, 2, 2, 12, 0.0, 3, "token").double()
    values = dict(theirs.named_parameters())
    blocks = [k.replace("encoder.layers.encoder_layer_", "blocks.") for k in values]
    parts = {
        "conv_proj": "embed",
        "class_token": "token",
        "encoder.pos_embedding": "position",
        "encoder.ln": "norm",
        "heads.head": "head",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention": "self_attn",
        "mlp.0": "linear1",
        "mlp.3": "linear2",
    }
    mine = dict(own.named_parameters())
    with torch.no_grad():
        for name, value in zip(blocks, values.values(), strict=True):
            for theirs_part, own_part in parts.items():
                name = name.replace(theirs_part, own_part)
            target = mine.pop(name)
            target.copy_(value.reshape(target.shape))
    assert not mine
    x = draw(5, 3, 28, 28)
    assert_equal(own(x), theirs(x))


# ---------------------------------------------------------------- ResNet-12 and wide networks, written out


def test_resnet12_is_the_formula_of_its_docstring() -> None:
    """Written with torch's functions, the pooling and the leaky ReLU where Lee et al. 2019 have them."""
    net = RESNET12((2, 20, 16), 3)
    params = {k: v.double() + 0.1 * draw(*v.shape, seed=i) for i, (k, v) in enumerate(net.init(0).items())}
    x = h = draw(4, 2, 20, 16)
    for i in range(4):
        p = {k.removeprefix(f"parts.{i}."): v for k, v in params.items()}
        shortcut = normalised(h, p["shortcut.0.weight"], p["shortcut.1.weight"], p["shortcut.1.bias"])
        for j in (0, 3, 6):
            h = nn.functional.leaky_relu(h, 0.1) if j else h
            h = normalised(h, p[f"body.{j}.weight"], p[f"body.{j + 1}.weight"], p[f"body.{j + 1}.bias"])
        h = nn.functional.max_pool2d(nn.functional.leaky_relu(h + shortcut, 0.1), 2)
    assert_equal(net.apply(params, x), h.mean((2, 3)) @ params["head.weight"].T + params["head.bias"])


def test_a_wide_network_is_the_formula_of_its_docstring() -> None:
    net = WIDE((2, 9, 8), None)
    params = {k: v.double() + 0.1 * draw(*v.shape, seed=i) for i, (k, v) in enumerate(net.init(0).items())}
    x = draw(4, 2, 9, 8)
    h = nn.functional.conv2d(x, params["parts.0.weight"], padding=1)
    for i, stride in ((1, 1), (2, 2), (3, 2)):
        p = {k.removeprefix(f"parts.{i}."): v for k, v in params.items()}
        u = scaled(h, p["enter.0.weight"], p["enter.0.bias"]).relu()
        shortcut = nn.functional.conv2d(u, p["shortcut.weight"], stride=stride) if "shortcut.weight" in p else h
        assert ("shortcut.weight" in p) == (stride == 2)  # widen=1: the first group is as wide as the stem
        f = normalised(u, p["body.0.weight"], p["body.1.weight"], p["body.1.bias"], stride).relu()
        h = nn.functional.conv2d(f, p["body.4.weight"], padding=1) + shortcut
    z = scaled(h, params["parts.4.0.weight"], params["parts.4.0.bias"]).relu().mean((2, 3))
    assert_equal(net.apply(params, x), z)


def normalised(h: Tensor, weight: Tensor, gain: Tensor, shift: Tensor, stride: int = 1) -> Tensor:
    return scaled(nn.functional.conv2d(h, weight, padding=weight.shape[-1] // 2, stride=stride), gain, shift)


def scaled(h: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    mean, variance = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), correction=0, keepdim=True)
    return (h - mean) / (variance + 1e-5).sqrt() * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)


# ---------------------------------------------------------------- parameters

PUBLISHED: dict[str, tuple[tuple[str, ...], tuple[int, ...], int | None, int]] = {
    # The released code of Lee et al. 2019 (github.com/kjunelee/MetaOptNet, models/ResNet12_embedding.py); 12.4 M.
    "resnet12": ((), (3, 84, 84), None, 12_424_320),
    # torchvision's resnet18: 11 689 512 with a head of 1000 classes.
    "resnet18": (("model.stem=large",), (3, 224, 224), 1000, 11_689_512),
    # github.com/osmr/imgclsmob, wrn28_10_cifar10; Zagoruyko, Komodakis 2016: 36.5 M.
    "wrn28_10": ((), (3, 32, 32), 10, 36_479_194),
    # torchvision's VisionTransformer of the size of DeiT-S; Touvron et al. 2021: 22 M.
    "vit_small": (("model.patch=16",), (3, 224, 224), 1000, 22_050_664),
    # The formula: 9 c_in c_out + 2 c_out for each convolution and normalisation, head 1600 n + n.
    "conv6": ((), (3, 84, 84), 5, 9 * (3 * 64 + 5 * 64 * 64) + 6 * 128 + 1600 * 5 + 5),
    # k c_in c_out + 2 c_out of three blocks.
    "cnn1d": ((), (1, 8), None, 8 * 128 + 5 * 128 * 256 + 3 * 256 * 128 + 2 * (128 + 256 + 128)),
    # 3 (H C + H^2 + 2 H).
    "gru": ((), (4, 8), None, 3 * (128 * 4 + 128**2 + 2 * 128)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_sizes_have_the_published_number_of_parameters(name: str) -> None:
    """On tensors without memory."""
    overrides, shape, outputs, count = PUBLISHED[name]
    assert number_of_weights(name, overrides, shape, outputs) == count


def number_of_weights(name: str, overrides: tuple[str, ...], shape: tuple[int, ...], outputs: int | None) -> int:
    settings = metarun.compose([f"model={name}", *overrides]).model
    with torch.device("meta"):
        model: Model = build("model", settings, input_shape=shape, outputs=outputs)
        weights = dict(model.source.named_parameters()) if isinstance(model, ModuleNetwork) else model.init(0)
    return sum(v.numel() for v in weights.values())


# ---------------------------------------------------------------- initial weights


def test_convolutions_start_with_the_published_variance() -> None:
    """2 / (9 width) of fan out, and 2 / width of a 1x1 shortcut; gains 1, shifts 0; 4 standard errors."""
    params = resnet12((3, 16, 16), None, (16, 32, 48, 64), 0.0, "mean", "batch").init(3)
    for name, w in params.items():
        if w.ndim == 4:
            variance = 2 / (w.shape[0] * w.shape[2] * w.shape[3])
            assert float(w.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / w.numel())), name
        else:
            assert torch.equal(w, torch.ones_like(w) if name.endswith("weight") else torch.zeros_like(w))


def test_a_vit_starts_with_a_deviation_of_0_02() -> None:
    params = vit((3, 28, 28), 5, 4, 32, 1, 4, 64, 0.0, "token", "batch").init(3)
    matrices = torch.cat([w.flatten() for w in params.values() if w.ndim == 2])
    assert float(matrices.std()) == pytest.approx(0.02, rel=4 / math.sqrt(2 * len(matrices)))
    others = {float(w.min()) for k, w in params.items() if w.ndim == 1 and k.endswith("bias")}
    assert others == {0.0}


# ---------------------------------------------------------------- DropBlock


def blocks_of(h: Tensor, keys: Tensor, p: float, size: int) -> Tensor:
    tape = Tape()
    tape.begin(None, keys, False)
    return DropBlock(p, size, tape)(h)


KEYS = torch.tensor([[i, 5 * i + 1] for i in range(40)], dtype=torch.float64)


@pytest.mark.parametrize(("height", "width", "size"), [(10, 10, 5), (9, 6, 4), (3, 7, 5), (5, 5, 5)])
def test_drop_block_drops_whole_squares_and_keeps_the_mean(height: int, width: int, size: int) -> None:
    """Every dropped pixel lies in a dropped square; the mask of each row has mean 1; the share is near p."""
    p, side = 0.1, min(size, height, width)
    mask = blocks_of(torch.ones(40, 8, height, width, dtype=torch.float64), KEYS, p, size)
    assert_equal(mask.mean((1, 2, 3)), torch.ones(40, dtype=torch.float64))
    gone = (mask == 0).numpy()
    covered = np.zeros_like(gone)
    for i in range(height - side + 1):
        for j in range(width - side + 1):
            square = gone[:, :, i : i + side, j : j + side].all((2, 3))
            covered[:, :, i : i + side, j : j + side] |= square[:, :, None, None]
    assert (covered == gone).all()
    # A pixel stays if none of the n squares over it begins: (1 - gamma)^n, averaged over the pixels.
    gamma = p * height * width / (side**2 * (height - side + 1) * (width - side + 1))
    over = np.zeros((height, width))
    for i in range(height - side + 1):
        for j in range(width - side + 1):
            over[i : i + side, j : j + side] += 1
    expected = (1 - (1 - gamma) ** over).mean()
    deviation = gone.mean((2, 3)).std() / math.sqrt(40 * 8)
    assert abs(gone.mean() - expected) < 4 * deviation


def test_drop_block_is_a_function_of_the_keys_of_each_row() -> None:
    h = draw(40, 3, 6, 6)
    whole = blocks_of(h, KEYS, 0.3, 3)
    assert torch.equal(blocks_of(h[7:9], KEYS[7:9], 0.3, 3), whole[7:9])
    assert_equal(
        vmap(lambda x, k: blocks_of(x, k, 0.3, 3))(h.view(4, 10, 3, 6, 6), KEYS.view(4, 10, 2)).flatten(0, 1), whole
    )
    assert torch.equal(DropBlock(0.3, 3)(h), h)
    assert torch.isfinite(blocks_of(h, KEYS, 0.999, 6)).all()
    with pytest.raises(UserError, match=r"^DropBlock\(p=0.3\): its input has 20 rows where the batch has 40"):
        blocks_of(h[:20], KEYS, 0.3, 3)


def test_drop_block_acts_in_training_alone_and_in_the_last_two_blocks() -> None:
    net, without = RESNET12((2, 32, 32), 3, drop_block=0.4), RESNET12((2, 32, 32), 3)
    params = net.init(0)
    assert [i for i, part in enumerate(net.source.parts) if isinstance(part.drop, DropBlock)] == [2, 3]
    x = torch.randn(2, 4, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    tasks = Task(Batch(x, torch.zeros(2, 4)), Batch(x, torch.zeros(2, 4)))
    assert net.add_noise is not None
    _, noisy = net.add_noise(params, tasks, seed=0, step=3)
    assert torch.equal(net.apply(params, x[0]), without.apply(params, x[0]))
    assert not torch.equal(net.apply(params, noisy.support.x[0]), net.apply(params, x[0]))
    assert torch.equal(net.apply(params, noisy.support.x[0]), net.apply(params, noisy.support.x[0]))


# ---------------------------------------------------------------- population statistics of large networks


def test_population_statistics_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first normalisation those of all rows; of later ones the pooled moments of the parts; no more at once."""
    net = functools.partial(RESNET, norm="population")((2, 6, 6), None)
    params, x = {k: v.double() for k, v in net.init(0).items()}, draw(10, 2, 6, 6)
    whole = net.calibrate(params, x).fixed
    assert_equal(whole, net.measure(params, x))
    assert net.widest == 3 * 6 * 6
    monkeypatch.setattr("metarun.models.module.NUMBERS_AT_ONCE", 4 * net.widest)
    seen: list[int] = []
    monkeypatch.setattr(
        ModuleNetwork, "measure", lambda self, p, rows: seen.append(len(rows)) or measured(self, p, rows)
    )
    found = net.calibrate(params, x).fixed
    assert seen == [4, 3, 3]
    assert found is not None
    assert whole is not None
    assert_equal(found[0], whole[0])
    parts = [measured(net, params, part) for part in (x[:4], x[4:7], x[7:])]
    for i, (mean, variance) in enumerate(found):
        second = sum(w * (p[i][1] + p[i][0] ** 2) for w, p in zip((0.4, 0.3, 0.3), parts, strict=True))
        assert_equal(mean, sum(w * p[i][0] for w, p in zip((0.4, 0.3, 0.3), parts, strict=True)))
        assert_equal(variance, second - mean**2)


measured = ModuleNetwork.measure


# ---------------------------------------------------------------- sizes and mistakes


def test_conv6_is_convolve_normalise_relu_and_pools_in_four_blocks() -> None:
    net = conv4((2, 16, 16), None, 4, "batch", "max", "flatten", depth=6)
    params = {k: v.double() + 0.1 * draw(*v.shape, seed=i) for i, (k, v) in enumerate(net.init(0).items())}
    x = h = draw(5, 2, 16, 16)
    for i in range(6):
        p: Params = {k.removeprefix(f"block{i}."): v for k, v in params.items()}
        h = normalised(h, p["weight"], p["gain"], p["shift"]).relu()
        h = nn.functional.max_pool2d(h, 2) if i < 4 else h
    assert_equal(net.apply(params, x), h.flatten(1))


@pytest.mark.parametrize(
    ("sides", "patch"),
    [((84, 84), 12), ((32, 32), 4), ((28, 28), 4), ((64, 64), 8), ((224, 224), 32), ((84, 56), 7), ((8, 8), 1)],
)
def test_a_patch_is_the_largest_that_leaves_49(sides: tuple[int, int], patch: int) -> None:
    assert choose_patch(sides, None) == patch


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "vectors": (lambda: RESNET12((4,), 3), r"^_target_=resnet12: needs images, .* \[4\]; try model=mlp"),
    "signals to images": (lambda: VIT((2, 8), 3), r"^_target_=vit: needs images"),
    "images to signals": (lambda: GRU((3, 8, 8), 3), r"^_target_=gru: needs signals"),
    "small": (lambda: RESNET12((3, 15, 40), 3), r"^_target_=resnet12: needs images of 16x16 .* has 15x40"),
    "widths": (lambda: RESNET12((3, 16, 16), 3, widths=(4, 4)), r"^widths=\[4, 4\]: must be 4 whole numbers"),
    "drop": (lambda: RESNET12((3, 16, 16), 3, drop_block=1.0), r"^drop_block=1.0: must be at least 0 and below 1"),
    "readout": (lambda: RESNET12((3, 16, 16), 3, readout="max"), r"^readout=max: choices: mean, flatten"),
    "norm": (lambda: RESNET12((3, 16, 16), 3, norm="group"), r"^norm=group: choices: batch, joined"),
    "stem": (lambda: RESNET((3, 8, 8), 3, stem="7x7"), r"^stem=7x7: choices: auto, large, small"),
    "depth": (lambda: WIDE((3, 8, 8), 3, depth=27), r"^depth=27: must be 10, 16"),
    "strides": (lambda: WIDE((3, 8, 8), 3, strides=(1, 2)), r"^strides=\[1, 2\]: must be 3 whole"),
    "patch": (lambda: VIT((3, 84, 84), 3, patch=16), r"^patch=16: images of 84x84 can have patches of 3, 4, 6, 7, 12"),
    "prime": (lambda: VIT((3, 83, 83), 3), r"^patch=None: images of 83x83 can have patches of 83 pixels"),
    "heads": (lambda: VIT((3, 28, 28), 3, heads=3), r"^heads=3: must divide the width 8"),
    "kernels": (lambda: CNN1D((1, 9), 3, kernels=(3,)), r"^kernels=\[3\]: must be 2 whole numbers"),
    "layers": (lambda: GRU((1, 9), 3, layers=1, dropout=0.1), r"^dropout=0.1: is between layers"),
    "stride and depth": (lambda: conv4((3, 84, 84), 3, 4, "batch", "stride", "mean", 6), r"^pool=stride: .*pool=max"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_page_of_networks_has_every_option() -> None:
    from helpers.commands import ROOT

    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    for option in catalogue.list_options("model"):
        assert f"`model={option}" in page, option
