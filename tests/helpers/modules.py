"""Ordinary modules, as users write them."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


class SmallConv(nn.Module):
    """The built-in conv4 with pool=stride and readout=mean."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int | None, width: int = 8) -> None:
        super().__init__()
        channels = [input_shape[0], width, width, width, width]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(channels)
        )
        self.fc = nn.Linear(width, outputs) if outputs is not None else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        z = x.mean((2, 3))
        return z if self.fc is None else self.fc(z)


class Residual(nn.Module):
    """A block with a shortcut around two normalised layers, on rows or flattened images; without `outputs`."""

    def __init__(self, input_shape: tuple[int, ...], width: int = 6, ways: int = 3, p: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.BatchNorm1d(width))
        self.block = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width, eps=1e-3), nn.Tanh(), nn.Dropout(p), nn.Linear(width, width)
        )
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.classifier = nn.Linear(width, ways)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.classifier(torch.tanh(self.norm(h + self.block(h))))


class Sequence(nn.Module):
    """A recurrent network over the rows of an image, or over the numbers of a row one by one."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int | None, cell: str = "GRU", width: int = 5) -> None:
        super().__init__()
        self.size = input_shape[-1] if len(input_shape) > 1 else 1
        self.rnn = getattr(nn, cell)(self.size, width, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * width, outputs) if outputs is not None else None

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x.reshape(len(x), -1, self.size))
        z = h[:, -1]
        return z if self.fc is None else self.fc(z)


class Attending(nn.Module):
    """A transformer block over the rows of an image."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int | None, width: int = 8, p: float = 0.0) -> None:
        super().__init__()
        self.size = input_shape[-1]
        self.embed = nn.Linear(self.size, width)
        self.register_buffer("position", torch.linspace(-1, 1, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 12, dropout=p, batch_first=True)
        self.fc = nn.Linear(width, outputs) if outputs is not None else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.embed(x.reshape(len(x), -1, self.size)) + self.position)
        z = h.mean(1)
        return z if self.fc is None else self.fc(z)


class Item(nn.Module):
    """Branches on a value."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum().item() > 0 else self.fc(-x)


class Branch(Item):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


class Noise(Item):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.dropout(x, 0.5))


class Counter(Item):
    """Counts its calls in a buffer."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x)


class Lazy(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU())
        self.fc = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


class Plain(nn.Module):
    """For any learner: each row by itself."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int | None, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.LayerNorm(width), nn.GELU()
        )
        self.fc = nn.Linear(width, outputs) if outputs is not None else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z if self.fc is None else self.fc(z)


class Dropping(Plain):
    def __init__(self, input_shape: tuple[int, ...], outputs: int | None) -> None:
        super().__init__(input_shape, outputs)
        self.body.append(nn.Dropout(0.5))


class Sideways(nn.Module):
    """Dropout where the first axis is no row."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x.transpose(0, 1)).mean(0))
