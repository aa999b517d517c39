r"""Layers that take the place of torch's in a user's module, where those change buffers, draw random numbers or have no
batching rule: batch normalisation, dropout, recurrent layers, instance normalisation, embeddings, attention.

They keep the names and the values of the parameters. What a call needs beside its input (statistics, the keys of
dropout) and what it measures lies on a `Tape` that all layers of one module share.

    dropout     keep where hash(key of the row, number of the layer, position in the row) >= p, and divide by 1 - p
    DropBlock   squares of b x b pixels are dropped where hash < gamma at their first pixel, and m is what is left:
                y = h m / mean(m),   gamma = p H W / (b^2 (H - b + 1) (W - b + 1))

Dropout is on in meta-gradients alone. The key of a row is a function of (seed, outer step, task, row), drawn by
`compute/random.py`; so are the masks, under `vmap` as one task at a time. All inner steps of a task have the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, max_pool2d, pad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from metarun.compute import random
from metarun.errors import SettingError, UserError
from metarun.models.norm import BATCH_NORMS, Moments, moments, normalise
from metarun.models.recurrent import Cell, Recurrent
from metarun.types import Batch, Params, Task

RUNNING = "running"
MODULE_NORMS = (*BATCH_NORMS, RUNNING)
KEY_BITS, KEYS = 24, 2
"""A key is two whole numbers below 2^24, which a float32 holds exactly."""

CHANNEL_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
REFUSED: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.RReLU, "draws random slopes; nn.LeakyReLU does not"),
    (nn.FractionalMaxPool2d, "draws random regions; nn.MaxPool2d does not"),
    (nn.FractionalMaxPool3d, "draws random regions; nn.MaxPool3d does not"),
)


@dataclass
class Tape:
    """What one call of a module carries beside its arguments."""

    stats: tuple[Moments, ...] | None = None  # of each batch normalisation, in the order of their calls
    keys: Tensor | None = None  # of dropout [B, 2]
    measures: bool = False
    found: list[Moments] = field(default_factory=list)
    widest: int = 0  # the most numbers of a row that a batch normalisation was given
    norms: int = 0  # called so far
    dropouts: int = 0

    def begin(self, stats: tuple[Moments, ...] | None, keys: Tensor | None, measures: bool) -> None:
        self.stats, self.keys, self.measures = stats, keys, measures
        self.found, self.norms, self.dropouts = [], 0, 0

    def draw(self, layer: str, h: Tensor, shape: torch.Size, p: float) -> Tensor | None:
        """What the next layer of dropout keeps of h [B, ...], as a mask [B, *shape]; None where nothing is dropped."""
        if self.keys is None:
            return None
        self.dropouts += 1
        if len(h) != len(self.keys):
            raise UserError(f"{layer}: its input has {len(h)} rows where the batch has {len(self.keys)}")
        return keep(self.keys, self.dropouts, math.prod(shape), p).view(-1, *shape)

    def end(self) -> list[Moments]:
        """The moments that were measured. What stayed here would outlive the transformation that it belongs to."""
        found = self.found
        self.stats, self.keys, self.found = None, None, []
        return found


class EpisodeNorm(nn.Module):
    """Batch normalisation with the statistics of the batch at hand, or with given ones."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, module: _BatchNorm, norm: str, tape: Tape) -> None:
        super().__init__()
        self.register_parameter("weight", module.weight)
        self.register_parameter("bias", module.bias)
        self.eps, self.norm, self.tape, self.num_features = module.eps, norm, tape, module.num_features
        if norm == RUNNING:
            self.register_buffer("running_mean", module.running_mean)
            self.register_buffer("running_var", module.running_var)

    def forward(self, h: Tensor) -> Tensor:
        tape, given = self.tape, None
        tape.widest = max(tape.widest, math.prod(h.shape[1:]))
        if self.norm == RUNNING:
            given = self.running_mean, self.running_var
        elif tape.measures:
            given = moments(h)
            tape.found.append(given)
        elif tape.stats is not None:
            given = tape.stats[tape.norms]
            tape.norms += 1
        gain = h.new_ones(h.shape[1]) if self.weight is None else self.weight
        shift = h.new_zeros(h.shape[1]) if self.bias is None else self.bias
        return normalise(h, gain, shift, "batch", cast(Any, given), self.eps)


class RowDropout(nn.Module):
    """Dropout of single numbers, or of whole channels, by the keys of the rows; the identity without keys."""

    def __init__(self, p: float, channels: bool, tape: Tape) -> None:
        super().__init__()
        self.p, self.channels, self.tape = p, channels, tape

    def forward(self, h: Tensor) -> Tensor:
        kept = self.tape.draw(f"nn.Dropout(p={self.p})", h, h.shape[1:2] if self.channels else h.shape[1:], self.p)
        if kept is None:
            return h
        kept = kept.view(*kept.shape, *[1] * (h.ndim - kept.ndim))
        return h * (kept.to(h.dtype) / (1 - self.p)) if self.p < 1 else h * 0


class DropBlock(nn.Module):
    """Dropout of whole squares of each channel, h [B, C, H, W] (Ghiasi et al. 2018, arXiv 1810.12890).

    p is the share of pixels to drop, b the side of a square: `size`, or all of a smaller feature map. The mean of the
    mask is that of the row. Anywhere but in metarun's meta-gradients it is the identity.
    """

    def __init__(self, p: float, size: int, tape: Tape | None = None) -> None:
        super().__init__()
        self.p, self.size, self.tape = p, size, tape or Tape()

    def forward(self, h: Tensor) -> Tensor:
        channels, height, width = h.shape[1:]
        side = min(self.size, height, width)
        starts = torch.Size((channels, height - side + 1, width - side + 1))
        gamma = self.p * height * width / (side**2 * starts[1] * starts[2])
        kept = self.tape.draw(f"DropBlock(p={self.p})", h, starts, gamma)
        if kept is None:
            return h
        dropped = max_pool2d(pad((~kept).to(h.dtype), [side - 1] * 4), side, stride=1)
        mask = 1 - dropped
        return h * mask / mask.mean((1, 2, 3), keepdim=True).clamp_min(1 / mask[0].numel())


class RowAttention(nn.Module):
    """`nn.MultiheadAttention` with dropout of the attention weights by the keys of the rows."""

    in_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None

    def __init__(self, module: nn.MultiheadAttention, tape: Tape) -> None:
        super().__init__()
        for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, getattr(module, name))
        self.out_proj, self.num_heads, self.batch_first = module.out_proj, module.num_heads, module.batch_first
        self.drop = RowDropout(module.dropout, False, tape)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The same call as torch's, with rows [B, L, E], or [L, B, E] without batch_first."""
        inputs = (query, key, value) if self.batch_first else (t.transpose(0, 1) for t in (query, key, value))
        maps = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        maps = list(self.in_proj_weight.chunk(3)) if self.in_proj_weight is not None else maps
        shifts = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        parts = (linear(t, cast(Any, w), b) for t, w, b in zip(inputs, maps, shifts, strict=True))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # [B, H, L, d]
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if attn_mask is not None:
            logits = _mask(logits, attn_mask.unflatten(0, logits.shape[:2]) if attn_mask.ndim == 3 else attn_mask)
        if key_padding_mask is not None:
            logits = _mask(logits, key_padding_mask[:, None, None])
        weights = self.drop(logits.softmax(-1))
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        return out if self.batch_first else out.transpose(0, 1), shown


def _mask(logits: Tensor, mask: Tensor) -> Tensor:
    """True, or minus infinity, where there is to be no attention."""
    return logits.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else logits + mask


def keep(keys: Tensor, layer: int, count: int, p: float) -> Tensor:
    """The mask [B, count] of one layer: the products modulo 2^64 of a hash of each row with one of each position,
    against p."""
    high, low = keys.long().unbind(1)
    rows = spread(mix(high * 2**8 + layer) ^ low)
    return rows[:, None] * spread(torch.arange(count, device=keys.device)) >= round(p * 2**64) - 2**63


def spread(v: Tensor) -> Tensor:
    """Whole numbers of up to 32 bits -> odd ones of 64 bits."""
    upper = mix(v + 1)
    return (upper << 32) | mix(upper ^ 0x9E3779B9) | 1


def mix(v: Tensor) -> Tensor:
    """A whole number -> 32 bits, each of which depends on all of the number's lowest 32 (Murmur3's finaliser)."""
    v = v & 0xFFFFFFFF
    v = ((v ^ (v >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    v = ((v ^ (v >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return v ^ (v >> 16)


class Lookup(nn.Module):
    """An embedding whose indices may come as numbers of any type, as the rows of a table do."""

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.padding_idx = module.weight, module.padding_idx
        self.num_embeddings, self.embedding_dim = module.num_embeddings, module.embedding_dim

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.embedding(x.long(), self.weight, self.padding_idx)


class Groups(nn.Module):
    """Group normalisation of images in any memory order: vmap has none for channels last (torch 2.13)."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, module: nn.GroupNorm) -> None:
        super().__init__()
        self.register_parameter("weight", module.weight)
        self.register_parameter("bias", module.bias)
        self.num_groups, self.num_channels, self.eps = module.num_groups, module.num_channels, module.eps

    def forward(self, h: Tensor) -> Tensor:
        flat = h.reshape(*h.shape[:2], -1)
        return nn.functional.group_norm(flat, self.num_groups, self.weight, self.bias, self.eps).view(h.shape)


def add_keys(params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
    """The parameters, and the tasks with keys behind each row of the inputs; `first` is the first task's number."""
    rows = [batch.x.shape[1] for batch in tasks]
    drawn = random.row_keys(seed, step, range(first, first + len(tasks.support.x)), sum(rows) * KEYS, KEY_BITS)
    keys = torch.from_numpy(drawn.astype("int64")).unflatten(1, (-1, KEYS)).split(rows, 1)
    inputs = [torch.cat([b.x.flatten(2), k.to(b.x)], 2) for b, k in zip(tasks, keys, strict=True)]
    return params, Task(*(Batch(x, b.y) for x, b in zip(inputs, tasks, strict=True)))


def replace_layers(module: nn.Module, norm: str, tape: Tape) -> None:
    """Put these layers in their places, everywhere in the module. Raise `UserError` for a layer that has none."""
    made: dict[int, nn.Module] = {}  # a layer at two places stays one
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if id(part) not in made:
            made[id(part)] = _keep_own_forward(name, part, _replacement(name, part, norm, tape))
        other = made[id(part)]
        if other is not part:
            parent, _, leaf = name.rpartition(".")
            module.get_submodule(parent)._modules[leaf] = other


def _keep_own_forward(name: str, part: nn.Module, other: nn.Module) -> nn.Module:
    """`other` in place of a layer whose class may do more than torch's: timm's put dropout and an activation behind
    their normalisation. Raise `UserError` for any other class with a `forward` of its own."""
    if type(other) is type(part):  # the layer itself, or a DropBlock with its tape
        return other
    base: Any = next(kind for kind in type(part).__mro__ if kind.__module__.startswith("torch.nn."))
    if type(part).forward is base.forward:
        return other
    if type(part).__module__ == "timm.layers.norm_act":
        return nn.Sequential(other, *part.children())
    own = f"{type(part).__module__}.{type(part).__name__} has a forward of its own"
    raise UserError(
        f"{name}: {own}, and metarun would call nn.{base.__name__}'s; make it an nn.{base.__name__} and what follows"
    )


def _replacement(name: str, part: nn.Module, norm: str, tape: Tape) -> nn.Module:
    for kind, reason in REFUSED:
        if isinstance(part, kind):
            raise UserError(f"{name}: nn.{kind.__name__} {reason}")
    if isinstance(part, _BatchNorm):
        if norm == RUNNING and part.running_mean is None:
            needed = f"layer {name} keeps no running statistics; choices: {', '.join(BATCH_NORMS)}"
            raise SettingError("norm", norm, needed)
        return EpisodeNorm(part, norm, tape)
    if isinstance(part, _InstanceNorm):  # its statistics are those of each row, never running ones
        part.track_running_stats, part.running_mean, part.running_var = False, None, None
        part.num_batches_tracked = None
    if isinstance(part, _DropoutNd):
        return _dropout(name, part, tape)
    if isinstance(part, DropBlock):
        return DropBlock(part.p, part.size, tape)
    if isinstance(part, nn.GroupNorm):
        return Groups(part)
    if isinstance(part, nn.RNNCellBase):
        return Cell(part)
    if isinstance(part, nn.RNNBase):
        return Recurrent(part, RowDropout(part.dropout, False, tape) if part.dropout and part.num_layers > 1 else None)
    if isinstance(part, nn.MultiheadAttention) and part.dropout:
        if part.bias_k is not None or part.add_zero_attn:
            raise UserError(f"{name}: nn.MultiheadAttention has add_bias_kv or add_zero_attn: set its dropout to 0")
        return RowAttention(part, tape)
    if isinstance(part, nn.Embedding):
        if part.max_norm is not None:
            raise UserError(f"{name}: nn.Embedding(max_norm={part.max_norm}) changes its weights in place")
        return Lookup(part)
    return part


def _dropout(name: str, part: _DropoutNd, tape: Tape) -> nn.Module:
    if part.p == 0:
        return nn.Identity()
    channels = isinstance(part, CHANNEL_DROPOUTS)
    if type(part) is not nn.Dropout and not channels:
        raise UserError(
            f"{name}: nn.{type(part).__name__}(p={part.p}) is not supported; choices: Dropout, Dropout1d-3d"
        )
    return RowDropout(part.p, channels, tape)


def contains(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    return any(isinstance(part, kinds) for part in module.modules())
