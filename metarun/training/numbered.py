"""Data for a learner that is trained on batches of all training classes, and not on tasks."""

from __future__ import annotations

from metarun.config.schema import Config
from metarun.errors import SettingError, UserError
from metarun.types import Algorithm, AlgorithmOptions, Dataset, DatasetOptions, optional


def number_classes(config: Config, made: type[Algorithm], dataset: Dataset, algo: str, data: str) -> Dataset:
    """The data with the numbers of the classes as training labels where the algorithm asks for these, else unchanged:
    a test has no training labels.

    Raise `UserError` for data whose classes have no numbers, and for probes, which adapt to training tasks.
    """
    asks = optional(made, AlgorithmOptions, "numbered_classes") and dataset.kind in made.kinds
    if not asks or config.job == "evaluate":
        return dataset
    numbered = optional(dataset, DatasetOptions, "numbered")
    if numbered is None:
        reason = "this algorithm trains a classifier of all training classes, which these data do not number"
        raise UserError(f"algo={algo} data={data}: {reason}; choose a data set of images, or algo=protonet")
    if config.diagnostics.level == "full":
        needed = f"algo={algo} is trained on batches of classes, not on tasks to probe; choices: off, basic"
        raise SettingError("diagnostics.level", config.diagnostics.level, needed)
    return numbered()[0]
