"""Information on membership and its bound, against sums by hand and learners whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from metarun.diagnostics.membership import bound_gap, measure_gap, membership_information


def test_information_is_the_sum_over_a_table() -> None:
    generator = torch.Generator().manual_seed(1)
    difference = torch.randint(-1, 2, (12, 2, 3), generator=generator)
    bits = torch.randint(0, 2, (12, 2), generator=generator)
    information, bias = membership_information(difference, bits)
    for i in range(2):
        for j in range(3):
            pairs = list(zip(difference[:, i, j].tolist(), bits[:, i].tolist(), strict=True))
            ds, ss = [p[0] for p in pairs], [p[1] for p in pairs]
            expected = sum(
                pairs.count(p) / 12 * math.log(12 * pairs.count(p) / (ds.count(p[0]) * ss.count(p[1])))
                for p in set(pairs)
            )
            assert float(information[i, j]) == pytest.approx(expected, abs=1e-12)
            assert float(bias[i, j]) == (len(set(pairs)) - len(set(ds)) - len(set(ss)) + 1) / 24


def test_a_learner_that_knows_its_tasks_by_heart_has_the_largest_bound() -> None:
    bits = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]]).repeat(250, 1)
    losses = torch.stack([bits, 1 - bits], 1)[..., None].expand(-1, -1, -1, 3)  # 0 on the chosen task, 1 on the other
    own, other = measure_gap(losses, bits)
    assert own.tolist() == [0.0] * 1000
    assert other.tolist() == [1.0] * 1000
    found = bound_gap(losses, bits)
    assert found.plugin == pytest.approx(math.sqrt(2 * math.log(2)))
    assert found.bias == 0.0 + (2 - 2 - 2 + 1) / 2000
    assert found.corrected == pytest.approx(math.sqrt(2 * (math.log(2) + 1 / 2000)))


def test_the_correction_takes_away_what_independent_losses_have() -> None:
    generator = torch.Generator().manual_seed(2)
    losses = torch.randint(0, 2, (60, 2, 40, 25), generator=generator)
    bits = torch.randint(0, 2, (60, 40), generator=generator)
    found = bound_gap(losses, bits)
    assert abs(found.information) < 0.1 * found.bias
    assert found.corrected < 0.5 * found.plugin
    own, other = measure_gap(losses, bits)
    assert abs(float((other - own).mean())) < 0.03


def test_the_gap_is_of_the_tasks_that_bits_choose() -> None:
    losses = torch.tensor([[[[0, 1]], [[1, 1]]]])  # one draw, one pair: 1/2 and 1
    for bit, expected in ((0, (0.5, 1.0)), (1, (1.0, 0.5))):
        own, other = measure_gap(losses, torch.tensor([[bit]]))
        assert (own.item(), other.item()) == expected


def test_the_bound_is_above_the_gap_of_a_learner_that_is_sometimes_right() -> None:
    """Own tasks fail with probability .2, others with .5: the gap is .3; I(D; S) by the six probabilities."""
    p_d = {s: {} for s in (0, 1)}  # of D = l_1 - l_0, given the bit
    for s in (0, 1):
        fail = (0.2, 0.5) if s == 0 else (0.5, 0.2)  # of task 0 and of its substitute
        p_d[s] = {
            1: (1 - fail[0]) * fail[1],
            -1: fail[0] * (1 - fail[1]),
            0: fail[0] * fail[1] + (1 - fail[0]) * (1 - fail[1]),
        }
    mixture = {d: (p_d[0][d] + p_d[1][d]) / 2 for d in (-1, 0, 1)}
    exact = sum(p_d[s][d] / 2 * math.log(p_d[s][d] / mixture[d]) for s in (0, 1) for d in (-1, 0, 1))
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(0, 2, (400, 50), generator=generator)
    rate = torch.stack([torch.where(bits == b, 0.2, 0.5) for b in (0, 1)], 1)[..., None].expand(-1, -1, -1, 20)
    losses = torch.bernoulli(rate, generator=generator).int()
    found = bound_gap(losses, bits)
    assert found.information == pytest.approx(exact, rel=0.03)
    assert 0.3 < found.corrected == pytest.approx(math.sqrt(2 * exact), rel=0.02)
