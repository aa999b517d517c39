"""TorchOpt, in the form of its own few-shot example: `MetaSGD` moves the module, which is put back after each task.

github.com/metaopt/torchopt, examples/few-shot/maml_omniglot.py; arXiv 2211.06934.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.peers import torch_nets
from benchmarks.peers.tasks import Side, Work


def build(work: Work) -> Side:
    import torchopt

    net, tasks = torch_nets.module(work), torch_nets.tensors(work)
    initial = list(net.parameters())
    meta_optimizer = torch_nets.optimizer(work, initial)
    inner_optimizer = torchopt.MetaSGD(net, lr=work.algo["inner_lr"])

    def accumulate() -> float:
        losses = []
        meta_optimizer.zero_grad()
        at_start = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        inner_start = torchopt.extract_state_dict(inner_optimizer, by="reference")
        for support_x, support_y, query_x, query_y in tasks:
            for _ in range(work.algo["inner_steps"]):
                inner_optimizer.step(torch_nets.loss(net(support_x), support_y))
            losses.append(torch_nets.loss(net(query_x), query_y))
            torchopt.recover_state_dict(net, at_start)
            torchopt.recover_state_dict(inner_optimizer, inner_start)
        total = torch.stack(losses).mean()
        total.backward()
        return total.item()

    def gradient() -> tuple[float, dict[str, np.ndarray]]:
        return accumulate(), torch_nets.gradients(work, net)

    def step() -> float:
        total = accumulate()
        meta_optimizer.step()
        return total

    return Side(gradient, step)
