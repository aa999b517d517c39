"""Modules of the user's own: equal to the built-in network, to torch's layers, to finite differences; their errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.modules import Attending, Branch, Counter, Item, Noise, Residual, Sequence, Sideways, SmallConv
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils.rnn import pack_sequence

from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.errors import UserError
from metarun.models.conv4 import conv4
from metarun.models.layers import RowAttention, RowDropout, Tape, keep, replace_layers
from metarun.models.module import ModuleNetwork, from_module, module
from metarun.models.precision import cast_model
from metarun.types import Algorithm, Batch, Model, Params, Task

EXACT = 1e-10
IMAGE = (1, 16, 16)
NORMS = pytest.mark.parametrize("norm", ["batch", "support", "population", "joined"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind: type[nn.Module], shape: tuple[int, ...], outputs: int | None, norm: str = "batch", **args: Any) -> Any:
    """As model=module makes it."""
    target = f"{kind.__module__}.{kind.__name__}"
    return module(shape, outputs, target, args, None, norm, (kind.__module__.split(".")[0],))


def doubled(params: Params) -> Params:
    return {k: v.double() for k, v in params.items()}


def vector(params: Params) -> Tensor:
    return torch.cat([p.flatten() for p in params.values()])


def episode(shape: tuple[int, ...], ways: int = 3, seed: int = 0) -> Task:
    def rows(count: int, seed: int) -> Batch:
        return Batch(random(ways * count, *shape, seed=seed), torch.arange(ways).repeat(count))

    return Task(rows(2, 2 * seed), rows(3, 2 * seed + 1))


def maml(model: Model) -> MAML:
    return MAML(model, CrossEntropy(), inner_lr=0.1, inner_steps=2, test_inner_steps=2, first_order=False)


def protonet(model: Model) -> Algorithm:
    return ProtoNet(model, CrossEntropy(), 3, "euclidean", 1.0)


# ---------------------------------------------------------------- the built-in network


def translated(params: Params) -> Params:
    """Parameters of the built-in conv4 under the names of SmallConv."""
    parts = {"weight": "0.weight", "gain": "1.weight", "shift": "1.bias"}
    return {
        name if name.startswith("head.") else f"blocks.{name[5]}.{parts[name[7:]]}": value
        for name, value in params.items()
    }


def pair(norm: str, outputs: int | None = 3) -> tuple[Model, Params, ModuleNetwork, Params]:
    """The built-in conv4 and the module, with equal weights."""
    built_in = conv4(IMAGE, outputs, 8, norm, "stride", "mean")
    params = doubled(built_in.init(1))
    params = {k: v + 0.2 * random(*v.shape, seed=i) for i, (k, v) in enumerate(params.items())}
    own = made(SmallConv, IMAGE, outputs, norm)
    assert translated(params).keys() == own.init(0).keys()
    return built_in, params, own, translated(params)


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


@NORMS
def test_a_module_is_the_built_in_network(norm: str) -> None:
    """Outputs, statistics of the queries, calibrated outputs, activations: to 1e-10 with equal weights."""
    built_in, params, own, own_params = pair(norm)
    support, query = random(6, *IMAGE), random(7, *IMAGE, seed=1)
    assert own.norm == norm
    assert own.features == built_in.features == 8
    for x, given in ((support, False), (query, True)):
        stats = (built_in.query_stats(params, support), own.query_stats(own_params, support)) if given else (None, None)
        assert_equal(own.apply(own_params, x, stats[1]), built_in.apply(params, x, stats[0]))
    calibrated = built_in.calibrate(params, support), own.calibrate(own_params, support)
    assert_equal(calibrated[1].apply(own_params, query), calibrated[0].apply(params, query))
    found, expected = own.activations(own_params, query), built_in.activations(params, query)
    assert [*found] == ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "features"]
    assert_equal([*found.values()], [*expected.values()])


@NORMS
def test_meta_gradients_are_those_of_the_built_in_network(norm: str) -> None:
    for outputs in (3, None):
        built_in, params, own, own_params = pair(norm, outputs)
        learner: Callable[[Model], Algorithm] = (
            maml if outputs else lambda m: ProtoNet(m, CrossEntropy(), 3, "euclidean", 1.0)
        )
        found, metrics = learner(own).meta_grad(own_params, episode(IMAGE))
        expected, expected_metrics = learner(built_in).meta_grad(params, episode(IMAGE))
        assert_equal(found, translated(expected))
        assert_equal(metrics, expected_metrics)


def test_in_bfloat16_all_but_the_head_is_narrow_as_in_the_built_in_network() -> None:
    """Both differ from float64 by about 2^-8, and from each other by no more; the head is exact."""
    built_in, params, own, own_params = pair("batch")
    x = random(7, *IMAGE)
    exact, narrow = own.apply(own_params, x), cast_model(own, "bfloat16")
    found, expected = narrow.apply(own_params, x), cast_model(built_in, "bfloat16").apply(params, x)
    assert 2**-12 < relative(found, exact) < 2**-5
    assert relative(found, expected) < 2**-5
    features = narrow.activations(own_params, x)["features"]
    assert_equal(found, features @ own_params["head.weight"].T + own_params["head.bias"])
    assert_equal(own.apply(own_params, x), exact)  # the network itself stays as it is


def test_in_bfloat16_meta_gradients_differ_by_rounding_and_dropout_has_its_keys() -> None:
    smooth = from_module(
        nn.Sequential(nn.Conv1d(2, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)), input_shape=(2, 6)
    )
    params = doubled(smooth.init(0))
    exact, _ = maml(smooth).meta_grad(params, episode((2, 6)))
    found, _ = maml(cast_model(smooth, "bfloat16")).meta_grad(params, episode((2, 6)))
    assert 2**-12 < relative(vector(found), vector(exact)) < 0.03
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    network: Any = from_module(module, input_shape=(6,)).fit((6,), 3)
    narrow: Any = cast_model(network, "bfloat16")
    keyed = torch.cat([random(4, 6).float(), torch.arange(8.0).view(4, 2)], 1)
    assert relative(narrow.apply(narrow.init(0), keyed), network.apply(network.init(0), keyed)) < 2**-6


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_running_statistics_are_constants() -> None:
    """norm=running: the module in evaluation mode, a function of each row alone."""
    net = Residual((4,)).double()
    for _ in range(5):
        net(random(8, 4) * 3)
    own = from_module(net, norm="running", input_shape=(4,))
    x = random(5, 4, seed=1)
    assert_equal(own.apply(own.init(0), x), net.eval()(x))
    assert_equal(own.apply(own.init(0), x[:1]), net(x)[:1])
    assert own.query_stats(own.init(0), x) is None


# ---------------------------------------------------------------- torch's layers


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "num_layers": 2}])
def test_recurrent_layers_are_torchs(kind: str, batch_first: bool, options: dict[str, Any]) -> None:
    """Outputs and last states, with and without a first state, of a batch and of one sequence."""
    if kind == "LSTM" and options.get("bidirectional"):
        options = options | {"proj_size": 2}
    if kind == "RNN" and options.get("bidirectional"):
        options = options | {"nonlinearity": "relu"}
    layer = getattr(nn, kind)(3, 4, batch_first=batch_first, **options).double()
    held = nn.Sequential(copy.deepcopy(layer))
    replace_layers(held, "batch", Tape())
    assert {k.removeprefix("0."): v for k, v in held.state_dict().items()}.keys() == layer.state_dict().keys()
    x = random(2, 5, 3)
    expected, state = layer(x)
    assert_equal(held[0](x), (expected, state))
    start = torch.utils._pytree.tree_map(lambda s: random(*s.shape, seed=2), state)
    assert_equal(held[0](x, start), layer(x, start))
    assert_equal(held[0](x[0]), layer(x[0]))


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNNCell"])
def test_cells_are_torchs(kind: str) -> None:
    cell = getattr(nn, kind)(3, 4).double()
    held = nn.Sequential(copy.deepcopy(cell))
    replace_layers(held, "batch", Tape())
    x, state = random(5, 3), cell(random(5, 3, seed=1))
    assert_equal(held[0](x), cell(x))
    assert_equal(held[0](x, state), cell(x, state))
    assert_equal(held[0](x[0]), cell(x[0]))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.LayerNorm((4, 5, 5)), (4, 5, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 5, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 5, 5)),
    "embedding": (lambda: nn.Embedding(7, 3, padding_idx=0), (4,)),
    "cell": (lambda: nn.GRUCell(4, 3), (4,)),
    "max pool": (lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.MaxPool2d(2)), (4, 5, 5)),
    "adaptive pool": (lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1)), (4, 5, 5)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), (3, 4)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "convolution in one dimension": (lambda: nn.Sequential(nn.Conv1d(4, 3, 3), nn.BatchNorm1d(3)), (4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_torchs_and_batch_over_tasks(name: str) -> None:
    """Outputs in training mode; meta-gradients of two tasks under vmap are those of a loop."""
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    net = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).double()
    x = random(6, *shape).abs().floor() if name == "embedding" else random(6, *shape)
    indices = x.long() if name == "embedding" else x
    net(indices)
    own = from_module(net, input_shape=shape)
    assert_equal(own.apply(own.init(0), x), net(indices).detach())
    check_the_task_axis(own, shape, whole=name == "embedding")


def check_the_task_axis(own: ModuleNetwork, shape: tuple[int, ...], whole: bool = False) -> None:
    learner, params = maml(own), doubled(own.init(0))
    tasks = [episode(shape, seed=seed) for seed in (0, 1)]
    if whole:
        tasks = [Task(*(Batch(b.x.abs().floor(), b.y) for b in task)) for task in tasks]
    together = Task(*(Batch(*map(torch.stack, zip(*batches, strict=True))) for batches in zip(*tasks, strict=True)))
    found, _ = vmap(learner.meta_grad, in_dims=(None, 0))(params, together)
    for i, task in enumerate(tasks):
        expected, _ = learner.meta_grad(params, task)
        assert_equal({k: v[i] for k, v in found.items()}, expected)


# ---------------------------------------------------------------- finite differences

NETS: list[Any] = [
    pytest.param(lambda: made(Residual, (4,), 3), (4,), id="residual"),
    pytest.param(lambda: made(Residual, (4,), 3, "support"), (4,), id="residual-support"),
    pytest.param(lambda: made(Sequence, (3, 2), 3), (3, 2), id="gru"),
    pytest.param(lambda: made(Sequence, (3, 2), 3, cell="LSTM"), (3, 2), id="lstm"),
    pytest.param(lambda: made(Attending, (3, 4), 3), (3, 4), id="attention"),
    pytest.param(lambda: made(Attending, (3, 4), 3, p=0.2), (3, 4), id="attention-with-dropout"),
]


@pytest.mark.parametrize(("make", "shape"), NETS)
def test_meta_gradients_are_finite_differences(make: Callable[[], ModuleNetwork], shape: tuple[int, ...]) -> None:
    """Along a random unit direction, in float64, through two inner steps; and vmap is a loop."""
    own = make()
    learner, params, task, h = maml(own), doubled(own.init(0)), episode(shape), 1e-6
    v = {k: random(*p.shape, seed=i) for i, (k, p) in enumerate(params.items())}
    v = {k: p / vector(v).norm() for k, p in v.items()}
    gradient, _ = learner.meta_grad(params, task)
    moved = ({k: p + sign * h * v[k] for k, p in params.items()} for sign in (1, -1))
    up, down = (float(learner.meta_grad(p, task)[1]["loss"]) for p in moved)
    length = float(vector(gradient).norm())
    assert (up - down) / (2 * h) == pytest.approx(float(vector(gradient) @ vector(v)), abs=1e-7 * length)
    check_the_task_axis(own, shape)


# ---------------------------------------------------------------- what is found by itself


def test_the_head_is_the_last_linear_layer_and_its_names_are_those_of_heads() -> None:
    own = from_module(Residual((4,)), input_shape=(4,))
    assert own.head == "classifier"
    assert [n for n in own.init(0) if n.startswith("head.")] == ["head.weight", "head.bias"]
    assert "enter.1.weight" in own.init(0)
    assert own.features == 6


def test_a_child_named_head_is_the_head_as_a_whole() -> None:
    net = nn.Sequential()
    net.body, net.head = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    own = from_module(net).fit((4,), 3)
    assert [*own.init(0)] == [f"{k}.{kind}" for k in ("body", "head.0", "head.2") for kind in ("weight", "bias")]
    assert own.features == 5
    with pytest.raises(UserError, match=r"^head=body: Sequential has head.0.weight beside it"):
        from_module(net, head="body")


def test_a_learner_of_features_gets_the_module_without_its_head() -> None:
    """By outputs=None where the constructor takes it, else with the identity in the head's place."""
    taken, removed = made(SmallConv, IMAGE, None), made(Residual, (4,), None)
    assert taken.features == taken.apply(taken.init(0), random(2, *IMAGE).float()).shape[1] == 8
    assert removed.features == removed.apply(removed.init(0), random(2, 4).float()).shape[1] == 6
    assert not [n for n in (*taken.init(0), *removed.init(0)) if n.startswith(("head.", "classifier."))]
    wide = module((4,), None, "helpers.modules.Plain", {"outputs": 7}, None, "batch", ("helpers",))
    assert wide.features == 7  # an embedding of a width that the settings choose
    net = Residual((4,)).double()
    own = from_module(net).fit((4,), None)
    x = random(5, 4)
    net.classifier = nn.Identity()  # type: ignore[assignment]
    assert_equal(own.apply(own.init(0), x), net(x).detach())


def test_a_seed_gives_the_weights_and_the_global_random_state_stays() -> None:
    own = made(SmallConv, IMAGE, 3)
    before = torch.get_rng_state()
    first, again, other = own.init(0), own.init(0), own.init(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_given_module_keeps_its_weights_and_is_never_changed() -> None:
    net = Residual((4,))
    state = copy.deepcopy(net.state_dict())
    own = from_module(net.eval(), input_shape=(4,))
    learner = maml(own)
    learner.meta_grad(doubled(own.init(0)), episode((4,)))
    assert not net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(own.init(0)["head.weight"], own.init(7)["head.weight"])
    assert torch.equal(own.init(0)["head.weight"], state["classifier.weight"])


def test_parameters_without_a_gradient_are_constants() -> None:
    net = Residual((4,))
    net.enter.requires_grad_(False)
    own = from_module(net, input_shape=(4,))
    assert not [n for n in own.init(0) if n.startswith("enter.")]
    assert_equal(own.apply(own.init(0), random(5, 4).float()), net(random(5, 4).float()).detach())


def test_lazy_layers_and_single_layers() -> None:
    lazy = module(IMAGE, 3, "helpers.modules.Lazy", {}, None, "batch", ("helpers",))
    assert lazy.init(0)["head.weight"].shape == (3, 4)
    assert from_module(nn.Linear(4, 3)).fit((4,), 3).init(0).keys() == {"head.weight", "head.bias"}


# ---------------------------------------------------------------- dropout


def dropping() -> ModuleNetwork:
    return made(Residual, (4,), 3, p=0.5)


def test_masks_of_dropout_are_functions_of_seed_step_task_and_row() -> None:
    """The same whichever tasks are drawn beside a task; others for another step, seed, task or row."""
    own = dropping()
    assert own.add_noise is not None
    params = doubled(own.init(0))
    tasks = Task(*(Batch(b.x.expand(3, *b.x.shape), b.y.expand(3, -1)) for b in episode((4,))))

    def outputs(seed: int = 0, step: int = 0, chosen: slice = slice(0, 3)) -> Tensor:
        assert own.add_noise is not None
        some = Task(*(Batch(b.x[chosen], b.y[chosen]) for b in tasks))
        _, noisy = own.add_noise(params, some, seed, step, chosen.start)
        return torch.stack([own.apply(params, x) for x in noisy.support.x])

    whole = outputs()
    assert torch.equal(outputs(), whole)
    assert torch.equal(outputs(chosen=slice(1, 3)), whole[1:])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(outputs(step=1), whole)
    assert not torch.equal(outputs(seed=1), whole)
    assert_equal(own.apply(params, tasks.support.x[0]), made(Residual, (4,), 3).apply(params, tasks.support.x[0]))


def test_dropout_is_the_same_under_vmap_as_one_task_at_a_time() -> None:
    own = dropping()
    assert own.add_noise is not None
    tasks = Task(*(Batch(b.x.expand(2, *b.x.shape), b.y.expand(2, -1)) for b in episode((4,))))
    params, tasks = own.add_noise(doubled(own.init(0)), tasks, 0, 0)
    found, _ = vmap(maml(own).meta_grad, in_dims=(None, 0))(params, tasks)
    for i in range(2):
        expected, _ = maml(own).meta_grad(params, Task(*(Batch(b.x[i], b.y[i]) for b in tasks)))
        assert_equal({k: v[i] for k, v in found.items()}, expected)


def test_dropout_keeps_the_right_share_independently_of_its_neighbours() -> None:
    keys = torch.randint(2**24, (2000, 2), generator=torch.Generator().manual_seed(0)).double()
    kept = keep(keys, 1, 50, 0.3).double()
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.006)  # four deviations of 100 000 draws
    centred = kept - 0.7
    for other in (keep(keys, 2, 50, 0.3).double() - 0.7, centred.roll(1, 0), centred.roll(1, 1)):
        assert abs(float((centred * other).mean())) < 4 * 0.21 / 100_000**0.5
    channels = RowDropout(0.5, True, Tape(keys=keys[:4]))(torch.ones(4, 6, 3, 3))
    assert torch.equal(channels, channels[..., :1, :1].expand_as(channels))
    assert {*channels.unique().tolist()} == {0.0, 2.0}


@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False}, {"kdim": 3, "vdim": 2}])
def test_attention_without_keys_is_torchs_and_with_keys_drops_weights(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, 0.5, **options).double().eval()
    tape, (rows, long) = Tape(), ((2, 5) if options.get("batch_first") else (5, 2))
    own = RowAttention(attention, tape)
    q, k, v = (random(rows, long, size, seed=i) for i, size in enumerate((4, attention.kdim, attention.vdim)))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = torch.ones(5, 5).triu(1).bool()
    for given in ({}, {"attn_mask": causal}, {"key_padding_mask": padding}, {"attn_mask": random(4, 5, 5, seed=3)}):
        assert_equal(own(q, k, v, **given), attention(q, k, v, **given))
    assert_equal(own(q, k, v, average_attn_weights=False)[1], attention(q, k, v, average_attn_weights=False)[1])
    tape.begin(None, torch.tensor([[1, 2], [3, 4]]), False)
    _, weights = own(q, k, v, average_attn_weights=False)
    plain = attention(q, k, v, average_attn_weights=False)[1]
    kept = weights != 0
    assert 0.2 < float(kept.double().mean()) < 0.8
    assert_equal(weights[kept], 2 * plain[kept])


# ---------------------------------------------------------------- errors

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "item": (lambda: from_module(Item(3)).fit((4,), 3), r"^Item: cannot be batched over tasks: .*one_hot\)"),
    "one layer": (
        lambda: from_module(nn.Linear(4, 3)).fit((4,), None),
        r"^Sequential: has no parameters to train, or none before its head",
    ),
    "branch": (lambda: from_module(Branch(3)).fit((4,), 3), r"^Branch: .*tasks: it branches on a tensor's value"),
    "random": (lambda: from_module(Noise(3)).fit((4,), 3), r"^Noise: .*draws random numbers while it runs"),
    "buffer": (lambda: from_module(Counter(3)).fit((4,), 3), r"^Counter: changes its buffer calls"),
    "outputs": (lambda: made(Residual, (4,), 5), r"^head=classifier: Residual puts out \[3\] .* need \[5\]"),
    "head": (lambda: from_module(Residual((4,)), head="clasifier"), r"did you mean classifier"),
    "no head": (lambda: from_module(Residual((4,)), head="x"), r"^head=x: .*choices: .*classifier"),
    "norm": (lambda: from_module(Residual((4,)), norm="layer"), r"^norm=layer: choices: batch, joined"),
    "shape": (lambda: from_module(Residual((4,))).fit((5,), 3), r"^Residual: fails on inputs .*\[2, 5\]"),
    "argument": (lambda: made(Residual, (4,), 3, widht=3), r"^model.args.widht: .*did you mean width"),
    "missing": (lambda: made(nn.Linear, (4,), 3, out_features=3), r"^model.args.in_features: is missing"),
    "type": (lambda: made(Residual, (4,), 3, width="a"), r"^model.target=helpers.modules.Residual: Residual"),
    "trust": (
        lambda: module((4,), 3, "torch.nn.Linear", {}, None, "batch", ("own",)),
        r"^target=torch.* outside of own",
    ),
    "target": (lambda: module((4,), 3, None, {}, None, "batch", ()), r"^target=None: must be"),
    "class": (lambda: made(Batch, (4,), 3, x=1, y=1), "makes a Batch, which is no torch.nn.Module"),
    "lazy": (lambda: from_module(nn.LazyLinear(3)), "has lazy layers"),
    "attention": (lambda: from_module(nn.MultiheadAttention(4, 2, 0.1, add_zero_attn=True)), "set its dropout to 0"),
    "rows": (lambda: from_module(Sideways()).fit((3, 4), 4), r"^Sideways: .*has 3 rows where the batch has 2"),
    "alpha": (lambda: from_module(nn.Sequential(nn.AlphaDropout(0.1))), "AlphaDropout"),
    "slopes": (lambda: from_module(nn.Sequential(nn.RReLU())), "random slopes"),
    "running": (
        lambda: from_module(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), norm="running"),
        r"^norm=running: layer 0 keeps no running statistics",
    ),
}


class NormAndActivation(nn.BatchNorm2d):
    """As timm's, an activation behind the normalisation."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


class Renamed(nn.BatchNorm2d): ...


def test_a_layer_with_a_forward_of_its_own_keeps_it_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def net(norm: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Flatten(), nn.Linear(8, 2))

    with pytest.raises(UserError, match=r"^1: .*NormAndActivation has a forward of its own, .* nn.BatchNorm2d's"):
        from_module(net(NormAndActivation(2)))
    from_module(net(Renamed(2)))
    monkeypatch.setattr(NormAndActivation, "__module__", "timm.layers.norm_act")
    given, x = net(NormAndActivation(2)), torch.randn(5, 1, 4, 4)
    network = from_module(given)
    torch.testing.assert_close(network.apply(network.init(0), x), given(x))


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_packed_sequences_are_refused() -> None:
    held = nn.Sequential(nn.GRU(3, 4))
    replace_layers(held, "batch", Tape())
    with pytest.raises(UserError, match="packed sequences"):
        held(pack_sequence([torch.zeros(2, 3)]))


def test_code_that_cannot_be_imported_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("x = (")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^target=broken.Net: cannot be imported \(SyntaxError"):
        module((4,), 3, "broken.Net", {}, None, "batch", ("broken",))
