"""A function as a shared library: the same results, one library for a graph, and a way out where none can be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop_op
from torch.func import grad, vmap

from metarun.algorithms.losses import FunctionLoss
from metarun.algorithms.maml import MAML
from metarun.cli.compose import compose
from metarun.compute import ahead_of_time
from metarun.compute.ahead_of_time import AheadOfTime
from metarun.compute.compilation import Foreign, compile_function, identify
from metarun.compute.device import Placement
from metarun.training.experiment import assemble
from metarun.training.meta_gradient import MetaGradient, MetaGradients, build_meta_gradient, decisive_parts


class Pair(NamedTuple):
    first: Tensor
    second: dict[str, Tensor]


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def function(weights: dict[str, Tensor], pair: Pair) -> Pair:
    """Gradients of each row's loss after a step of gradient descent."""

    def loss(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return (torch.relu(x @ w["a"]) @ w["b"]).square().mean()

    def adapted(w: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        slopes = grad(loss)(w, x)
        return loss({k: w[k] - 0.1 * slopes[k] for k in w}, y)

    slopes = vmap(grad(adapted), (None, 0, 0))(weights, pair.first, pair.second["y"])
    return Pair(slopes["a"].mean(0), {"b": slopes["b"], "finite": slopes["a"].isfinite().all()})


def refuse() -> Callable[..., Any]:
    raise AssertionError("cannot be traced")


def compiled(folder: Path, made: Callable[..., Any] = function) -> AheadOfTime:
    return AheadOfTime(made, folder, {"cpp.threads": 1}, refuse)


def inputs(tasks: int = 3, seed: int = 0) -> tuple[dict[str, Tensor], Pair]:
    weights = {"a": double(2, 4, seed=seed), "b": double(4, 1, seed=seed + 1)}
    return weights, Pair(double(tasks, 5, 2, seed=seed + 2), {"y": double(tasks, 5, 2, seed=seed + 3)})


def assert_equal(found: Pair, expected: Pair) -> None:
    assert isinstance(found, Pair)
    assert found.second.keys() == expected.second.keys()
    torch.testing.assert_close(found.first, expected.first, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.second["b"], expected.second["b"], rtol=1e-12, atol=1e-13)
    assert found.second["finite"].dtype == torch.bool
    assert torch.equal(found.second["finite"], expected.second["finite"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the library of three tasks."""
    path = tmp_path_factory.mktemp("libraries")
    compiled(path)(*inputs())
    return path


def never_compile(*_: Any, **__: Any) -> Any:
    raise AssertionError("was compiled again")


def test_results_are_those_of_the_function(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "aot_compile", never_compile)  # another process finds the library
    call = compiled(folder)
    for seed in range(3):
        assert_equal(call(*inputs(seed=seed)), function(*inputs(seed=seed)))


def test_memory_order_is_no_matter_and_one_tensor_may_stand_in_two_places(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor, "aot_compile", never_compile)
    weights, pair = inputs()
    twice = Pair(pair.first, {"y": pair.first})
    call = compiled(folder)
    assert_equal(call(weights, twice), function(weights, twice))  # the first call, by which it is traced
    across = Pair(pair.first.transpose(0, 2).contiguous().transpose(0, 2), pair.second)
    assert_equal(call(weights, across), function(weights, across))


def test_other_constants_are_another_library(tmp_path: Path) -> None:
    for number in (2.0, 3.0):
        factor = torch.tensor([number, 1.0], dtype=torch.float64)
        assert torch.equal(compiled(tmp_path, lambda x, f=factor: x * f)(torch.ones(2)), factor)
    assert len(list(tmp_path.glob("*.so"))) == 2


def descend(rate: float, limit: float, first: Tensor, steps: Tensor, x: Tensor) -> Tensor:
    """x <- min(x - rate x + (rate, 1) / 4, limit), so many times, from rate x on; (rate, 1) is a tensor in the loop."""

    def step(i: Tensor, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, (x - rate * x + 0.25 * torch.tensor([rate, 1.0], dtype=x.dtype)).clamp_max(limit)

    return while_loop_op(lambda i, x, steps: i < steps, step, (first, rate * x), (steps,))[1]


def test_other_rates_and_limits_find_the_same_library(tmp_path: Path) -> None:
    """Inside and outside of a loop."""
    x = double(5, 2)
    for rate, limit in ((0.1, 1.5), (0.3, 0.7)):
        expected, offset = rate * x, 0.25 * torch.tensor([rate, 1.0], dtype=torch.float64)
        for _ in range(3):
            expected = (expected - rate * expected + offset).clamp_max(limit)
        found = compiled(tmp_path, partial(descend, rate, limit))(torch.tensor(0), torch.tensor(3), x)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_a_damaged_library_is_made_anew(tmp_path: Path) -> None:
    x, whole, cut = double(3), tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    torch.testing.assert_close(compiled(whole, torch.cos)(x), x.cos())
    (library,) = whole.glob("*.so")
    (cut / library.name).write_bytes(library.read_bytes()[:1000])
    torch.testing.assert_close(compiled(cut, torch.cos)(x), x.cos())
    assert [ahead_of_time._is_whole(path) for path in cut.glob("*.so")].count(True) == 1


def test_a_function_that_reads_a_value_is_compiled_otherwise(tmp_path: Path) -> None:
    def branches(x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1

    calls: list[str] = []

    def otherwise() -> Callable[..., Any]:
        calls.append("made")
        return branches

    call = AheadOfTime(branches, tmp_path, {}, otherwise)
    assert torch.equal(call(torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(call(-torch.ones(2)), torch.full((2,), -2.0))
    assert calls == ["made"]


def test_each_shape_is_compiled_but_no_more_than_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_of_time, "MOST_SHAPES", 2)
    call = compiled(tmp_path, torch.sin)
    for size in (2, 3, 2, 4):
        torch.testing.assert_close(call(torch.ones(size)), torch.ones(size).sin())
    assert len(list(tmp_path.glob("*.so"))) == 2


class Counting:
    """A user's part, whose Python changes from call to call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("settings", [["algo=imaml", "reg=[l1,l2]"], ["algo=metasgd"], ["algo=anp", "data=gp"]])
def test_metaruns_own_learners_have_an_identity(settings: list[str]) -> None:
    one, same, other = (
        identify((experiment.algorithm, experiment.regularization))
        for more in ([], ["seed=7"], ["model.hidden=[7]"])
        for experiment in [assemble(compose(["data=sinusoid", *settings, *more]))]
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


def test_parts_of_a_user_are_not() -> None:
    learner = assemble(compose(["algo=maml", "data=sinusoid"])).algorithm
    assert isinstance(learner, MAML)
    for part in (Counting(), torch.nn.Linear(1, 1), inputs, FunctionLoss(Counting()), {"a": [Counting()]}):
        with pytest.raises(Foreign):
            identify(part)
    more: list[Any] = [replace(learner, loss=FunctionLoss(Counting())), partial(torch.add, Counting())]
    for part in more:
        with pytest.raises(Foreign):
            identify(part)


def test_functions_of_one_identity_are_traced_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_of_time, "_traced", {})
    traced: list[int] = []
    compile_it = AheadOfTime._compile
    monkeypatch.setattr(AheadOfTime, "_compile", lambda *a: (traced.append(1), compile_it(*a))[1])
    for identity, count in (("a", 1), ("a", 1), ("b", 2), (None, 3), (None, 4)):
        call = AheadOfTime(function, folder, {"cpp.threads": 1}, refuse, identity)
        assert_equal(call(*inputs()), function(*inputs()))
        assert len(traced) == count
    weights, pair = inputs()
    renamed = AheadOfTime(lambda w, p: function({"a": w["x"], "b": w["b"]}, p), folder, {"cpp.threads": 1}, refuse, "a")
    assert_equal(renamed({"x": weights["a"], "b": weights["b"]}, pair), function(weights, pair))
    assert len(traced) == 5


SMALL = ["algo=maml", "data=sinusoid", "model.hidden=[4]", "device.compile=true", "train.tasks=2"]


def test_equal_steps_have_one_identity() -> None:
    """Those of runs that differ in their seed; another inner rate, number of tasks or penalty is another step."""
    changed = ([], ["seed=1"], ["algo.inner_lr=0.5"], ["train.tasks=3"], ["reg=l2"], ["device.chunk_size=1"])
    first, seed, *others = (identify(decisive_parts(assemble(compose([*SMALL, *c])).trainer())) for c in changed)
    assert seed == first
    assert first not in others
    assert len(set(others)) == len(others)


def test_the_step_of_a_run_is_that_without_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is not finite."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    trainer = assemble(compose(SMALL)).trainer()
    params, tasks = trainer.start().params, trainer.tasks(0)
    call, plain = MetaGradients(trainer, params, print).at(0), build_meta_gradient(trainer)
    for spoilt in (False, True):
        if spoilt:
            tasks.query.y[1] = torch.inf
        found, expected = call(params, tasks), plain(params, tasks)
        assert isinstance(found, MetaGradient)
        assert bool(found.finite) == bool(expected.finite) == (not spoilt)
        for name, gradient in expected.grads.items():
            torch.testing.assert_close(found.grads[name][0], gradient[0], rtol=1e-4, atol=1e-6)
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_a_function_with_a_users_part_follows_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    part, placement = Counting(), Placement(torch.device("cpu"), torch.float32, None, True)
    call = compile_function(lambda x: part(x), placement, {"p": torch.ones(2)}, part)
    assert [float(call(torch.ones(1))) for _ in range(3)] == [1.0, 2.0, 3.0]
