"""torch's compiler is imported by what compiles, and by nothing before; it then works as ever. In processes of their
own: in this one the compiler is there."""

from __future__ import annotations

import subprocess
import sys

COMMON = """
import sys, torch
from metarun.compute.late_compiler import delay_compiler
delay_compiler()
"""
DIFFERENTIATES = """
slope = torch.func.grad(lambda x: torch.func.grad(torch.sin)(x))(torch.tensor(0.5))
torch.testing.assert_close(slope, -torch.tensor(0.5).sin())
assert "torch._dynamo" not in sys.modules
"""
COMPILES = """
import types
assert not isinstance(torch._dynamo, types.ModuleType)
compiled = torch.compile(torch.func.grad(torch.sin), backend="eager")
torch.testing.assert_close(compiled(torch.tensor(0.5)), torch.tensor(0.5).cos())
assert isinstance(torch._dynamo, types.ModuleType)
assert torch._dynamo.compiled_autograd._disable is not None
before = torch._dynamo
delay_compiler()
assert torch._dynamo is before
"""
ASKS = """
assert callable(torch._dynamo.graph_break)
assert callable(torch._dynamo.compiled_autograd.reset)
assert "torch._dynamo" in sys.modules
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", COMMON + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_derivatives_do_without_the_compiler_until_something_is_compiled() -> None:
    run(DIFFERENTIATES + COMPILES)


def test_whoever_asks_for_the_compiler_gets_it() -> None:
    run(ASKS)
