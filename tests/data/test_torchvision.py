"""torchvision beside a CPU-only torch, and a command line that starts without either."""

from __future__ import annotations

import subprocess
import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pytest
import torch

from metarun.data.torchvision import SCHEMAS, declare_missing_schemas, load_torchvision


def python(code: str) -> str:
    """What the code prints in a process of its own: declarations last as long as their process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_imports_and_its_transforms_and_data_sets_are_usable() -> None:
    """Also where its compiled operators cannot load: neither uses them."""
    torchvision = load_torchvision()
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)
    turned = torchvision.transforms.functional.rotate(image, 90)
    torch.testing.assert_close(turned, torch.rot90(image, 1, (1, 2)))
    assert torchvision.transforms.Resize((6, 8))(image).shape == (1, 6, 8)
    assert torchvision.datasets.Omniglot.folder == "omniglot-py"
    assert load_torchvision() is torchvision


def test_nothing_is_declared_once_torchvision_is_there() -> None:
    load_torchvision()
    assert declare_missing_schemas() == []


def test_missing_schemas_are_declared_once() -> None:
    """A process that never imported torchvision has neither; a second definition of a schema would be an error."""
    code = "from metarun.data.torchvision import declare_missing_schemas as d; print(d(), d())"
    assert python(code) == f"{list(SCHEMAS)} []"


def test_schemas_of_a_torchvision_that_matches_are_left_alone() -> None:
    """Its own library is defined first, as a matching build does on import."""
    code = """
from torch import library as operators
from metarun.data.torchvision import SCHEMAS, declare_missing_schemas
library = operators.Library("torchvision", "DEF")
for name in SCHEMAS:
    library.define(SCHEMAS[name])
print(declare_missing_schemas())
"""
    assert python(code) == "[]"


class Broken(MetaPathFinder):
    """Makes `import torchvision` fail."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "torchvision":
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("compiled with another CUDA"), ImportError("no torchvision")])
def test_other_reasons_for_a_failing_import_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(
        "metarun.data.torchvision.declare_missing_schemas", lambda: pytest.fail("took it for missing schemas")
    )
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    with pytest.raises(type(error), match=str(error)):
        load_torchvision.__wrapped__()


def test_the_command_line_starts_without_torch() -> None:
    """--help, --cfg and completion must not wait seconds for torch."""
    code = "import sys, metarun, metarun.cli.main; print(sorted({m.partition('.')[0] for m in sys.modules} & {HEAVY}))"
    assert python(code.replace("HEAVY", "'torch', 'torchvision', 'PIL', 'wandb', 'hydra'")) == "['hydra']"
