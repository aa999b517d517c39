"""The files of job=export beside the program: model.safetensors, and config.json with all that is needed to use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metarun.config.schema import Config
from metarun.data.pixels import NORMALIZE, Pixels
from metarun.errors import UserError
from metarun.training.experiment import Experiment
from metarun.types import Kind, Params

FORMAT = 1  # raise it when what is stored changes its meaning

NORMS = {
    "batch": "by the statistics of the batch at hand: predictions depend on the queries that are given together",
    "support": "queries by the statistics of the support set",
    "population": "by the statistics of training images, stats.* of model.safetensors",
    "group": "by groups of channels of each example",
    "layer": "by all channels of each example",
    "none": "none",
}


def safetensors_save() -> Callable[[Params, dict[str, str]], bytes]:
    """The package's function; `UserError` where it is not installed."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("job=export: safetensors is not installed; pip install 'metarun[export]'") from error
    return save


def weights_bytes(params: Params, facts: dict[str, Any]) -> bytes:
    """The content of a safetensors file: tensors by name, and facts as its metadata."""
    metadata = {"format": "pt", **{key: str(value) for key, value in facts.items()}}
    return safetensors_save()({name: w.detach().cpu().contiguous() for name, w in params.items()}, metadata)


def write_bytes(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def usage(experiment: Experiment, tensors: Params, least_queries: int) -> dict[str, Any]:
    """What config.json says of inputs, outputs, preprocessing, normalisation and tensors."""
    config, dataset, spec = experiment.config, experiment.dataset, experiment.test_spec
    shape, norm = list(dataset.input_shape()), config.model.get("norm")
    rows = spec.shots * (spec.ways if dataset.kind == "classification" else 1)
    classes = dataset.kind == "classification"
    dtype = str(experiment.placement.dtype).removeprefix("torch.")
    outputs, gaussians = dataset.outputs(spec.ways), getattr(experiment.algorithm, "predicts", "values") == "gaussians"
    targets = {"shape": [rows], "dtype": "int64"} if classes else {"shape": [rows, outputs], "dtype": dtype}
    return {
        "format": FORMAT,
        "inputs": {
            "support_x": {"shape": [rows, *shape], "dtype": dtype},
            "support_y": targets,
            "query_x": {"shape": [f"at least {least_queries}", *shape], "dtype": dtype},
        },
        "output": {
            "shape": ["rows of query_x", 2 * outputs if gaussians else outputs],
            "dtype": dtype,
            "is": "predicted means, then standard deviations" if gaussians else meaning(dataset.kind),
        },
        "support_order": "row k * ways + n is example k of class n" if classes else "any",
        "ways": spec.ways if classes else None,
        "shots": spec.shots,
        "adaptation_steps": experiment.tested.test_inner_steps,
        "preprocessing": preprocessing(getattr(dataset, "pixels", None)),
        "normalisation": {"norm": norm, "meaning": NORMS.get(str(norm))},
        "tensors": {name: list(w.shape) for name, w in tensors.items()},
        "settings": settings(config),
    }


def meaning(kind: Kind) -> str:
    if kind == "regression":
        return "predicted means"
    return "probabilities; column n is the class whose support rows are labelled n, labels are 0 .. ways - 1"


def preprocessing(pixels: Pixels | None) -> dict[str, Any] | None:
    """How an image file becomes a row of support_x or query_x; None where inputs are no images."""
    if pixels is None:
        return None
    mean, deviation = NORMALIZE[pixels.normalize]
    steps = (
        f"{'grey' if pixels.channels == 1 else 'RGB'}, {pixels.fit} to {pixels.size}x{pixels.size} ({pixels.resize})"
    )
    steps += ", inverted so that dark strokes on white become 1 on 0" if pixels.ink else ""
    steps += ", bytes / 255, then (value - mean) / deviation per channel, channels first"
    return {"steps": steps, "mean": mean, "deviation": deviation, **dataclasses.asdict(pixels)}


def settings(config: Config) -> dict[str, Any]:
    """All settings, resolved, without the folder that the run lay in."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ("run", "resume")}


def double(params: Params) -> Params:
    return {name: w.double() if w.dtype == torch.float32 else w for name, w in params.items()}
