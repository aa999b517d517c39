"""Import torchvision, also beside a CPU-only torch.

torchvision's wheel on PyPI is compiled for CUDA builds of torch. Beside a CPU build its compiled operators cannot load,
and importing it fails while it registers the Python parts of operators whose schemas are then unknown ("operator
torchvision::nms does not exist"). Only two schemas are needed for the import; metarun uses none of the operators.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import library as operators

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[operators.Library] = []  # kept alive: a library's definitions end with it


def declare_missing_schemas() -> list[str]:
    """Declare the schemas that no loaded library has. Return their names."""
    missing = [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = operators.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(SCHEMAS[name])
        _libraries.append(library)
    return missing


@functools.cache
def load_torchvision() -> ModuleType:
    """Import torchvision, if necessary with the missing schemas declared first."""
    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        declare_missing_schemas()
        import torchvision
    return torchvision
