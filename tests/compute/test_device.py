"""The settings of `device`: what may be typed, what each does, and that the meta-gradient stays the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import metarun
from metarun.compute.ahead_of_time import AheadOfTime
from metarun.compute.compilation import compile_function, should_compile
from metarun.compute.device import Placement, make_placement
from metarun.compute.task_axis import map_tasks
from metarun.config.schema import check
from metarun.errors import SettingError, UserError
from metarun.models.precision import Narrow, cast_model
from metarun.training.experiment import assemble, build_learner
from metarun.training.loop import outer_step
from metarun.training.meta_gradient import build_meta_gradient
from metarun.types import Algorithm, Batch, Kind, Params, Task

UNIT = 2.0**-8
"""One unit in the last place of a bfloat16, relative to the number."""

WAYS, SHOTS, QUERIES, TASKS = 3, 3, 4, 4


@pytest.fixture(autouse=True)
def _process_settings() -> Iterator[None]:
    """What `place` sets belongs to the process: put back after every test."""
    threads = torch.get_num_threads()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@dataclass(frozen=True)
class Clouds:
    """Images of noise around a centre for each class: no pixel is constant, so that few ReLUs are at their kink."""

    side: int = 16
    kind: ClassVar[Kind] = "classification"

    def input_shape(self) -> tuple[int, ...]:
        return (2, self.side, self.side)

    def outputs(self, ways: int) -> int:
        return ways

    def tasks(self) -> Task:
        draw = torch.Generator().manual_seed(0)
        centres = torch.randn(TASKS, WAYS, *self.input_shape(), generator=draw, dtype=torch.float64)

        def batch(per_class: int) -> Batch:
            y = torch.arange(WAYS).repeat(per_class).expand(TASKS, -1)
            noise = torch.randn(*y.shape, *self.input_shape(), generator=draw, dtype=torch.float64)
            return Batch(centres.repeat(1, per_class, 1, 1, 1) + 0.5 * noise, y)

        return Task(batch(SHOTS), batch(QUERIES))


def learner(*overrides: str) -> Algorithm:
    """With its YAML's settings, but a damped system for iMAML: next to negative curvature its solution jumps."""
    small = ["model.filters=16"] if "model=conv4" in overrides else ["model.hidden=[32,32]"]
    small += ["algo.cg_damping=10"] if "algo=imaml" in overrides else []
    dataset: Any = Clouds()
    return build_learner(metarun.compose([*small, *overrides, "recipe=absent"]), dataset, WAYS)


def mean_gradient(algorithm: Algorithm, params: Params, tasks: Task, chunk: int | None = None) -> Tensor:
    """Of the tasks, as one vector of float64."""
    grads, _ = map_tasks(algorithm.meta_grad, TASKS, chunk)(params, tasks)
    return torch.cat([g.double().mean(0).flatten() for g in grads.values()])


def in_type(dtype: torch.dtype, params: Params, tasks: Task) -> tuple[Params, Task]:
    parts = [Batch(b.x.to(dtype), b.y) for b in tasks]
    return {k: v.to(dtype) for k, v in params.items()}, Task(*parts)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------- what may be typed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("auto", "auto"), ("on", True), ("off", False), ("true", True), ("false", False), ("On", True), ("FALSE", False)],
)
def test_compile_is_on_off_or_auto_in_any_spelling(typed: str, meant: Any) -> None:
    assert make_placement(metarun.compose([f"device.compile={typed}"]).device).compile == meant


def test_on_and_off_in_a_file_are_the_same_as_on_the_command_line() -> None:
    """YAML makes booleans of them, Hydra's command line does not."""
    for text, meant in (("on", True), ("off", False), ("auto", "auto")):
        loaded = OmegaConf.create(f"compile: {text}").compile
        assert make_placement(replace(metarun.compose([]).device, compile=loaded)).compile == meant


@pytest.mark.parametrize(("typed", "meant"), [("auto", "auto"), ("null", None), ("1", 1), ("7", 7)])
def test_chunk_size_is_auto_null_or_a_whole_number(typed: str, meant: Any) -> None:
    config = metarun.compose([f"device.chunk_size={typed}"])
    check(config)
    assert make_placement(config.device).chunk_size == meant


@pytest.mark.parametrize(("shape", "threads"), [((100, 199), 1), ((100, 200), None)])
def test_kernels_of_small_networks_take_one_thread(shape: tuple[int, int], threads: int | None) -> None:
    placement = Placement(torch.device("cpu"), torch.float32, None, True)
    found = compile_function(lambda x: x, placement, {"p": torch.zeros(shape)})
    assert isinstance(found, AheadOfTime)
    assert found.options.get("cpp.threads") == threads


def test_a_small_network_takes_one_thread_and_the_next_run_as_many_as_before() -> None:
    torch.set_num_threads(2)
    for overrides, threads in (
        (["data=sinusoid"], 1),
        (["data=sinusoid", "model.hidden=[200,200]"], 2),
        (["data=sinusoid", "device.threads=3"], 3),
        (["data=sinusoid"], 1),
        (["algo=cnp", "data=gp"], 2),
    ):
        assemble(metarun.compose(overrides))
        assert torch.get_num_threads() == threads, overrides


@pytest.mark.parametrize(
    ("shapes", "steps", "asked", "expected"),
    [
        ([(128, 128), (128,)], 5000, "auto", True),
        ([(128, 128), (128,)], 4999, "auto", False),
        ([(128, 128), (128,)], 1, True, True),
        ([(128, 128), (128,)], 5000, False, False),
        ([(8, 1, 3, 3), (128, 128)], 5000, "auto", False),
        ([(1000, 1000)], 5000, "auto", False),
    ],
)
def test_connected_networks_that_train_long_are_compiled(
    shapes: list[tuple[int, ...]], steps: int, asked: bool | str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    params = {f"p{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    assert should_compile(Placement(torch.device("cpu"), torch.float32, None, asked), params, steps) == expected
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not should_compile(Placement(torch.device("cpu"), torch.float32, None, asked), params, steps)


@pytest.mark.parametrize(
    ("key", "values", "choices"),
    [
        ("compile", ("yes", "1", "0", "null", "[1]", "reduce-overhead"), "choices: auto, on, off"),
        ("chunk_size", ("0", "-1", "4.0", "true", "'4'", "none", "[1]"), "choices: auto, null"),
        ("precision", ("float16", "bf16", "null"), "choices: float32, bfloat16, float64"),
        ("memory_format", ("nhwc", "null"), "choices: auto, contiguous, channels_last"),
        ("threads", ("0", "-1"), "must be at least 1"),
        ("threads", ("1025", "9999999999"), "must be at most 1024"),
    ],
)
def test_other_values_are_refused_with_key_value_and_choices(key: str, values: tuple[str, ...], choices: str) -> None:
    for value in values:
        with pytest.raises(UserError) as refused:
            check(metarun.compose([f"device.{key}={value}"]))
        word = value == "null" and key in ("precision", "memory_format")  # refused by its type
        assert str(refused.value).startswith(f"device.{key}=")
        assert ("must not be null" if word else choices) in str(refused.value)
        assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- precision


def test_in_bfloat16_only_linear_maps_are_narrow() -> None:
    """Parameters, inputs, gradients and metrics are float32; convolutions are given bfloat16 in both directions, and so
    is the first block's matrix product.
    """
    config = metarun.compose(["device.precision=bfloat16"])
    algorithm, tasks = (
        learner("algo=maml", "model=conv4", "model.pool=max", "model.filters=64", "device.precision=bfloat16"),
        Clouds().tasks(),
    )
    placement = make_placement(config.device)
    params = placement.move_params(algorithm.init(0))
    with Seen() as seen:
        grads, metrics = map_tasks(algorithm.meta_grad, TASKS, 1)(params, placement.move_task(tasks))
    assert {v.dtype for v in (*params.values(), *grads.values(), *metrics.values())} == {torch.float32}
    assert seen.types["convolution"] == seen.types["convolution_backward"] == {torch.bfloat16}
    assert torch.bfloat16 in seen.types["mm"]
    assert seen.types["native_batch_norm"] == seen.types["_log_softmax"] == {torch.float32}


class Seen(TorchDispatchMode):
    """The types of floating-point tensors that each operation is given."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()}
        self.types.setdefault(func.overloadpacket.__name__, set()).update(given)
        return func(*args, **(kwargs or {}))


def test_the_other_precisions_leave_the_network_alone_and_unknown_networks_are_refused() -> None:
    model: Any = learner("algo=maml").model
    assert cast_model(model, "float32") is model
    assert cast_model(model, "float64") is model
    assert isinstance(cast_model(model, "bfloat16").linear, Narrow)  # type: ignore[attr-defined]
    foreign: Any = object()
    with pytest.raises(SettingError, match=r"^device.precision=bfloat16: needs a network of blocks; choices: float32"):
        cast_model(foreign, "bfloat16")


ALGORITHMS = ("maml", "fomaml", "reptile", "imaml", "protonet", "matchingnet")
SAMPLE = {("maml", "conv4"), ("imaml", "conv4"), ("protonet", "conv4"), ("reptile", "mlp"), ("matchingnet", "mlp")}


def on_networks(*algos: str) -> pytest.MarkDecorator:
    """Each algorithm on both networks; `make test` has the sample of them."""
    cases = [(algo, model) for algo in algos for model in ("mlp", "conv4")]
    marks = {case: [] if case in SAMPLE else [pytest.mark.long] for case in cases}
    return pytest.mark.parametrize(("algo", "model"), [pytest.param(*case, marks=marks[case]) for case in cases])


@on_networks(*ALGORITHMS)
def test_the_float32_gradient_is_that_of_float64(algo: str, model: str) -> None:
    algorithm, tasks = learner(f"algo={algo}", f"model={model}"), Clouds().tasks()
    params = algorithm.init(0)
    exact = mean_gradient(algorithm, *in_type(torch.float64, params, tasks))
    assert relative(mean_gradient(algorithm, *in_type(torch.float32, params, tasks)), exact) < 1e-4


@on_networks(*ALGORITHMS)
def test_a_bfloat16_gradient_is_as_near_as_a_unit_in_the_last_place_of_theta(algo: str, model: str) -> None:
    """No further from float64 than 1.5 times what a change of every weight by 2^-8 of itself makes, the largest of
    three such changes: how far that is depends on the task (a ReLU near its kink, a system near singular), and no
    arithmetic of 8 bits can do much better."""
    names, tasks = (f"algo={algo}", f"model={model}"), Clouds().tasks()
    algorithm, narrow = learner(*names), learner(*names, "device.precision=bfloat16")
    params = algorithm.init(0)
    exact = mean_gradient(algorithm, *in_type(torch.float64, params, tasks))
    moved = [mean_gradient(algorithm, *in_type(torch.float64, shaken(params, i), tasks)) for i in range(3)]
    found = mean_gradient(narrow, *in_type(torch.float32, params, tasks))
    assert 1e-4 < relative(found, exact) < 1.5 * max(relative(m, exact) for m in moved)


def shaken(params: Params, seed: int) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {k: p.double() * (1 + UNIT * torch.randn(p.shape, generator=draw).sign()) for k, p in params.items()}


@on_networks("maml", "fomaml", "imaml", "matchingnet")
def test_without_kinks_a_bfloat16_gradient_is_near_that_of_float64(algo: str, model: str) -> None:
    """Linear blocks with layer normalisation: cosine >= 0.999, relative error <= 0.03."""
    names, tasks = (f"algo={algo}", f"model={model}", "model.norm=layer"), Clouds().tasks()
    algorithm, narrow = (smooth(learner(*names, *more)) for more in ((), ("device.precision=bfloat16",)))
    params = algorithm.init(0)
    exact = mean_gradient(algorithm, *in_type(torch.float64, params, tasks))
    found = mean_gradient(narrow, *in_type(torch.float32, params, tasks))
    assert relative(found, exact) <= 0.03
    assert float(found @ exact / found.norm() / exact.norm()) >= 0.999


def smooth(algorithm: Any) -> Any:
    """The learner with a network that has no ReLU."""
    blocks = tuple(range(len(algorithm.model.shapes)))
    return replace(algorithm, model=replace(algorithm.model, linear_blocks=blocks))


@pytest.mark.parametrize("norm", ["support", "population", "batch", "layer"])
def test_statistics_stay_float32_in_bfloat16(norm: str) -> None:
    """The moments of a support set, and those of a sample for evaluation."""
    algorithm: Any = learner("algo=maml", "model=conv4", f"model.norm={norm}", "device.precision=bfloat16")
    params, tasks = in_type(torch.float32, algorithm.init(0), Clouds().tasks())
    x = tasks.support.x[0]
    for stats in (algorithm.model.query_stats(params, x), algorithm.model.calibrate(params, x).fixed):
        assert all(m.dtype == torch.float32 for pair in stats or () for m in pair)
    assert algorithm.model.calibrate(params, x).apply(params, x).dtype == torch.float32


# ---------------------------------------------------------------- runs

TINY = ["algo=maml", "train.steps=12", "train.tasks=3", "model.hidden=[16,16]", "device.compile=off", "recipe=absent"]
TINY += ["diagnostics=off", "train.log_every=100", "train.eval_every=100", "device.name=cpu"]


def trained(*overrides: str) -> tuple[Params, Any]:
    """Parameters and optimizer after twelve steps."""
    trainer = replace(assemble(metarun.compose([*TINY, *overrides])).trainer(), validate=lambda params: None)
    state, meta_gradient = trainer.start(), build_meta_gradient(trainer)
    for _ in range(12):
        outer_step(trainer, state, meta_gradient, Nobody())
    return state.params, state.optimizer.state_dict()["state"]


class Nobody:
    """A watcher that nothing is told to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def test_training_in_bfloat16_keeps_float32_parameters_and_optimizer_and_goes_where_float32_goes() -> None:
    start = trained("train.steps=1", "optim.lr=1e-30")[0]
    wide, narrow = trained()[0], trained("device.precision=bfloat16")
    assert {p.dtype for p in narrow[0].values()} == {torch.float32}
    assert {v.dtype for entry in narrow[1].values() for v in entry.values()} == {torch.float32}
    moved, apart = (sum(float((a[k] - b[k]).square().sum()) for k in a) for a, b in ((wide, start), (narrow[0], wide)))
    assert 0 < apart < 0.05**2 * moved


@pytest.mark.parametrize("asked", ["true", "false"])
def test_two_runs_give_the_same_bits_on_a_cpu_asked_for_or_not(asked: str) -> None:
    first, second = (trained(f"device.deterministic={asked}")[0] for _ in range(2))
    assert torch.are_deterministic_algorithms_enabled() == (asked == "true")
    assert all(first[k].equal(second[k]) for k in first)
    plain = trained()[0]
    assert all(first[k].equal(plain[k]) for k in first)


def test_deterministic_asks_cublas_and_cudnn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_placement(metarun.compose([]).device)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    make_placement(metarun.compose(["device.deterministic=true"]).device)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    "algo", ["maml", "protonet", *(pytest.param(algo, marks=pytest.mark.long) for algo in ("fomaml", "matchingnet"))]
)
def test_one_and_two_threads_give_the_same_gradient(algo: str) -> None:
    """To 1e-5 in float32: sums are taken in another order."""
    algorithm, tasks = learner(f"algo={algo}", "model=conv4"), Clouds().tasks()
    start = in_type(torch.float32, algorithm.init(0), tasks)
    found = []
    for threads in (1, 2):
        make_placement(metarun.compose([f"device.threads={threads}"]).device)
        assert torch.get_num_threads() == threads
        found.append(mean_gradient(algorithm, *start))
    assert relative(found[1], found[0]) <= 1e-5


def test_tf32_is_off_unless_it_is_asked_for_and_is_set_either_way() -> None:
    for asked in (True, False, True):
        make_placement(metarun.compose([f"device.tf32={asked}"]).device)
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is asked
    make_placement(metarun.compose([]).device)
    assert not torch.backends.cudnn.allow_tf32
