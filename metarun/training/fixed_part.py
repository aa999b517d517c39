"""Networks that begin with trained weights: their hash in the run's settings, and features computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from metarun.compute.device import Placement
from metarun.config.schema import Config
from metarun.errors import require
from metarun.training.evaluation import replace_model
from metarun.types import Algorithm, Dataset, DatasetOptions, Model, ModelOptions, optional

NOTED = "weights_sha256"
"""The setting of `model` for the hash."""


def note_weights(config: Config, model: Model, dataset: Dataset) -> Config:
    """The settings with the hash of the network's trained weights, so that later jobs refuse others. Raise
    `SettingError` for images in another scale than such a network takes."""
    found, pixels = optional(model, ModelOptions, "weights_sha256"), optional(dataset, DatasetOptions, "pixels")
    if found is not None and pixels is not None:
        needed = "must be none: the network standardises its images itself"
        require(pixels.normalize == "none", "data.normalize", pixels.normalize, needed)
    return config if found is None else replace(config, model=type(config.model)({**config.model, NOTED: found}))


def embed_images(
    dataset: Dataset, learners: Sequence[Algorithm], placement: Placement
) -> tuple[Dataset, Sequence[Algorithm]]:
    """The data with the features of the network's fixed part in place of images, and the learners of features. Where
    the network has no such part, or the data have no embedding, they stay as they are."""
    fixed, embed = optional(learners[0].model, ModelOptions, "fixed_part"), optional(dataset, DatasetOptions, "embed")
    if fixed is None or embed is None:
        return dataset, learners
    from metarun.data.features import FeatureSource  # with what reads images

    embedded = embed(partial(FeatureSource, fixed=fixed, move=placement.move))
    if embedded is dataset:
        return dataset, learners
    return embedded, [
        replace_model(learner, optional(learner.model, ModelOptions, "fixed_part").rest) for learner in learners
    ]
