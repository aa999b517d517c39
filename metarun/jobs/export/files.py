"""The files of job=export beside the program: model.safetensors, and config.json with all that is needed to use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from metarun.data.pixels import NORMALIZE, Pixels
from metarun.errors import UserError
from metarun.training.experiment import Experiment
from metarun.types import AlgorithmOptions, DatasetOptions, Params, optional

FORMAT = 1  # raise it when what is stored changes its meaning

NORMS = {
    "batch": "by the statistics of the batch at hand: predictions depend on the queries that are given together",
    "support": "queries by the statistics of the support set",
    "population": "by the statistics of training images, stats.* of model.safetensors",
    "group": "by groups of channels of each example",
    "layer": "by all channels of each example",
    "none": "none",
}


def import_safetensors_save() -> Callable[[Params, dict[str, str]], bytes]:
    """The package's function; raise `UserError` where it is not installed."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("job=export: safetensors is not installed; pip install 'metarun[export]'") from error
    return save


def encode_weights(params: Params, facts: dict[str, Any]) -> bytes:
    """The content of a safetensors file: tensors by name, and facts as its metadata."""
    metadata = {"format": "pt", **{key: str(value) for key, value in facts.items()}}
    return import_safetensors_save()({name: w.detach().cpu().contiguous() for name, w in params.items()}, metadata)


def describe_usage(experiment: Experiment, tensors: Params, least_queries: int) -> dict[str, Any]:
    """The part of config.json on inputs, outputs, preprocessing, normalisation and tensors."""
    config, dataset, spec = experiment.config, experiment.dataset, experiment.test_spec
    shape, norm = list(dataset.input_shape()), config.model.get("norm")
    classes = dataset.kind == "classification"
    rows = spec.shots * (spec.ways if classes else 1)
    dtype = str(experiment.placement.dtype).removeprefix("torch.")
    outputs = dataset.outputs(spec.ways)
    gaussians = optional(experiment.algorithm, AlgorithmOptions, "predicts") == "gaussians"
    if gaussians:
        meaning = "predicted means, then standard deviations"
    elif dataset.kind == "regression":
        meaning = "predicted means"
    else:
        meaning = "probabilities; column n is the class whose support rows are labelled n, labels are 0 .. ways - 1"
    return {
        "format": FORMAT,
        "inputs": {
            "support_x": {"shape": [rows, *shape], "dtype": dtype},
            "support_y": {"shape": [rows] if classes else [rows, outputs], "dtype": "int64" if classes else dtype},
            "query_x": {"shape": [f"at least {least_queries}", *shape], "dtype": dtype},
        },
        "output": {
            "shape": ["rows of query_x", 2 * outputs if gaussians else outputs],
            "dtype": dtype,
            "is": meaning,
        },
        "support_order": "row k * ways + n is example k of class n" if classes else "any",
        "ways": spec.ways if classes else None,
        "shots": spec.shots,
        "adaptation_steps": experiment.tested.test_inner_steps,
        "preprocessing": describe_preprocessing(optional(dataset, DatasetOptions, "pixels")),
        "normalisation": {"norm": norm, "meaning": NORMS.get(str(norm))},
        "tensors": {name: list(w.shape) for name, w in tensors.items()},
        # All of them, without the folder that the run lay in.
        "settings": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run", "resume")},
    }


def describe_preprocessing(pixels: Pixels | None) -> dict[str, Any] | None:
    """How an image file becomes a row of support_x or query_x; None where inputs are no images."""
    if pixels is None:
        return None
    mean, deviation = NORMALIZE[pixels.normalize]
    colours = "grey" if pixels.channels == 1 else "RGB"
    steps = f"{colours}, {pixels.fit} to {pixels.size}x{pixels.size} ({pixels.resize})"
    steps += ", inverted so that dark strokes on white become 1 on 0" if pixels.ink else ""
    steps += ", bytes / 255, then (value - mean) / deviation per channel, channels first"
    return {"steps": steps, "mean": mean, "deviation": deviation, **dataclasses.asdict(pixels)}
