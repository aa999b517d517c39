"""Nested settings and numbers as JSON and loggers take them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def flatten_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flatten_keys(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def json_checksum(values: Any) -> str:
    """The sha256 of values as JSON, the same before and after storing them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def replace_nonfinite(values: Any) -> Any:
    """NaN and infinity become null: JSON has no word for them."""
    if isinstance(values, dict):
        return {str(k): replace_nonfinite(v) for k, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [replace_nonfinite(v) for v in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
