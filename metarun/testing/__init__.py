"""The conformance gate, for tests of your own: checks of algorithms, networks, data sets and penalties. May import all
rooms; none imports it.

    from functools import partial

    from metarun.testing import check_algorithm

    def test_ridge():
        check_algorithm(partial(Ridge, strength=0.1))

A check raises one AssertionError: what was checked, what was found, and the usual cause. It needs neither pytest nor
data: episodes and networks of its own are small, on the CPU and seeded.
"""

from metarun.testing.algorithms import check_algorithm, check_algorithm_named
from metarun.testing.datasets import check_dataset
from metarun.testing.models import check_model
from metarun.testing.penalties import check_penalty

__all__ = ["check_algorithm", "check_algorithm_named", "check_dataset", "check_model", "check_penalty"]
