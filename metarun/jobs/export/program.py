r"""A learner as a torch.export program: (support_x, support_y, query_x) -> probabilities or means, adaptation included.

torch.export cannot look into torch.func.grad, so the two parts are first traced to plain operators:

    step      one step of the inner loop, the body of a while loop in the program: neither the program's size nor the
              time of loading grows with the number of steps
    predict   the network on the queries, with any number of rows (of a learner without an inner loop, all of it)

The loop carries the step number, the weights that are adapted and the state of the inner rule. The program needs torch
alone: weights, and the statistics of `norm=population`, are its buffers.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from metarun.algorithms.inner_loop import descend_with_state, fast_weights, is_adapted, last, start
from metarun.errors import UserError, one_line
from metarun.types import Algorithm, AlgorithmOptions, Batch, GradientLearner, Kind, ModelOptions, Params, optional

STATS = "stats."


class Example(NamedTuple):
    """Inputs of the sizes that the program is for; the number of queries may differ later."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor


def collect_tensors(learner: Algorithm, params: Params) -> Params:
    """The meta-parameters and, as `stats.*`, the statistics that the network holds if it holds any."""
    stats: Params = {}
    for i, (mean, variance) in enumerate(optional(learner.model, ModelOptions, "fixed") or ()):
        stats |= {f"{STATS}block{i}.mean": mean, f"{STATS}block{i}.variance": variance}
    return params | stats


def split_tensors(learner: Any, tensors: Params) -> tuple[Any, Params]:
    """The inverse of `collect_tensors`: the learner with those statistics, and the meta-parameters."""
    stats = [w for name, w in tensors.items() if name.startswith(STATS)]
    if stats:
        fixed = tuple(zip(stats[::2], stats[1::2], strict=True))
        learner = dataclasses.replace(learner, model=dataclasses.replace(learner.model, fixed=fixed))
    return learner, {name: w for name, w in tensors.items() if not name.startswith(STATS)}


def export_program(learner: Algorithm, params: Params, example: Example, kind: Kind) -> ExportedProgram:
    """Trace the learner; raise `UserError` with the reason where it cannot be traced."""
    if optional(learner.model, ModelOptions, "norm") == "joined":
        needed = "makes a batch for each query, which torch.export cannot trace; model.norm=support can be exported"
        raise UserError(f"job=export: model.norm=joined {needed}")
    tensors = collect_tensors(learner, params)
    rows = {"query_x": {0: Dim("rows", min=fewest_queries(learner))}, "support_x": None, "support_y": None}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = Program(learner, tensors, example, kind)
            program = torch.export.export(module, tuple(example), dynamic_shapes=rows)
    except Exception as error:  # torch raises many kinds
        raise UserError(f"job=export: torch.export cannot trace this learner ({one_line(error)[:200]})") from error
    # The lines of code that each node came from double the file and name folders of this machine.
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def fewest_queries(learner: Algorithm) -> int:
    """Rows of query_x that a call needs: a batch of one row has no statistics."""
    return 2 if optional(learner.model, ModelOptions, "norm") == "batch" else 1


def time_calls(program: ExportedProgram, inputs: Example, calls: int) -> float:
    """The median over calls, after one that warms up."""
    module, seconds = program.module(), []
    with torch.no_grad():
        for _ in range(calls + 1):
            start = time.perf_counter()
            module(*inputs)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


class Program(nn.Module):
    """The module that torch.export traces."""

    def __init__(self, learner: Algorithm, tensors: Params, example: Example, kind: Kind) -> None:
        super().__init__()
        self.buffer_names = {name: name.replace(".", "__") for name in tensors}  # buffers have no dots in their names
        for name, value in tensors.items():
            self.register_buffer(self.buffer_names[name], value)
        steps, self.loop = learner.test_inner_steps, None
        if isinstance(learner, GradientLearner):
            steps, self.loop = 0, InnerLoop(learner, tensors, example)
        self.predict = trace_predict(learner, tensors, example, steps, kind)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        tensors = {name: getattr(self, buffer) for name, buffer in self.buffer_names.items()}
        if self.loop is not None:
            tensors = tensors | self.loop(tensors, support_x, support_y)
        return self.predict(tensors, support_x, support_y, query_x)


class InnerLoop(nn.Module):
    """theta, support set -> the adapted tensors: `descend_with_state` with its step as the body of a while loop.

    The loop carries (adapted tensors, state of the rule), a tree, as a flat list of tensors; empty entries of the tree
    are not in the list.
    """

    def __init__(self, learner: GradientLearner, tensors: Params, example: Example) -> None:
        super().__init__()
        self.rule, self.names = learner.inner_rule, list(tensors)
        self.adapted = [name for name in tensors if not name.startswith(STATS) and is_adapted(name, self.rule)]
        leaves, self.tree_spec = pytree.tree_flatten(self._start(tensors))
        self.filled = [leaf is not None for leaf in leaves]
        inputs = [*self._first(tensors), example.support_x, example.support_y, *tensors.values()]
        steps, count = learner.test_inner_steps, sum(self.filled)

        def step(number: Any, *values: Tensor) -> tuple[Tensor, ...]:
            part, state = self._unflatten(values[:count])
            support, given = Batch(*values[count : count + 2]), dict(zip(self.names, values[count + 2 :], strict=True))
            at, theta = split_tensors(learner, given)
            objective = at.inner_objective(theta, support)
            rule = self.rule._replace(init=lambda *_: state)  # goes on from this state
            phi, state = last(descend_with_state(lambda phi, _: objective(phi, number), {**theta, **part}, rule, 1))
            return number + 1, *self._flatten(({name: phi[name] for name in self.adapted}, state))

        self.proceeds = make_fx(lambda number, *_: number < steps)(*inputs)
        self.body = make_fx(step)(*inputs)
        self.begin: nn.Module | None = None
        if optional(learner, AlgorithmOptions, "start"):

            def begin(support_x: Tensor, support_y: Tensor, *values: Tensor) -> Params:
                at, theta = split_tensors(learner, dict(zip(self.names, values, strict=True)))
                return start(at, theta, Batch(support_x, support_y))

            self.begin = make_fx(begin)(example.support_x, example.support_y, *tensors.values())

    def forward(self, tensors: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if self.begin is not None:
            tensors = tensors | self.begin(support_x, support_y, *tensors.values())
        while_loop = torch.ops.higher_order.while_loop
        given = (support_x, support_y, *(tensors[name] for name in self.names))
        return self._unflatten(while_loop(self.proceeds, self.body, tuple(self._first(tensors)), given)[1:])[0]

    def _start(self, tensors: Params) -> tuple[Params, Any]:
        part = {name: tensors[name] for name in self.adapted}
        return part, self.rule.init(part, tensors)

    def _first(self, tensors: Params) -> list[Tensor]:
        """The step number 0 and the start. Copies: tracing cannot tell apart a tensor that is carried and given."""
        start = self._flatten(self._start(tensors))
        return [torch.zeros((), dtype=torch.int64), *(value.clone() for value in start)]

    def _flatten(self, tree: Any) -> list[Tensor]:
        """Counts in a rule's state become tensors too, exact ones."""
        leaves = [leaf for leaf in pytree.tree_leaves(tree) if leaf is not None]
        return [leaf if isinstance(leaf, Tensor) else torch.tensor(leaf, dtype=torch.float64) for leaf in leaves]

    def _unflatten(self, values: Sequence[Tensor]) -> Any:
        rest = iter(values)
        return pytree.tree_unflatten([next(rest) if filled else None for filled in self.filled], self.tree_spec)


def trace_predict(learner: Algorithm, tensors: Params, example: Example, steps: int, kind: Kind) -> nn.Module:
    """The rest of the program: after `steps` adaptation steps, probabilities [M, N] or means [M, d_out]."""

    def predict(tensors: Params, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        (at, params), support = split_tensors(learner, tensors), Batch(support_x, support_y)
        if isinstance(learner, GradientLearner):  # adapted by the loop
            adapted = fast_weights(at.model, params, support)
        else:
            *_, adapted = at.adaptations(params, support, steps)
        prediction = at.predict(adapted, query_x)
        return prediction.softmax(1) if kind == "classification" else prediction

    # Sizes that are equal are taken for the same size: the queries get one that nothing else has.
    sizes = [size for value in (*tensors.values(), *example) for size in value.shape]
    query_x = example.query_x.new_empty(max(sizes) + 1, *example.query_x.shape[1:])
    traced = make_fx(predict, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    return traced(tensors, example.support_x, example.support_y, query_x)
