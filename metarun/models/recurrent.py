"""GRU, LSTM and RNN in plain operations, with the parameters and the results of torch's.

torch's own kernels have neither a batching rule for `vmap` nor second derivatives everywhere. A time step here is one
matrix product and some pointwise operations; the input's part of all time steps is one product before.

    RNN    h' = act(i + h W_hh^T)                       act tanh or relu,  i = x W_ih^T + b_ih,  j = h W_hh^T + b_hh
    GRU    r, z = sigma(i_r + j_r), sigma(i_z + j_z);   n = tanh(i_n + r j_n);   h' = (1 - z) n + z h
    LSTM   a, f, o = sigma(i + j);  g = tanh(i + j);    c' = f c + a g;   h' = o tanh(c')  (times W_hr^T with proj_size)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from metarun.errors import UserError

State = tuple[Tensor, ...]
"""h [B, H], of an LSTM also c [B, C]."""


def step_tanh(i: Tensor, j: Tensor, state: State) -> State:
    return ((i + j).tanh(),)


def step_relu(i: Tensor, j: Tensor, state: State) -> State:
    return ((i + j).relu(),)


def step_gru(i: Tensor, j: Tensor, state: State) -> State:
    (i_r, i_z, i_n), (j_r, j_z, j_n) = i.chunk(3, -1), j.chunk(3, -1)
    r, z = (i_r + j_r).sigmoid(), (i_z + j_z).sigmoid()
    n = (i_n + r * j_n).tanh()
    return (n + z * (state[0] - n),)


def step_lstm(i: Tensor, j: Tensor, state: State) -> State:
    a, f, g, o = (i + j).chunk(4, -1)
    c = f.sigmoid() * state[1] + a.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


STEPS = {"GRU": step_gru, "LSTM": step_lstm, "RNN_TANH": step_tanh, "RNN_RELU": step_relu}


class Cell(nn.Module):
    """The same call and the same parameter names as the `nn.GRUCell`, `nn.LSTMCell` or `nn.RNNCell` it replaces."""

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter

    def __init__(self, module: nn.RNNCellBase) -> None:
        super().__init__()
        for name, weight in module.named_parameters(recurse=False):
            self.register_parameter(name, weight)
        kind = type(module).__name__.removesuffix("Cell")
        self.bias, self.input_size, self.hidden_size = module.bias, module.input_size, module.hidden_size
        self.mode = f"{kind}_{module.nonlinearity.upper()}" if isinstance(module, nn.RNNCell) else kind

    def forward(self, x: Tensor, start: Any = None) -> Any:
        """[B, F] or [F] -> the next state as torch's."""
        states = 2 if self.mode == "LSTM" else 1
        if start is None:
            state: State = tuple(x.new_zeros(*x.shape[:-1], self.hidden_size) for _ in range(states))
        else:
            state = start if isinstance(start, tuple) else (start,)
        b_ih, b_hh = (getattr(self, name) if self.bias else None for name in ("bias_ih", "bias_hh"))
        i, j = linear(x, self.weight_ih, b_ih), linear(state[0], self.weight_hh, b_hh)
        after = STEPS[self.mode](i, j, state)
        return after if self.mode == "LSTM" else after[0]


class Recurrent(nn.Module):
    """The same call and the same parameter names as the `nn.GRU`, `nn.LSTM` or `nn.RNN` that it replaces."""

    def __init__(self, module: nn.RNNBase, drop: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        for name, weight in module.named_parameters(recurse=False):
            self.register_parameter(name, weight)
        self.mode, self.bias, self.drop = module.mode, module.bias, drop
        self.input_size, self.hidden_size, self.proj_size = module.input_size, module.hidden_size, module.proj_size
        self.num_layers, self.batch_first, self.bidirectional = (
            module.num_layers,
            module.batch_first,
            module.bidirectional,
        )

    def flatten_parameters(self) -> None:
        """Nothing: the weights lie as they are given."""

    def forward(self, x: Tensor, start: Any = None) -> tuple[Tensor, Any]:
        """[B, L, F] with batch_first, else [L, B, F], or [L, F] -> the outputs, and the last states as torch's."""
        if isinstance(x, PackedSequence):
            raise UserError(f"nn.{self.mode.partition('_')[0]}: packed sequences are not supported; pad them instead")
        alone = x.ndim == 2
        h = x[:, None] if alone else x.transpose(0, 1) if self.batch_first else x  # [L, B, F]
        given = start if start is None or isinstance(start, tuple) else (start,)
        if given is not None and alone:
            given = tuple(s[:, None] for s in given)
        last: list[State] = []
        directions = ("", "_reverse") if self.bidirectional else ("",)
        for layer in range(self.num_layers):
            if layer and self.drop is not None:
                h = self.drop(h.transpose(0, 1)).transpose(0, 1)
            outputs = []
            for suffix in directions:
                state = self._zeros(h) if given is None else tuple(s[len(last)] for s in given)
                output, state = self._run(f"l{layer}{suffix}", h.flip(0) if suffix else h, state)
                outputs.append(output.flip(0) if suffix else output)
                last.append(state)
            h = torch.cat(outputs, -1)
        ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
        if alone:
            h, ends = h[:, 0], tuple(e[:, 0] for e in ends)
        elif self.batch_first:
            h = h.transpose(0, 1)
        return h, ends if self.mode == "LSTM" else ends[0]

    def _zeros(self, h: Tensor) -> State:
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: 2 if self.mode == "LSTM" else 1]
        return tuple(h.new_zeros(h.shape[1], size) for size in sizes)

    def _run(self, name: str, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One layer in one direction: [L, B, F] -> [L, B, H], and the last state."""
        w_ih, w_hh = (getattr(self, f"weight_{part}_{name}") for part in ("ih", "hh"))
        b_ih, b_hh = (getattr(self, f"bias_{part}_{name}") if self.bias else None for part in ("ih", "hh"))
        outputs = []
        for i in linear(x, w_ih, b_ih).unbind(0):
            state = STEPS[self.mode](i, linear(state[0], w_hh, b_hh), state)
            if self.proj_size:
                state = linear(state[0], getattr(self, f"weight_hr_{name}")), *state[1:]
            outputs.append(state[0])
        return torch.stack(outputs), state
