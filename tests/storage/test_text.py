"""Numbers and names as people read them."""

from __future__ import annotations

import math

import pytest

from metarun.storage.text import count_nouns, duration, file_size, format_metric, number, shorten


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_metric("accuracy", 0.90153, 0.005575), "90.15 ± 0.56 %"),
        (format_metric("accuracy", 0.90153, unit=False), "90.15"),
        (format_metric("mse", 0.116924, 0.016282), "0.1169 ± 0.0163"),
        (format_metric("mse", 1.2e-7, None), "1.20e-07"),
        (format_metric("mse", 3e9), "3.00e+09"),
        (format_metric("mse", 0.0, 0.0), "0.0000 ± 0.0000"),
        (format_metric("mse", math.nan, 1.0), "\N{EN DASH}"),
        (format_metric("mse", None), "\N{EN DASH}"),
        (count_nouns(1, "query", "queries"), "1 query"),
        (count_nouns(2, "query", "queries"), "2 queries"),
        (count_nouns(0, "task"), "0 tasks"),
        (file_size(1023), "1023 B"),
        (file_size(1024), "1.0 KB"),
        (file_size(1.5 * 2**30), "1.5 GB"),
        (file_size(5000 * 2**40), "5000.0 TB"),
        (number(48000), "48,000"),
        (number(0.000123456), "0.0001235"),
        (number(math.inf), "\N{EN DASH}"),
        (number(True), "True"),
        (number("text"), "text"),
        (duration(8.25), "8.2 s"),
        (duration(871), "14 min 31 s"),
        (duration(7260), "2 h 1 min"),
        (duration(59.99), "60.0 s"),
        (duration(None), "\N{EN DASH}"),
        (shorten("x" * 50, 10), "xxxxxxxxx…"),
        (shorten("a\nb"), "a\\nb"),
    ],
)
def test_numbers_and_names_as_they_are_read(shown: str, expected: str) -> None:
    assert shown == expected
