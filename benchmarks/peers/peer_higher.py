"""higher, in the form of its own few-shot example: `innerloop_ctx` for each task, then its backward pass.

github.com/facebookresearch/higher, examples/maml-omniglot.py; arXiv 1910.01727.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.peers import torch_nets
from benchmarks.peers.tasks import Side, Work


def build(work: Work) -> Side:
    import higher

    net, tasks = torch_nets.module(work), torch_nets.tensors(work)
    meta_optimizer = torch_nets.optimizer(work, list(net.parameters()))
    inner_optimizer = torch.optim.SGD(net.parameters(), lr=work.algo["inner_lr"])

    def accumulate() -> float:
        total = 0.0
        meta_optimizer.zero_grad()
        for support_x, support_y, query_x, query_y in tasks:
            with higher.innerloop_ctx(net, inner_optimizer, copy_initial_weights=False) as (fast, inner):
                for _ in range(work.algo["inner_steps"]):
                    inner.step(torch_nets.loss(fast(support_x), support_y))
                query_loss = torch_nets.loss(fast(query_x), query_y) / len(tasks)
                total += query_loss.item()
                query_loss.backward()
        return total

    def gradient() -> tuple[float, dict[str, np.ndarray]]:
        return accumulate(), torch_nets.gradients(work, net)

    def step() -> float:
        total = accumulate()
        meta_optimizer.step()
        return total

    return Side(gradient, step)
