"""How memory grows with inner steps, and chunks that keep to a budget: allocations are counted, not timed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import metarun
from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.algorithms.reptile import Reptile
from metarun.compute.device import Placement
from metarun.compute.task_axis import map_tasks
from metarun.errors import SettingError
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.training.experiment import assemble
from metarun.training.memory import MARGIN, MB, budget, count_fitting, fit_chunk, peak_bytes, task_bytes, total_bytes
from metarun.types import Algorithm, Batch, EpisodeSpec, Task

CPU = torch.device("cpu")
CONV = conv4((1, 16, 16), 3, filters=8, norm="batch", pool="stride", readout="mean")
MLP = mlp((1,), 1, (20, 20), "none")
SPEC = EpisodeSpec(3, 1, 2)


def images(count: int) -> Task:
    return Task(*(Batch(torch.rand(count, 3 * k, 1, 16, 16), torch.arange(3).repeat(count, k)) for k in (1, 2)))


def points(count: int) -> Task:
    return Task(*(Batch(torch.rand(count, 10, 1), torch.rand(count, 10, 1)) for _ in range(2)))


def learner(name: str, model: Any, loss: Any, steps: int) -> Algorithm:
    common = {"inner_lr": 0.01, "inner_steps": steps, "test_inner_steps": 1}
    if name == "imaml":
        return IMAML(model, loss, prox=2.0, **common, cg_steps=3, cg_damping=0.0)
    if name == "reptile":
        return Reptile(model, loss, "adam", **common, inner_batch=None)
    if name == "protonet":
        body = conv4((1, 16, 16), None, filters=8, norm="population", pool="stride", readout="flatten")
        return ProtoNet(body, loss, 3, "euclidean", 1.0)
    return MAML(model, loss, **common, first_order=name == "fomaml", inner_checkpoint=name == "checkpointed")


def peak(name: str, steps: int) -> int:
    """Of one small convolutional task, counted while it is computed."""
    task = Task(*(Batch(b.x[0], b.y[0]) for b in images(1)))
    return peak_bytes(learner(name, CONV, CrossEntropy(), steps).meta_grad, CONV.init(0), task)


@pytest.mark.parametrize("name", ["imaml", "fomaml", "reptile"])
def test_what_does_not_differentiate_the_inner_loop_has_flat_memory(name: str) -> None:
    assert peak(name, 40) <= 1.1 * peak(name, 5)


def test_the_graph_of_maml_grows_with_the_steps_and_checkpoints_make_that_sublinear() -> None:
    """Eight times the steps: about eight times the graph, and with checkpoints about sqrt(8) times."""
    assert peak("maml", 40) > 5 * peak("maml", 5)
    assert peak("checkpointed", 40) < 3 * peak("checkpointed", 5)
    assert peak("checkpointed", 40) < peak("maml", 40) / 3


def test_a_gradient_records_no_graph_of_its_own_derivative() -> None:
    """`torch.func.grad` does: then the peak was three times as high."""
    task = Task(*(Batch(b.x[0], b.y[0]) for b in images(1)))
    maml = learner("maml", CONV, CrossEntropy(), 5)

    def loss(theta: Any) -> torch.Tensor:
        adapted = maml.adapt(theta, task.support)
        return maml.loss(maml.predict(adapted, task.query.x), task.query.y)

    assert peak("maml", 5) < 0.6 * peak_bytes(torch.func.grad(loss), CONV.init(0))


def test_graphs_are_freed_between_chunks() -> None:
    """What more chunks add are their results alone: gradients, kept twice while they are joined."""
    params, maml = CONV.init(0), learner("maml", CONV, CrossEntropy(), 3)
    size = sum(p.numel() * p.element_size() for p in params.values())
    for chunk in (1, 2):
        two, eight = (peak_bytes(map_tasks(maml.meta_grad, n, chunk), params, images(n)) for n in (2, 8))
        assert eight - two < (2 * 8 + 1) * size


NAMES = ("maml", "checkpointed", "fomaml", "imaml", "reptile")
COUNTED = [
    pytest.param(name, kind, steps, marks=[] if (kind, steps) in {("conv", 1), ("mlp", 8)} else [pytest.mark.long])
    for name in NAMES
    for kind in ("conv", "mlp")
    for steps in (1, 8)
]


@pytest.mark.parametrize(("name", "kind", "steps"), [*COUNTED, ("protonet", "conv", 0)])
def test_the_estimate_is_within_a_factor_of_two_of_what_is_allocated(name: str, kind: str, steps: int) -> None:
    """Of three tasks by vmap; steps beyond the counted ones are extrapolated."""
    model, tasks, loss = (CONV, images(3), CrossEntropy()) if kind == "conv" else (MLP, points(3), MeanSquaredError())
    algorithm = learner(name, model, loss, steps)
    params = algorithm.init(0)
    single = Task(*(Batch(b.x[0], b.y[0]) for b in tasks))
    measured = peak_bytes(map_tasks(algorithm.meta_grad, 3, None), params, tasks) / 3
    assert measured / 2 < MARGIN * task_bytes(algorithm, params, single) < 2 * measured


def test_rates_of_each_inner_step_have_an_estimate() -> None:
    """The step number selects them; on meta tensors it has no value."""
    algorithm = MAML(MLP, MeanSquaredError(), 0.01, 3, 1, first_order=False, learned_rates="step")
    single = Task(*(Batch(b.x[0], b.y[0]) for b in points(1)))
    assert task_bytes(algorithm, algorithm.init(0), single) > 0


@pytest.mark.parametrize(("room", "fits"), [(99, 0), (100, 1), (249, 1), (250, 2), (1260, 10)])
def test_one_task_fits_as_it_is_and_several_with_a_margin(room: int, fits: int) -> None:
    assert count_fitting(room, 100) == fits


def test_the_budget_is_what_is_set_or_half_of_the_machine() -> None:
    assert budget(4000, CPU) == 4000 * MB
    assert budget(None, CPU) == total_bytes(CPU) // 2 > 100 * MB


def test_a_small_budget_makes_smaller_chunks_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    algorithm, params = learner("maml", CONV, CrossEntropy(), 2), CONV.init(0)
    one = task_bytes(algorithm, params, Task(*(Batch(b.x[0], b.y[0]) for b in images(1))))
    free = Placement(CPU, torch.float32, "auto", False)
    for tasks, chunk in ((1000, 16), (5, 5), (0.5, 1)):
        kept = (2 * 16 + 4) * sum(p.numel() * p.element_size() for p in params.values())
        limit = int(kept + 1.01 * MARGIN * tasks * one)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            placed = fit_chunk(free, limit, algorithm, params, images(1), 16, SPEC)
        assert min(placed.chunk(SPEC, (1, 16, 16)) or 16, 16) == chunk
        assert placed.evaluation_chunk(SPEC._replace(queries=8), (1, 16, 16)) in (1, max(1, chunk // 3), 11)
        assert len(caplog.messages) == int(chunk < 16)
        step = map_tasks(algorithm.meta_grad, 16, chunk)
        assert tasks < 1 or peak_bytes(step, params, images(16)) <= limit
    assert "one task alone takes about" in caplog.messages[0]
    fixed = Placement(CPU, torch.float32, 7, False)
    assert fit_chunk(fixed, 1, algorithm, params, images(1), 16, SPEC) is fixed


def test_a_run_keeps_to_the_memory_that_is_set() -> None:
    settings = ["algo=maml", "model.hidden=[40,40]", "train.tasks=25", "diagnostics=off"]
    whole, small = (assemble(metarun.compose([*settings, f"device.memory_mb={mb}"])) for mb in ("null", "1"))
    shape = whole.dataset.input_shape()
    assert whole.placement.chunk(whole.train_spec, shape) is None
    assert 1 <= (small.placement.chunk(small.train_spec, shape) or 25) < 25


@pytest.mark.parametrize("value", ["0", "-5"])
def test_a_budget_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(SettingError, match="must be above 0"):
        assemble(metarun.compose([f"device.memory_mb={value}"]))
