"""Networks for signals [C, L], as ordinary modules: convolutions over time, and a recurrent network.

`cnn1d` is the fully convolutional network of Wang et al. 2017 (arXiv 1611.06455): blocks of convolution, normalisation
and ReLU that keep the length, then the mean over time. Its convolutions have no bias, since a shift follows, and
Xavier-uniform weights. `gru` (Cho et al. 2014, arXiv 1406.1078) reads one time step after another, from torch's own
initial weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from metarun.errors import require
from metarun.models.module import NO_HEAD, ModuleNetwork, make_network
from metarun.models.network import require_inputs


def cnn1d(
    input_shape: tuple[int, ...], outputs: int | None, widths: tuple[int, ...], kernels: tuple[int, ...], norm: str
) -> ModuleNetwork:
    require_inputs("cnn1d", input_shape, "signals")
    require(bool(widths) and all(w >= 1 for w in widths), "widths", list(widths), "must be whole numbers of at least 1")
    fits = len(kernels) == len(widths) and all(k >= 1 for k in kernels)
    require(fits, "kernels", list(kernels), f"must be {len(widths)} whole numbers of at least 1, as there are widths")
    make = functools.partial(Convolutions, input_shape[0], widths, kernels, outputs)
    return make_network(make, "cnn1d", input_shape, outputs, "head" if outputs is not None else NO_HEAD, norm)


def gru(
    input_shape: tuple[int, ...],
    outputs: int | None,
    hidden: int,
    layers: int,
    bidirectional: bool,
    dropout: float,
    readout: str,
    norm: str,
) -> ModuleNetwork:
    """It has no normalisation, whatever `norm` is."""
    require_inputs("gru", input_shape, "signals")
    require(hidden >= 1, "hidden", hidden, "must be at least 1")
    require(layers >= 1, "layers", layers, "must be at least 1")
    require(0 <= dropout < 1, "dropout", dropout, "must be at least 0 and below 1")
    require(dropout == 0 or layers > 1, "dropout", dropout, "is between layers: model.layers=2 has one such place")
    require(readout in ("last", "mean"), "readout", readout, "choices: last, mean")
    make = functools.partial(Gated, input_shape[0], hidden, layers, bidirectional, dropout, outputs, readout)
    return make_network(make, "gru", input_shape, outputs, "head" if outputs is not None else NO_HEAD, norm)


class Convolutions(nn.Module):
    """[B, C, L] -> [B, outputs], or [B, D] of the last width."""

    def __init__(self, channels: int, widths: Sequence[int], kernels: Sequence[int], outputs: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ZeroPad1d(((kernel - 1) // 2, kernel // 2)),
                nn.Conv1d(before, width, kernel, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            )
            for (before, width), kernel in zip(itertools.pairwise([channels, *widths]), kernels, strict=True)
        )
        self.head = nn.Linear(widths[-1], outputs) if outputs is not None else None
        for part in self.modules():
            if isinstance(part, nn.Conv1d):
                nn.init.xavier_uniform_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        z = x.mean(2)
        return z if self.head is None else self.head(z)


class Gated(nn.Module):
    """[B, C, L] -> [B, outputs], or [B, D]: the last layer's state after the last time step, or the mean of all."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        layers: int,
        bidirectional: bool,
        dropout: float,
        outputs: int | None,
        readout: str,
    ) -> None:
        super().__init__()
        self.rnn = nn.GRU(channels, hidden, layers, batch_first=True, dropout=dropout, bidirectional=bidirectional)
        self.directions, self.readout = 1 + bidirectional, readout
        self.head = nn.Linear(hidden * self.directions, outputs) if outputs is not None else None

    def forward(self, x: Tensor) -> Tensor:
        h, last = self.rnn(x.transpose(1, 2))
        z = h.mean(1) if self.readout == "mean" else last[-self.directions :].transpose(0, 1).flatten(1)
        return z if self.head is None else self.head(z)
