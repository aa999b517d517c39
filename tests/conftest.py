"""What every test runs under."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tensors of the tests are tiny: threads cost more than they give, and take from what else runs."""
    torch.set_num_threads(1)
