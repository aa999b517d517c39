"""Networks with trained weights as a backbone: fixed below what a learner trains, or trained further.

    h = body((resize(x) - mean) / std)      x [B, C, H, W] in [0, 1], C = 1 or 3; h [B, D]
    f = h + W2 relu(W1 h + b1) + b2         the adapter, of `adapter` units; W2 = b2 = 0 at first
    y = W f + b                             the head, for a learner that has one

train=frozen trains adapter and head alone, `last` also the last part of the body (models/weights.py), `full` all of it.
Rows of features [B, D] pass the body: so the features of a frozen one are computed once for each image, and kept
(data/features.py). By default batch normalisation has the network's running statistics; there is no dropout.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from metarun.data.features import FixedPart
from metarun.errors import SettingError, require
from metarun.models.module import NO_HEAD, ModuleNetwork, make_network
from metarun.models.network import require_inputs
from metarun.models.weights import Preprocessing, last_part, load_body

TRAIN = ("frozen", "last", "full")


def backbone(
    input_shape: tuple[int, ...],
    outputs: int | None,
    name: str,
    weights: str,
    train: str,
    adapter: int,
    image_size: int | None,
    norm: str,
    weights_sha256: str | None,
) -> ModuleNetwork:
    """The network of these settings, which conf/model/backbone.yaml explains."""
    require_inputs("backbone", input_shape, "images")
    require(input_shape[0] in (1, 3), "name", name, f"needs images of 1 or 3 channels, not {input_shape[0]}")
    require(train in TRAIN, "train", train, "choices: " + ", ".join(TRAIN))
    require(adapter >= 0, "adapter", adapter, "must be at least 0 units")
    trains = train != "frozen" or adapter > 0 or outputs is not None
    require(trains, "adapter", adapter, "must be above 0: this learner has no head, so that nothing would be trained")
    require(image_size is None or image_size >= 1, "image_size", image_size, "must be at least 1 pixel, or null")
    body, preprocessing, sha256 = load_body(name, weights)
    if weights_sha256 not in (None, sha256):
        raise SettingError(
            "weights", weights, f"are not those of the run: sha256 {sha256[:12]} instead of {weights_sha256[:12]}"
        )
    if image_size is not None:
        preprocessing = preprocessing._replace(size=image_size)
    with torch.no_grad():
        features = Backbone(body, preprocessing, 1, 0, None).embed(torch.zeros(1, *input_shape)).shape[1]

    def make(kept: nn.Module) -> nn.Module:
        module = Backbone(copy.deepcopy(kept), preprocessing, features, adapter, outputs)
        module.body.requires_grad_(train == "full")
        for key in last_part(body) if train == "last" else ():
            module.body.get_parameter(key).requires_grad_(True)
        return module

    head = NO_HEAD if outputs is None else "head"
    network = make_network(partial(make, body), name, input_shape, outputs, head, norm)
    network = replace(network, weights_sha256=sha256)
    if train != "frozen" or network.norm not in ("running", "none"):
        return network
    fixed = Backbone(body, preprocessing, features, 0, None)
    rest = make_network(partial(make, nn.Identity()), name, (features,), outputs, head, norm)
    return replace(network, fixed_part=FixedPart(fixed.embed, f"{name} {preprocessing} {sha256}", rest))


class Backbone(nn.Module):
    def __init__(
        self, body: nn.Module, preprocessing: Preprocessing, features: int, adapter: int, outputs: int | None
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.adapter = None
        if adapter:
            last = nn.Linear(adapter, features)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.adapter = nn.Sequential(nn.Linear(features, adapter), nn.ReLU(), last)
        self.head = nn.Linear(features, outputs) if outputs is not None else None
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) if x.ndim > 2 else x
        f = h if self.adapter is None else h + self.adapter(h)
        return f if self.head is None else self.head(f)

    def embed(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> features [B, D]."""
        size = self.preprocessing.size
        x = x.expand(-1, 3, -1, -1)
        if size is not None and tuple(x.shape[2:]) != (size, size):
            x = interpolate(x, (size, size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in self.preprocessing[1:])
        return self.body((x - mean) / std).flatten(1)
