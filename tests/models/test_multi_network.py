"""Networks side by side, and networks with noise, are made of matrix products if their parts are."""

from __future__ import annotations

import pytest

from metarun.models.attention import Attention
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.models.multi_network import multi_network
from metarun.models.noise import NoisyNetwork, WeightNoise
from metarun.types import Model

MLP = mlp((3,), 2, (4,), "none")
STRIDED, POOLED = (conv4((1, 16, 16), 2, 4, "batch", pool, "mean") for pool in ("stride", "max"))


@pytest.mark.parametrize(("network", "expected"), [(MLP, True), (STRIDED, True), (POOLED, False)])
def test_a_model_is_made_of_matrix_products_if_all_its_networks_are(network: Model, expected: bool) -> None:
    assert multi_network(attention=Attention(4, 2), network=network).matmul_only is expected
    assert NoisyNetwork(network, WeightNoise(("block0.weight",), "reg.", 0.1)).matmul_only is expected
    assert multi_network(network=network, other=object()).matmul_only is False
