"""The features of images by the fixed part of a network: computed once for each image, and kept on disk.

A file `features-KEY.npy` in the cache folder holds [n, D] in float32, row i for image i of the decoded images. The key
is that of the decoded images, of how they are normalised and of the function. A `features-KEY.json` beside it names
them for `metarun cache`; it is written first, so that it never describes older features.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.data.images import Source
from metarun.data.npy import read_npy
from metarun.data.pixels import Pixels
from metarun.storage import atomic
from metarun.storage.cache_entries import mark_used
from metarun.storage.json_values import json_checksum
from metarun.storage.locks import file_lock
from metarun.storage.progress import track
from metarun.storage.run_folder import cache_folder

AT_ONCE = 64  # images


class FixedPart(NamedTuple):
    """The part of a network before all that is trained."""

    apply: Callable[[Tensor], Tensor]  # inputs [B, ...] -> features [B, D]
    key: str  # of the function: its name, its weights
    rest: Any  # the network of these features, with the same parameters


@dataclass(frozen=True)
class FeatureSource:
    """The images of `load` as features: a function like `load`."""

    load: Callable[[bool], Source]
    pixels: Pixels
    fixed: FixedPart
    move: Callable[[Tensor], Tensor]  # to the device that computes

    def __call__(self, verify: bool) -> Source:
        source = self.load(verify)
        text = f"{source.cache.name} {self.pixels.normalize} {self.fixed.key}"
        path = cache_folder() / f"features-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
        with file_lock(path):  # one process computes, others wait
            features = read_features(path, len(source.table.images))
            if features is None:
                features = self._compute(source.table.images)
                buffer = io.BytesIO()
                np.save(buffer, features)
                description = {
                    "network": self.fixed.key.partition(" ")[0],
                    "images": source.cache.stem,
                    "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
                }
                described = json.dumps(description | {"sum": json_checksum(description)})
                atomic.replace(path.with_suffix(".json"), described.encode())
                atomic.replace(path, buffer.getvalue())
        mark_used(path)
        table = source.table._replace(images=torch.from_numpy(features), release=lambda count: None)
        return source._replace(table=table)

    def _compute(self, images: Tensor) -> np.ndarray:
        parts = images.split(AT_ONCE)
        label = f"features of {len(images)} images by {self.fixed.key.partition(' ')[0]}"
        with torch.no_grad():
            found = [  # in float32 whatever the precision of the run
                self.fixed.apply(self.move(self.pixels.to_inputs(part)).float()).cpu().numpy()
                for part in track(parts, len(parts), label)
            ]
        return np.concatenate(found)


def read_features(path: Path, rows: int) -> np.ndarray | None:
    """The stored features, None if there are none for so many images."""
    try:
        features = read_npy(path)
    except ValueError:
        return None
    return features if features.dtype == np.float32 and features.ndim == 2 and len(features) == rows else None
