"""A plain torch loop as in most repositories: task after task, weights in a dictionary, `torch.autograd.grad`.

After the loops of MAML-Pytorch (github.com/dragen1860/MAML-Pytorch), imaml_dev (github.com/aravindr93/imaml_dev) and
pytorch ports of supervised-reptile (github.com/openai/supervised-reptile), in words of our own. iMAML follows the paper
(arXiv 1909.04630), so that its gradient is metarun's: (1 + d) v + H v / lambda = grad L^Q by conjugate gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import peer_loop_metric, torch_nets
from benchmarks.peers.tasks import Side, Work

Weights = dict[str, Tensor]
PerTask = Callable[[Work, Weights, tuple[Tensor, ...]], tuple[Tensor, Weights]]


def build(work: Work) -> Side:
    theta = {k: torch.tensor(v, requires_grad=True, device=work.device) for k, v in work.theta.items()}
    tasks, per_task = torch_nets.tensors(work), learner(work)
    optimizer = torch_nets.optimizer(work, list(theta.values()))

    def accumulate() -> float:
        optimizer.zero_grad()
        total = 0.0
        for task in tasks:
            loss, gradient = per_task(work, theta, task)
            total += loss.item() / len(tasks)
            for k, value in theta.items():
                value.grad = gradient[k] / len(tasks) if value.grad is None else value.grad + gradient[k] / len(tasks)
        return total

    def gradient() -> tuple[float, dict[str, np.ndarray]]:
        return accumulate(), {k: v.grad.cpu().numpy().copy() for k, v in theta.items()}  # type: ignore[union-attr]

    def step() -> float:
        total = accumulate()
        optimizer.step()
        return total

    return Side(gradient, step)


def learner(work: Work) -> PerTask:
    """The function of one task for the case's algorithm."""
    name = work.algo["_target_"].rpartition(".")[2]
    if name == "MAML":
        return fomaml if work.algo["first_order"] else maml
    others: dict[str, Any] = {"Reptile": reptile, "IMAML": imaml}
    return others.get(name) or peer_loop_metric.learner(name)


def maml(work: Work, theta: Weights, task: tuple[Tensor, ...]) -> tuple[Tensor, Weights]:
    """Second order: every inner gradient keeps its graph."""
    support_x, support_y, query_x, query_y = task
    fast = theta
    for _ in range(work.algo["inner_steps"]):
        support_loss = torch_nets.loss(torch_nets.functional(work, fast, support_x), support_y)
        found = torch.autograd.grad(support_loss, list(fast.values()), create_graph=True)
        fast = {k: v - work.algo["inner_lr"] * g for (k, v), g in zip(fast.items(), found, strict=True)}
    query_loss = torch_nets.loss(torch_nets.functional(work, fast, query_x), query_y)
    return query_loss, by_name(theta, torch.autograd.grad(query_loss, list(theta.values())))


def fomaml(work: Work, theta: Weights, task: tuple[Tensor, ...]) -> tuple[Tensor, Weights]:
    """First order: the query gradient at the adapted weights."""
    support_x, support_y, query_x, query_y = task
    fast = leaves(theta)
    for _ in range(work.algo["inner_steps"]):
        fast = descend(work, fast, gradient_of(work, fast, support_x, support_y))
    query_loss = torch_nets.loss(torch_nets.functional(work, fast, query_x), query_y)
    return query_loss, by_name(theta, torch.autograd.grad(query_loss, list(fast.values())))


def reptile(work: Work, theta: Weights, task: tuple[Tensor, ...]) -> tuple[Tensor, Weights]:
    """theta - phi after inner steps of torch's optimizer on consecutive mini-batches; the query loss is only told."""
    support_x, support_y, query_x, query_y = task
    fast = leaves(theta)
    rate, values = work.algo["inner_lr"], list(fast.values())
    adam = work.algo["inner_optimizer"] == "adam"
    inner = torch.optim.Adam(values, rate, betas=(0.0, 0.999)) if adam else torch.optim.SGD(values, rate)
    rows, size = len(support_x), work.algo["inner_batch"] or len(support_x)
    for k in range(work.algo["inner_steps"]):
        index = torch.arange(k * size, (k + 1) * size) % rows if size < rows else torch.arange(rows)
        inner.zero_grad()
        torch_nets.loss(torch_nets.functional(work, fast, support_x[index]), support_y[index]).backward()
        inner.step()
    with torch.no_grad():
        query_loss = torch_nets.loss(torch_nets.functional(work, fast, query_x), query_y)
        return query_loss, {k: theta[k] - fast[k] for k in theta}


def imaml(work: Work, theta: Weights, task: tuple[Tensor, ...]) -> tuple[Tensor, Weights]:
    """Gradient descent on the proximal objective, then conjugate gradient with one backward pass a product."""
    support_x, support_y, query_x, query_y = task
    fast, prox = leaves(theta), work.algo["prox"]
    for _ in range(work.algo["inner_steps"]):
        found = gradient_of(work, fast, support_x, support_y)
        away = {k: found[k] + prox * (fast[k] - theta[k]) for k in fast}
        fast = descend(work, fast, {k: v.detach() for k, v in away.items()})
    values = list(fast.values())
    query_loss = torch_nets.loss(torch_nets.functional(work, fast, query_x), query_y)
    right = flat(torch.autograd.grad(query_loss, values))
    support_loss = torch_nets.loss(torch_nets.functional(work, fast, support_x), support_y)
    slope = flat(torch.autograd.grad(support_loss, values, create_graph=True))

    def product(v: Tensor) -> Tensor:
        hessian = torch.autograd.grad(slope @ v, values, retain_graph=True)
        return (1 + work.algo["cg_damping"]) * v + flat(hessian) / prox

    solved = conjugate_gradient(product, right, work.algo["cg_steps"])
    parts = solved.split([v.numel() for v in values])
    return query_loss, {k: part.view_as(v) for (k, v), part in zip(theta.items(), parts, strict=True)}


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """x with A x = b, from x = 0."""
    x, r, p = torch.zeros_like(b), b, b
    rr = r @ r
    for _ in range(steps):
        ap = product(p)
        step = rr / (p @ ap)
        x, r = x + step * p, r - step * ap
        rr, before = r @ r, rr
        p = r + rr / before * p
    return x


def gradient_of(work: Work, fast: Weights, x: Tensor, y: Tensor) -> Weights:
    loss = torch_nets.loss(torch_nets.functional(work, fast, x), y)
    return by_name(fast, torch.autograd.grad(loss, list(fast.values())))


def descend(work: Work, fast: Weights, gradient: Weights) -> Weights:
    return leaves({k: fast[k].detach() - work.algo["inner_lr"] * gradient[k] for k in fast})


def leaves(weights: Weights) -> Weights:
    """Copies that gradients are taken at."""
    return {k: v.detach().clone().requires_grad_() for k, v in weights.items()}


def by_name(weights: Weights, values: tuple[Tensor, ...]) -> Weights:
    return dict(zip(weights, values, strict=True))


def flat(values: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([v.reshape(-1) for v in values])
