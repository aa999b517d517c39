"""How many weights are zero, near zero, or count: against small cases counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from metarun.diagnostics.sparsity import participation, sparsity
from metarun.models.mlp import mlp


def one_block() -> dict[str, Tensor]:
    return {
        "block0.weight": torch.tensor([[0.0, 0.0], [0.5, 0.0], [1e-4, -1e-3]]),
        "block0.shift": torch.tensor([0.0, 0.0, 2.0]),
        "block0.gain": torch.tensor([0.0, 1.0, 1.0]),
        "head.weight": torch.tensor([[0.0, 1.0, -1.0]]),
        "head.bias": torch.tensor([0.0]),
    }


def test_zeros_small_weights_and_zero_units_are_counted_by_layer() -> None:
    found = sparsity(one_block(), threshold=1e-3)
    block, head = found["layers"]["block0"], found["layers"]["head"]
    assert (block["parameters"], block["nonzero"], block["zeros_share"]) == (12, 6, 0.5)
    assert block["small_share"] == 8 / 12  # the zeros, 1e-4, and 1e-3 itself
    assert (block["units"], block["zero_units"]) == (3, 1)
    assert (head["parameters"], head["nonzero"], head["units"], head["zero_units"]) == (4, 2, 0, 0)


def test_the_total_is_of_all_numbers() -> None:
    found = sparsity(one_block(), threshold=1e-3)
    total = found["total"]
    assert (total["parameters"], total["nonzero"], total["units"], total["zero_units"]) == (16, 8, 3, 1)
    assert total["zeros_share"] == 0.5
    assert total["small_share"] == 10 / 16
    parts = sum(layer["effective_parameters"] for layer in found["layers"].values())
    assert total["effective_parameters"] == pytest.approx(parts, rel=1e-12)
    assert json.loads(json.dumps(found)) == found


def test_a_unit_is_zero_only_with_its_shift_and_gain() -> None:
    params = one_block()
    for name in ("block0.shift", "block0.gain"):
        assert sparsity(params | {name: torch.ones(3)})["total"]["zero_units"] == 0


def test_units_of_convolutions_are_filters() -> None:
    weight = torch.ones(4, 2, 3, 3)
    weight[1] = 0
    weight[2, 0] = 0
    found = sparsity({"block0.weight": weight, "block0.shift": torch.zeros(4)})["total"]
    assert (found["units"], found["zero_units"]) == (4, 1)


@pytest.mark.parametrize(("size", "zeros"), [(5, 0), (5, 100), (1, 3)])
def test_weights_of_one_size_count_fully_and_zeros_not_at_all(size: int, zeros: int) -> None:
    w = torch.cat([torch.full((size,), -0.3), torch.zeros(zeros)])
    assert participation(w) == pytest.approx(size, rel=1e-12)


def test_gaussian_weights_count_a_third_whatever_their_scale() -> None:
    """E w^4 = 3 (E w^2)^2, so that n^2 s^4 / (3 n s^4) = n / 3; scales whose fourth power float32 has not."""
    w = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert participation(w) == pytest.approx(len(w) / 3, rel=0.02)
    for scale in (1e-20, 1e20):
        assert participation((w * scale).float()) == pytest.approx(participation(w), rel=1e-5)


def test_participation_is_the_ratio_of_the_power_sums() -> None:
    w = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert participation(w) == pytest.approx((1 + 4 + 9) ** 2 / (1 + 16 + 81), rel=1e-12)


def test_tensors_of_zeros_or_of_no_numbers_count_nothing() -> None:
    assert participation(torch.zeros(3)) == 0
    assert participation(torch.tensor([float("nan"), 1.0])) == 0
    assert sparsity({})["total"]["zeros_share"] == 0


def test_large_gains_do_not_hide_the_weights_beside_them() -> None:
    """Each tensor is counted on its own scale: 100 equal weights of 0.01 beside 10 gains of 1 are 110."""
    params = {
        "block0.weight": torch.full((10, 10), 0.01),
        "block0.gain": torch.ones(10),
        "block0.shift": torch.zeros(10),
    }
    assert sparsity(params)["total"]["effective_parameters"] == pytest.approx(110, rel=1e-6)


def test_what_a_regularizer_owns_is_not_the_networks() -> None:
    params = one_block()
    own = {"reg.l1.weight": torch.tensor(0.0), "reg.kl.log_std.block0.weight": torch.zeros(3, 2)}
    assert sparsity(params | own) == sparsity(params)


def test_a_fresh_network_has_zero_shifts_and_no_zero_units() -> None:
    params = mlp((3,), 2, (8, 4), "batch").init(0)
    found = sparsity(params)
    assert found["layers"]["block0"]["zeros_share"] == 8 / 40
    assert (found["total"]["units"], found["total"]["zero_units"]) == (12, 0)
    assert set(found["layers"]) == {"block0", "block1", "head"}
