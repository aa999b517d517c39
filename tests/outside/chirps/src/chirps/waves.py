"""Waves of N frequencies: a class is a frequency, drawn anew for each task; phases differ."""

import numpy as np
import torch

from metarun.types import Batch, Task

SPLITS = ("train", "val", "test")


class Waves:
    kind = "classification"

    def __init__(self, length: int = 12, noise: float = 0.1):
        self.length, self.noise = length, noise

    def episodes(self, split, seed, step, tasks, spec):
        drawn = [self.draw(np.random.default_rng([SPLITS.index(split), seed, step, i]), spec) for i in tasks]
        support, query = (Batch(*map(torch.stack, zip(*part, strict=True))) for part in zip(*drawn, strict=True))
        return Task(support, query)

    def draw(self, rng, spec):
        frequency = rng.uniform(0.2, 2.5, spec.ways)

        def rows(per_class):
            labels = np.tile(np.arange(spec.ways), per_class)
            phase = rng.uniform(0, 2 * np.pi, len(labels))
            x = np.sin(frequency[labels, None] * np.arange(self.length) + phase[:, None])
            x += self.noise * rng.standard_normal(x.shape)
            return Batch(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels))

        return rows(spec.shots), rows(spec.queries)
