r"""A learner as a torch.export program: (support_x, support_y, query_x) -> probabilities or means, adaptation included.

torch.export cannot look into torch.func.grad, so the two parts are first traced to plain operators:

    step      one step of the inner loop, the body of a while loop in the program: neither the program's size nor the
              time of loading grows with the number of steps
    predict   the network on the queries, with any number of rows (of a learner without an inner loop, all of it)

The loop carries the step number, the weights that are adapted and the state of the inner rule. The program needs torch
alone: weights, and the statistics of `norm=population`, are its buffers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from metarun.algorithms.inner_loop import descend_with_state, is_adapted, last
from metarun.errors import UserError, one_line
from metarun.types import Algorithm, Batch, GradientLearner, Kind, Objective, Params, UpdateRule

STATS = "stats."


class Example(NamedTuple):
    """Inputs of the sizes that the program is for; the number of queries may differ later."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor


class Carried(NamedTuple):
    """What the inner loop carries, as a flat list of tensors and as a tree whose empty entries are not in the list."""

    spec: Any
    leaves: tuple[bool, ...]  # whether an entry of the tree is in the list

    def flat(self, tree: Any) -> list[Tensor]:
        return [_tensor(leaf) for leaf in pytree.tree_leaves(tree) if leaf is not None]

    def tree(self, values: Sequence[Tensor]) -> Any:
        rest = iter(values)
        return pytree.tree_unflatten([next(rest) if there else None for there in self.leaves], self.spec)


def tensors_of(learner: Algorithm, params: Params) -> Params:
    """The meta-parameters and, as `stats.*`, the statistics that the network holds if it holds any."""
    stats: Params = {}
    for i, (mean, variance) in enumerate(getattr(learner.model, "fixed", None) or ()):
        stats |= {f"{STATS}block{i}.mean": mean, f"{STATS}block{i}.variance": variance}
    return params | stats


def split_tensors(learner: Any, tensors: Params) -> tuple[Any, Params]:
    """The inverse of `tensors_of`: the learner with those statistics, and the meta-parameters."""
    stats = [w for name, w in tensors.items() if name.startswith(STATS)]
    if stats:
        model = dataclasses.replace(learner.model, fixed=tuple(zip(stats[::2], stats[1::2], strict=True)))
        learner = dataclasses.replace(learner, model=model)
    return learner, {name: w for name, w in tensors.items() if not name.startswith(STATS)}


def outputs_of(learner: Algorithm, params: Params, inputs: Example, steps: int, kind: Kind) -> Tensor:
    """What the program computes: after `steps` adaptation steps, probabilities [M, N] or means [M, d_out]."""
    *_, adapted = learner.adaptations(params, Batch(inputs.support_x, inputs.support_y), steps)
    prediction = learner.predict(adapted, inputs.query_x)
    return prediction.softmax(1) if kind == "classification" else prediction


def exported(learner: Algorithm, params: Params, example: Example, kind: Kind) -> ExportedProgram:
    """Trace the learner; `UserError` with the reason where it cannot be traced."""
    if getattr(learner.model, "norm", None) == "joined":
        needed = "makes a batch for each query, which torch.export cannot trace; model.norm=support can be exported"
        raise UserError(f"job=export: model.norm=joined {needed}")
    tensors = tensors_of(learner, params)
    rows = {"query_x": {0: Dim("rows", min=fewest_queries(learner))}, "support_x": None, "support_y": None}
    try:
        with torch.no_grad(), _quietly():
            program = torch.export.export(
                _Program(learner, tensors, example, kind), tuple(example), dynamic_shapes=rows
            )
    except Exception as error:  # torch raises many kinds
        raise UserError(f"job=export: torch.export cannot trace this learner ({one_line(error)[:200]})") from error
    return without_traces(program)


def fewest_queries(learner: Algorithm) -> int:
    """Of a call: one has no statistics of its own."""
    return 2 if getattr(learner.model, "norm", None) == "batch" else 1


def without_traces(program: ExportedProgram) -> ExportedProgram:
    """Without the lines of code that each node came from: they double the file and name folders of this machine."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def seconds_per_call(program: ExportedProgram, inputs: Example, calls: int) -> float:
    """Median over calls, after one that warms up."""
    module, taken = program.module(), []
    with torch.no_grad():
        for _ in range(calls + 1):
            start = time.perf_counter()
            module(*inputs)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


class _Program(nn.Module):
    """What torch.export is given; it asks for a module."""

    def __init__(self, learner: Algorithm, tensors: Params, example: Example, kind: Kind) -> None:
        super().__init__()
        self.names = list(tensors)
        for name, value in tensors.items():
            self.register_buffer(_buffer(name), value)
        steps, self.loop = learner.test_inner_steps, None
        if isinstance(learner, GradientLearner):
            steps, self.loop = 0, _Loop(learner, tensors, example)
        self.predict = _traced_predict(learner, tensors, example, steps, kind)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        tensors = {name: getattr(self, _buffer(name)) for name in self.names}
        if self.loop is not None:
            tensors = tensors | self.loop(tensors, support_x, support_y)
        return self.predict(tensors, support_x, support_y, query_x)


class _Loop(nn.Module):
    """theta, support set -> the adapted tensors: `inner.descend` with its step as the body of a while loop."""

    def __init__(self, learner: GradientLearner, tensors: Params, example: Example) -> None:
        super().__init__()
        self.rule, self.moved = learner.inner_rule, [n for n in tensors if adapted(n, learner)]
        self.names = list(tensors)
        start = self._start(tensors)
        leaves, spec = pytree.tree_flatten(start)
        self.carried = Carried(spec, tuple(leaf is not None for leaf in leaves))
        inputs = [*self._first(start), example.support_x, example.support_y, *tensors.values()]
        steps = learner.test_inner_steps
        self.proceeds = make_fx(lambda step, *_: step < steps)(*inputs)
        self.body = make_fx(self._step_of(learner))(*inputs)

    def forward(self, tensors: Params, support_x: Tensor, support_y: Tensor) -> Params:
        while_loop = torch.ops.higher_order.while_loop
        given = (support_x, support_y, *(tensors[name] for name in self.names))
        done = while_loop(self.proceeds, self.body, tuple(self._first(self._start(tensors))), given)
        return self.carried.tree(done[1:])[0]

    def _start(self, tensors: Params) -> tuple[Params, Any]:
        part = {name: tensors[name] for name in self.moved}
        return part, self.rule.init(part, tensors)

    def _first(self, start: Any) -> list[Tensor]:
        """Copies: a tensor that were carried and given as well could not be told apart in tracing."""
        return [torch.zeros((), dtype=torch.int64), *(value.clone() for value in self.carried.flat(start))]

    def _step_of(self, learner: GradientLearner) -> Callable[..., tuple[Tensor, ...]]:
        count = sum(self.carried.leaves)

        def step(number: Any, *values: Tensor) -> tuple[Tensor, ...]:
            part, state = self.carried.tree(values[:count])
            support, given = Batch(*values[count : count + 2]), dict(zip(self.names, values[count + 2 :], strict=True))
            at, theta = split_tensors(learner, given)
            objective = at.inner_objective(theta, support)
            phi, state = one_step(lambda phi, _: objective(phi, number), {**theta, **part}, self.rule, state)
            part = {name: phi[name] for name in self.moved}
            return number + 1, *self.carried.flat((part, state))

        return step


def one_step(objective: Objective, phi: Params, rule: UpdateRule, state: Any) -> tuple[Params, Any]:
    """The step of `descend` from where the rule's state is `state`, and the state after it."""
    return last(descend_with_state(objective, phi, rule._replace(init=lambda *_: state), 1))


def adapted(name: str, learner: GradientLearner) -> bool:
    return not name.startswith(STATS) and is_adapted(name, learner.inner_rule)


def _traced_predict(learner: Algorithm, tensors: Params, example: Example, steps: int, kind: Kind) -> nn.Module:
    def predict(tensors: Params, *inputs: Tensor) -> Tensor:
        at, params = split_tensors(learner, tensors)
        return outputs_of(at, params, Example(*inputs), steps, kind)

    # Sizes that are equal are taken for the same size: the queries get one that nothing else has.
    sizes = [size for value in (*tensors.values(), *example) for size in value.shape]
    query_x = example.query_x.new_empty(max(sizes) + 1, *example.query_x.shape[1:])
    traced = make_fx(predict, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    return traced(tensors, example.support_x, example.support_y, query_x)


def _tensor(value: Any) -> Tensor:
    """Counts of a rule's state become tensors too, exact ones."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _buffer(name: str) -> str:
    """A module's buffers have no dots in their names."""
    return name.replace(".", "__")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
