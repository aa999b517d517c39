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
assert abs(slope + torch.tensor(0.5).sin()) < 1e-6
_, pullback = torch.func.vjp(torch.sin, torch.tensor([0.5]))
assert abs(pullback(torch.ones(1))[0] - torch.tensor(0.5).cos()) < 1e-6
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""
COMPILES = """
import types
assert not isinstance(torch._dynamo, types.ModuleType)
compiled = torch.compile(torch.func.grad(torch.sin), backend="eager")
torch.testing.assert_close(compiled(torch.tensor(0.5)), torch.tensor(0.5).cos())
assert isinstance(torch._dynamo, types.ModuleType)
assert torch._dynamo.compiled_autograd._disable is not None
from torch.fx.experimental import symbolic_shapes
assert symbolic_shapes.ShapeEnv.__module__ == symbolic_shapes.sym_eq.__module__ == symbolic_shapes.__name__
before = torch._dynamo
delay_compiler()
assert torch._dynamo is before
"""
ASKS = """
assert callable(torch._dynamo.graph_break)
assert callable(torch._dynamo.compiled_autograd.reset)
assert "torch._dynamo" in sys.modules
"""
SHAPES = """
from torch.fx.experimental.symbolic_shapes import expect_true, sym_eq
assert expect_true(sym_eq(torch.Size([2, 3]), torch.Size([2, 3])))
assert not expect_true(sym_eq(torch.Size([2, 3]), torch.Size([3, 2])))
assert "sympy" not in sys.modules
out = torch.ones(2, requires_grad=True) * 2
try:
    torch.autograd.grad(out, out, torch.ones(3))
except RuntimeError as error:
    assert "Mismatch in shape" in str(error)
else:
    raise AssertionError("no error")
from torch.fx.experimental.symbolic_shapes import ShapeEnv, sym_eq as own
assert own([2], [2]) and sym_eq([2], [2]) and ShapeEnv.__module__ == "torch.fx.experimental.symbolic_shapes"
from torch.fx.experimental.symbolic_shapes import sym_eq as real
assert real.__module__ == ShapeEnv.__module__
"""

COUNTS = """
import types
from torch._refs import div
from metarun.compute.late_compiler import without_compiler
from metarun.training.memory import peak_bytes
one = torch.ones(4, device="meta")
assert peak_bytes(lambda: torch.nn.functional.pad(div(one, one), (1, 1)).mean()) >= 24
assert "torch._dynamo" not in sys.modules and not isinstance(torch._dynamo, types.ModuleType)
with without_compiler():
    turned_off = torch._disable_dynamo(lambda x: torch.sin(x).sum())
    turned_off(one)
with without_compiler():
    import torch._dynamo.utils
    assert isinstance(torch._dynamo, types.ModuleType)
with without_compiler():
    assert isinstance(torch._dynamo, types.ModuleType)
turned_off(torch.ones(2))
seen = []
def watch(graph, inputs):
    seen.append(str(graph.graph))
    return graph
torch.compile(lambda x: turned_off(x) + x.cos().sum(), backend=watch)(torch.ones(2))
assert any("cos" in text for text in seen) and not any("sin" in text for text in seen)
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", COMMON + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_derivatives_do_without_the_compiler_until_something_is_compiled() -> None:
    run(DIFFERENTIATES + COMPILES)


def test_whoever_asks_for_the_compiler_gets_it() -> None:
    run(ASKS)


def test_shapes_are_compared_without_sympy_until_more_is_asked_for() -> None:
    run(SHAPES)


def test_memory_is_counted_without_the_compiler_which_still_leaves_alone_what_it_must() -> None:
    run(COUNTS)
