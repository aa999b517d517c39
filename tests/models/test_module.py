"""Modules of the user's own: equal to the built-in network, to torch's layers, to finite differences; their errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.modules import Attending, Residual, Sequence, SmallConv
from torch import Tensor, nn
from torch.func import vmap

from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.models.conv4 import conv4
from metarun.models.layers import Tape, replace_layers
from metarun.models.module import ModuleNetwork, from_module, module
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
