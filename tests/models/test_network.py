"""Networks and their normalisations against torch's functions and against the definitions."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import assert_same
from torch import Tensor
from torch.func import vmap

from metarun.errors import SettingError
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.models.network import Network
from metarun.models.norm import NORMS, moments, normalise
from metarun.types import Params

EPS = 1e-5
EVERY_NORM = pytest.mark.parametrize("norm", NORMS)
WITH_STATISTICS = pytest.mark.parametrize("norm", ["batch", "joined", "support", "population"])
EITHER_MODEL = pytest.mark.parametrize("kind", ["mlp", "conv4"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(kind: str, norm: str, outputs: int | None = 3, pool: str = "stride", readout: str = "mean") -> Network:
    if kind == "mlp":
        return mlp((2, 3), outputs, (8, 6), norm)
    return conv4((2, 16, 16), outputs, 8, norm, pool, readout)


def inputs(kind: str, rows: int, seed: int = 0) -> Tensor:
    return random(rows, 2, 3, seed=seed) if kind == "mlp" else random(rows, 2, 16, 16, seed=seed)


def random_params(model: Network, seed: int = 0) -> Params:
    """Gains and shifts differ from 1 and 0, so that forgetting one shows."""
    params = {k: p.double() for k, p in model.init(seed).items()}
    draw = torch.Generator().manual_seed(seed + 1)
    for name, p in params.items():
        if name.endswith(("gain", "shift", "bias")):
            params[name] = p + 0.3 * torch.randn(p.shape, generator=draw, dtype=torch.float64)
    return params


def per_channel(v: Tensor, h: Tensor) -> Tensor:
    return v.view(1, -1, *[1] * (h.ndim - 2))


# ---------------------------------------------------------------- normalisation of one layer

SHAPES = pytest.mark.parametrize("shape", [(5, 12), (5, 12, 4, 3)], ids=["rows", "images"])


@SHAPES
@WITH_STATISTICS
def test_batch_norms_are_torchs_batch_norm_in_training_mode(shape: tuple[int, ...], norm: str) -> None:
    """(h - mean) / sqrt(var + 1e-5) * gain + shift with the moments of the batch, var divided by n."""
    h, gain, shift = random(*shape), random(12, seed=1), random(12, seed=2)
    found = normalise(h, gain, shift, norm, None)
    assert_same(found, F.batch_norm(h, None, None, gain, shift, training=True, eps=EPS))
    channels = h.transpose(0, 1).flatten(1)
    by_hand = (h - per_channel(channels.mean(1), h)) / per_channel((channels.var(1, correction=0) + EPS).sqrt(), h)
    assert_same(found, by_hand * per_channel(gain, h) + per_channel(shift, h))


@SHAPES
@WITH_STATISTICS
def test_given_moments_of_the_batch_itself_reproduce_batch_norm(shape: tuple[int, ...], norm: str) -> None:
    """Statistics handed in are used as they are: those of the batch give the batch's result, others do not."""
    h, gain, shift = random(*shape), random(12, seed=1), random(12, seed=2)
    own = normalise(h, gain, shift, norm, None)
    assert_same(normalise(h, gain, shift, norm, moments(h)), own)
    other = normalise(h, gain, shift, norm, moments(random(*shape, seed=3) * 2 + 1))
    assert float((other - own).abs().max()) > 0.1


@SHAPES
def test_moments_are_mean_and_biased_variance_of_each_channel(shape: tuple[int, ...]) -> None:
    """Over all axes but the second, the variance divided by n and not by n - 1."""
    h = random(*shape)
    channels = [h[:, c].flatten() for c in range(12)]
    mean, variance = moments(h)
    assert_same(mean, torch.stack([c.mean() for c in channels]))
    assert_same(variance, torch.stack([(c - c.mean()).square().sum() / len(c) for c in channels]))


@SHAPES
@pytest.mark.parametrize(("norm", "groups"), [("group", 4), ("layer", 1)])
def test_group_and_layer_norm_standardise_each_example_alone(shape: tuple[int, ...], norm: str, groups: int) -> None:
    """12 channels are not divided by 8: gcd(8, 12) = 4 groups of three. Mean and variance per example and group."""
    h, gain, shift = random(*shape), random(12, seed=1), random(12, seed=2)
    expected = torch.empty_like(h)
    for i, g in itertools.product(range(len(h)), range(groups)):
        members = slice(g * 12 // groups, (g + 1) * 12 // groups)
        part = h[i, members]
        expected[i, members] = (part - part.mean()) / (part.var(correction=0) + EPS).sqrt()
    assert_same(normalise(h, gain, shift, norm, None), expected * per_channel(gain, h) + per_channel(shift, h))


@SHAPES
def test_no_norm_adds_the_shift(shape: tuple[int, ...]) -> None:
    h, shift = random(*shape), random(12, seed=2)
    assert_same(normalise(h, None, shift, "none", None), h + per_channel(shift, h))


# ---------------------------------------------------------------- who sees whom


@EITHER_MODEL
@EVERY_NORM
def test_only_batch_statistics_let_rows_of_a_batch_see_each_other(kind: str, norm: str) -> None:
    """Row 0 is predicted beside two different companies. Per example (group, layer, none) its output stays; with the
    statistics of the batch at hand, which is all that any of the others have in training, it moves.
    """
    model = network(kind, norm)
    params, x = random_params(model), inputs(kind, 6)
    company = torch.cat([x[:1], inputs(kind, 5, seed=9)])
    first, second = model.apply(params, x)[0], model.apply(params, company)[0]
    if norm in ("group", "layer", "none"):
        assert_same(first, second)
    else:
        assert float((first - second).abs().max()) > 1e-3


@EITHER_MODEL
@EVERY_NORM
def test_query_statistics_are_the_support_sets_only_for_norms_that_ask_for_it(kind: str, norm: str) -> None:
    """support, joined: queries see the support set and not each other. All others: `query_stats` is None."""
    model = network(kind, norm)
    params, support = random_params(model), inputs(kind, 5, seed=1)
    queries = inputs(kind, 6, seed=2)
    stats = model.query_stats(params, support)
    if norm not in ("support", "joined"):
        assert stats is None
        return
    together = model.apply(params, queries, stats)
    alone = torch.cat([model.apply(params, q[None], stats) for q in queries])
    assert_same(together, alone)
    moved = model.apply(params, queries, model.query_stats(params, support * 2 + 1))
    assert float((together - moved).abs().max()) > 1e-3


@EITHER_MODEL
def test_joined_puts_each_query_in_a_batch_with_the_support_set(kind: str) -> None:
    """What batch normalisation makes of the last of S + 1 rows, a query each: its output, blocks and features."""
    model, batch = network(kind, "joined"), network(kind, "batch")
    params, support, queries = random_params(model), inputs(kind, 5, seed=1), inputs(kind, 3, seed=2)
    stats, batches = model.query_stats(params, support), [torch.cat([support, q[None]]) for q in queries]
    assert_same(model.apply(params, queries, stats), torch.stack([batch.apply(params, b)[-1] for b in batches]))
    layers = [batch.activations(params, b) for b in batches]
    expected = {name: torch.stack([found[name][-1] for found in layers]) for name in layers[0]}
    assert_same(model.activations(params, queries, stats), expected)


@EITHER_MODEL
@WITH_STATISTICS
def test_statistics_are_measured_layer_by_layer_on_normalised_activations(kind: str, norm: str) -> None:
    """Feeding a batch with its own measured statistics is batch normalisation: block i's moments are those that
    block i meets after blocks 0 .. i - 1 have been normalised.
    """
    model = network(kind, norm)
    params, x = random_params(model), inputs(kind, 7)
    assert_same(model.apply(params, x, model.measure(params, x)), model.apply(params, x))


@EITHER_MODEL
def test_a_calibrated_population_norm_repeats_the_batch_it_was_measured_on(kind: str) -> None:
    """Precise batch norm: on the reference batch X itself, fixed statistics and those of the batch are the same."""
    model = network(kind, "population")
    params, x = random_params(model), inputs(kind, 9)
    calibrated = model.calibrate(params, x)
    assert_same(calibrated.apply(params, x), model.apply(params, x))
    assert_same(calibrated.apply(params, x), network(kind, "batch").apply(params, x))


@EITHER_MODEL
def test_a_calibrated_population_norm_is_not_transductive(kind: str) -> None:
    """With fixed statistics every row is predicted alone as it is in company, whatever the support set was."""
    model = network(kind, "population")
    params, x = random_params(model), inputs(kind, 6, seed=3)
    calibrated = model.calibrate(params, inputs(kind, 20, seed=4))
    assert calibrated.query_stats(params, x) is None
    alone = torch.cat([calibrated.apply(params, row[None]) for row in x])
    assert_same(calibrated.apply(params, x), alone)
    assert model.fixed is None  # the model it came from goes on training with the batch's statistics


@EITHER_MODEL
@EVERY_NORM
def test_calibration_changes_no_other_norm(kind: str, norm: str) -> None:
    model = network(kind, norm)
    calibrated = model.calibrate(random_params(model), inputs(kind, 4))
    assert (calibrated is model) == (norm != "population")


@EITHER_MODEL
def test_given_statistics_take_precedence_over_fixed_ones(kind: str) -> None:
    """`stats` is for the call at hand; `fixed` for whoever says nothing."""
    model = network(kind, "population")
    params, x = random_params(model), inputs(kind, 6)
    calibrated = model.calibrate(params, inputs(kind, 20, seed=4))
    assert_same(calibrated.apply(params, x, model.measure(params, x)), model.apply(params, x))


@EITHER_MODEL
@EVERY_NORM
def test_tasks_with_their_own_weights_under_vmap_equal_a_loop(kind: str, norm: str) -> None:
    """No running statistics, no data-dependent shapes: the network itself can be batched over weights and inputs."""
    model = network(kind, norm)
    each = [random_params(model, seed) for seed in range(3)]
    params_T = {k: torch.stack([p[k] for p in each]) for k in each[0]}
    x_T = torch.stack([inputs(kind, 4, seed) for seed in range(3)])
    looped = torch.stack([model.apply(p, x) for p, x in zip(each, x_T, strict=True)])
    assert_same(vmap(model.apply)(params_T, x_T), looped)


# ---------------------------------------------------------------- architecture


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_an_mlp_is_linear_normalise_relu_and_a_head(norm: str) -> None:
    """Textbook order, the input flattened first."""
    model = network("mlp", norm)
    params, x = random_params(model), inputs("mlp", 5)
    h = x.reshape(5, 6)
    for i in range(2):
        h = h @ params[f"block{i}.weight"].T
        h = F.relu(normalise(h, params.get(f"block{i}.gain"), params[f"block{i}.shift"], norm, None))
    assert_same(model.apply(params, x), h @ params["head.weight"].T + params["head.bias"])


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "softplus", "elu"])
def test_an_mlp_has_torchs_activation_of_that_name(activation: str) -> None:
    """Between the blocks, and after a block of `linear_blocks` none."""
    model = mlp((6,), 3, (5, 4, 4), "none", linear_blocks=(1,), activation=activation)
    params, x = random_params(model), inputs("mlp", 5).reshape(5, 6)
    act = {"tanh": torch.tanh, **vars(F)}[activation]
    first, second, third = (
        lambda h, i=i: h @ params[f"block{i}.weight"].T + params[f"block{i}.shift"] for i in range(3)
    )
    features = act(third(second(act(first(x)))))
    assert_same(model.apply(params, x), features @ params["head.weight"].T + params["head.bias"])


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("pool", ["stride", "max"])
@pytest.mark.parametrize("readout", ["mean", "flatten"])
def test_conv4_is_convolve_normalise_relu_pool_in_the_textbook_order(norm: str, pool: str, readout: str) -> None:
    """The code pools before the ReLU. Both are monotone: max_i relu(h_i) = relu(max_i h_i), so nothing changes.

    A negative gain does not matter: it acts before either.
    """
    model = network("conv4", norm, pool=pool, readout=readout)
    params, h = random_params(model), inputs("conv4", 5)
    for i in range(4):
        h = F.conv2d(h, params[f"block{i}.weight"], stride=2 if pool == "stride" else 1, padding=1)
        h = F.relu(normalise(h, params.get(f"block{i}.gain"), params[f"block{i}.shift"], norm, None))
        h = F.max_pool2d(h, 2) if pool == "max" else h
    z = h.mean((2, 3)) if readout == "mean" else h.reshape(5, -1)
    assert_same(model.apply(params, inputs("conv4", 5)), z @ params["head.weight"].T + params["head.bias"])


@pytest.mark.parametrize(
    ("side", "pool", "left"),
    [(28, "stride", 2), (28, "max", 1), (84, "stride", 6), (84, "max", 5), (16, "max", 1), (9, "stride", 1)],
)
@pytest.mark.parametrize("readout", ["mean", "flatten"])
def test_feature_counts_follow_from_four_halvings(side: int, pool: str, left: int, readout: str) -> None:
    """A 3x3 convolution with padding 1 and stride 2 gives ceil(s / 2), a 2x2 max-pool floor(s / 2).

    28: 14, 7, 4, 2 and 14, 7, 3, 1. 84: 42, 21, 11, 6 and 42, 21, 10, 5. `features` is what `apply` returns.
    """
    model = conv4((1, side, side), None, 4, "none", pool, readout)
    assert model.features == (4 if readout == "mean" else 4 * left**2)
    x = torch.zeros(2, 1, side, side)
    assert model.apply(model.init(0), x).shape == (2, model.features)


def test_images_that_are_not_square_keep_both_sides_apart() -> None:
    """28 x 20 with stride 2: 14 x 10, 7 x 5, 4 x 3, 2 x 2. With max-pool: 14 x 10, 7 x 5, 3 x 2, 1 x 1."""
    for pool, area in (("stride", 4), ("max", 1)):
        model = conv4((3, 28, 20), None, 5, "batch", pool, "flatten")
        assert model.features == 5 * area
        assert model.apply(model.init(0), torch.randn(2, 3, 28, 20)).shape == (2, 5 * area)


@EVERY_NORM
@pytest.mark.parametrize("outputs", [5, None])
def test_conv4_has_as_many_weights_as_the_formula_says(norm: str, outputs: int | None) -> None:
    """9 C F + 3 (9 F F) convolution weights, F shifts a block, F gains a block unless norm=none, head (D + 1) N.

    C = 1, F = 64, stride 2 on 28 x 28, the mean, N = 5: 576 + 110592 + 256 + 256 + 325 = 112005.
    """
    f = 64
    model = conv4((1, 28, 28), outputs, f, norm, "stride", "mean")
    params = model.init(0)
    expected = 9 * f + 3 * 9 * f * f + 4 * f * (1 if norm == "none" else 2) + (0 if outputs is None else 5 * (f + 1))
    assert sum(p.numel() for p in params.values()) == expected
    if norm == "batch" and outputs == 5:
        assert expected == 112005
    assert any("gain" in name for name in params) == (norm != "none")
    assert any("head" in name for name in params) == (outputs is not None)


@EVERY_NORM
def test_an_mlp_has_as_many_weights_as_the_formula_says(norm: str) -> None:
    """Widths 1, 40, 40, 1 without norm: (1 + 1) 40 + (40 + 1) 40 + (40 + 1) 1 = 1761, as in Finn et al. 2017."""
    params = mlp((1,), 1, (40, 40), norm).init(0)
    assert sum(p.numel() for p in params.values()) == 1761 + (0 if norm == "none" else 80)


# ---------------------------------------------------------------- initialisation


def test_first_weights_of_a_given_deviation_are_normal_and_cut_off_at_two_of_it() -> None:
    """The deviation of a normal variable within two of its own is 0.880 of it."""
    params = mlp((100,), 100, (100, 100), "none", init_std=0.01).init(0)
    weights = torch.cat([v.flatten() for name, v in params.items() if name.endswith("weight")])
    assert float(weights.abs().max()) <= 0.02
    assert float(weights.std()) == pytest.approx(0.00880, rel=0.02)
    assert float(weights.mean()) == pytest.approx(0, abs=2e-4)
    assert all(not v.any() for name, v in params.items() if name.endswith(("shift", "bias")))
    with pytest.raises(SettingError, match=r"init_std=0\.0: must be above 0"):
        mlp((1,), 1, (4,), "none", init_std=0.0)


@EITHER_MODEL
def test_weights_are_xavier_uniform_gains_one_shifts_zero(kind: str) -> None:
    """|w| <= sqrt(6 / (fan_in + fan_out)), fans counted with the kernel's 9 taps; uniform has variance bound^2 / 3.

    n draws: the largest is above 0.9 bound but with probability 0.9^n, and the mean is within 5 bound / sqrt(3 n).
    """
    model = mlp((50,), 20, (40, 30), "batch") if kind == "mlp" else conv4((2, 16, 16), 20, 12, "batch", "max", "mean")
    for name, p in model.init(0).items():
        if name.endswith("gain"):
            assert torch.equal(p, torch.ones_like(p))
        elif name.endswith(("shift", "bias")):
            assert torch.equal(p, torch.zeros_like(p))
        else:
            taps = math.prod(p.shape[2:])
            bound = math.sqrt(6 / (taps * (p.shape[0] + p.shape[1])))
            assert 0.9 * bound < float(p.abs().max()) <= bound
            assert abs(float(p.mean())) < 5 * bound / math.sqrt(3 * p.numel())


@EITHER_MODEL
@EVERY_NORM
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(kind: str, norm: str) -> None:
    """A generator of its own: neither the global state nor an earlier call changes what a seed means."""
    model = network(kind, norm)
    first = model.init(7)
    torch.rand(3)
    again, other = model.init(7), model.init(8)
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[k], again[k]) for k in first)
    weights = [k for k in first if k.endswith("weight")]
    assert weights
    assert not any(torch.equal(first[k], other[k]) for k in weights)


def test_initialising_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    network("conv4", "batch").init(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_different_layers_do_not_share_their_draws() -> None:
    """Two layers of equal shape must differ: they are drawn one after the other from one stream."""
    params = mlp((6,), 6, (6, 6), "none").init(0)
    assert not torch.equal(params["block0.weight"], params["block1.weight"])
    assert not torch.equal(params["block1.weight"], params["head.weight"])


def test_a_network_is_a_frozen_value() -> None:
    """Equal settings give equal values, and nothing can be assigned."""
    assert mlp((2,), 3, (4,), "none") == mlp((2,), 3, (4,), "none")
    assert mlp((2,), 3, (4,), "none") != mlp((2,), 3, (5,), "none")
    with pytest.raises(FrozenInstanceError):
        mlp((2,), 3, (4,), "none").norm = "batch"  # type: ignore[misc]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"filters": 0}, "filters"),
        ({"pool": "average"}, "pool"),
        ({"readout": "sum"}, "readout"),
        ({"norm": "batchnorm"}, "norm"),
        ({"input_shape": (1,)}, "_target_"),
        ({"input_shape": (8, 8)}, "_target_"),
        ({"input_shape": (1, 15, 15), "pool": "max"}, "pool"),  # 7, 3, 1, 0
        ({"input_shape": (1, 28, 15), "pool": "max"}, "pool"),
    ],
)
def test_conv4_refuses_settings_that_cannot_work(settings: dict[str, object], key: str) -> None:
    sound = {"input_shape": (1, 28, 28), "outputs": 5, "filters": 4, "norm": "batch", "pool": "max", "readout": "mean"}
    conv4(**sound)
    with pytest.raises(SettingError) as refused:
        conv4(**{**sound, **settings})
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"hidden": ()}, "hidden"),
        ({"hidden": (4, 0)}, "hidden"),
        ({"hidden": (-1,)}, "hidden"),
        ({"norm": ""}, "norm"),
        ({"activation": "sin"}, "activation"),
    ],
)
def test_mlp_refuses_settings_that_cannot_work(settings: dict[str, object], key: str) -> None:
    sound = {"input_shape": (1,), "outputs": 1, "hidden": (4,), "norm": "none"}
    mlp(**sound)
    with pytest.raises(SettingError) as refused:
        mlp(**{**sound, **settings})
    assert refused.value.key == key


def test_the_smallest_image_that_four_max_pools_leave_something_of_is_16() -> None:
    """16: 8, 4, 2, 1. A pixel less is refused, above."""
    model = conv4((1, 16, 16), None, 4, "batch", "max", "flatten")
    assert model.features == 4
    assert model.apply(model.init(0), torch.randn(3, 1, 16, 16)).shape == (3, 4)
