"""Philox 4x64 on integers of Python, and a test of equal frequencies."""

from __future__ import annotations

import numpy as np

MASK = 2**64 - 1


def philox4x64(counter: list[int], key: tuple[int, int]) -> list[int]:
    """One block of Philox 4x64 with 10 rounds, from the paper (Salmon et al. 2011), on Python's integers."""
    c, (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k0, b & MASK, (a >> 64) ^ c[3] ^ k1, a & MASK]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c


def assert_equally_often(outcomes: np.ndarray, kinds: int) -> None:
    """Rows [n, ...] take `kinds` values equally often.

    Pearson's statistic has mean df = kinds - 1 and variance 2 df; five standard deviations either way, so that
    outcomes that are too even are refused too.
    """
    _, seen = np.unique(outcomes.reshape(len(outcomes), -1), axis=0, return_counts=True)
    assert len(seen) == kinds
    expected = len(outcomes) / kinds
    statistic = float(((seen - expected) ** 2 / expected).sum())
    df = kinds - 1
    assert abs(statistic - df) < 5 * np.sqrt(2 * df)
