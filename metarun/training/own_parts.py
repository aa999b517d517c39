"""Objects of the user's in place of what settings name, and the loss, metrics and callbacks that settings name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.losses import FunctionLoss, loss_for
from metarun.config.components import build, component_class, construct, locate
from metarun.config.data_sets import EPISODE_SIZE
from metarun.config.schema import Config
from metarun.data.own import require_members
from metarun.errors import UserError, one_line
from metarun.training.evaluation import MetricFunction
from metarun.training.run import CallbackOptions
from metarun.types import Dataset, EpisodeSpec, Kind, Loss, LossOptions, Model, PredictionKind, optional

MODEL = [name for name in vars(Model) if not name.startswith("_")]
"""The members that a network must have."""


@dataclass(frozen=True)
class OwnParts:
    """Python objects in place of what settings name: `metarun.run(config, folder, model=..., dataset=..., ...)`."""

    model: Any = None  # a torch.nn.Module, or a Model (types.py)
    dataset: Dataset | None = None
    loss: Any = None  # a Loss, or a function (prediction, y) -> scalar
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)  # name -> (prediction, y) of a task -> number
    callbacks: Sequence[Any] = ()  # of CallbackOptions (run.py)

    def __post_init__(self) -> None:
        """Raise `UserError` for an object that cannot be what it was passed as."""
        if self.model is not None and not isinstance(self.model, nn.Module):
            _require_model(self.model)
        if self.dataset is not None:
            require_members(self.dataset)
        if not isinstance(self.metrics, Mapping):
            raise UserError(f"metrics: must be {{name: function}}, not {type(self.metrics).__name__}")
        if isinstance(self.callbacks, str) or not isinstance(self.callbacks, Sequence):
            raise UserError(f"callbacks: must be a list of objects, not {type(self.callbacks).__name__}")
        for i, callback in enumerate(self.callbacks):
            _require_callback(f"callbacks[{i}]", callback)


def _require_model(model: Any) -> None:
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    if isinstance(model, type):
        raise UserError(f"model: {name} is a class; pass an object, {name}(...)")
    for member in MODEL:
        if not hasattr(model, member):
            raise UserError(f"model: {name} has no `{member}`; pass a torch.nn.Module, or a metarun.types.Model")


def _require_callback(key: str, callback: Any) -> None:
    names = [*CallbackOptions.__annotations__]
    if isinstance(callback, type):
        raise UserError(f"{key}: {callback.__name__} is a class; pass an object, {callback.__name__}(...)")
    if not any(hasattr(callback, name) for name in names):
        raise UserError(f"{key}: {type(callback).__name__} has none of {', '.join(names)}, so it would never be called")


NO_PARTS = OwnParts()


def record_objects(config: Config, own: OwnParts) -> Config:
    """The settings with the classes of these objects in place of what they replace; sizes of episodes stay."""
    changed: dict[str, Any] = {}
    if own.model is not None:
        norm = {"norm": config.model.get("norm")} if isinstance(own.model, nn.Module) else {}
        changed["model"] = {"_target_": None, "object": _class_path(own.model), **norm}
    if own.dataset is not None:
        sizes = {key: value for key, value in config.data.items() if key in EPISODE_SIZE}
        sizes |= {"ways": 1} if own.dataset.kind != "classification" else {}
        changed["data"] = {"_target_": None, "object": _class_path(own.dataset), **sizes}
    return replace(config, **changed, choices=config.choices | dict.fromkeys(changed, "own"))


def select_parts(own: OwnParts, config: Config) -> OwnParts:
    """The objects for these settings: not the model or the data set if the settings name another in its place."""
    model = own.model if "object" in config.model else None
    return replace(own, model=model, dataset=own.dataset if "object" in config.data else None)


def _class_path(component: Any) -> str:
    return f"{type(component).__module__}.{type(component).__qualname__}"


def refuse_missing_object(group: str, node: Mapping[str, Any]) -> None:
    """Raise `UserError` for settings that stand for a Python object, which only Python can pass."""
    if "object" in node and node.get("_target_") is None:
        keyword = {"data": "dataset"}.get(group, group)
        was = f", which was {node['object']}" if node["object"] else ""
        how = f"metarun.run(config, {keyword}=...), or metarun.load(folder, {keyword}=...)"
        raise UserError(f"{group}=own: needs a Python object{was}; pass it: {how}")


def build_loss(config: Config, kind: Kind, predicts: PredictionKind, own: OwnParts) -> Loss:
    """The loss of `loss=` in Python or of the settings, or the usual one for this kind of data."""
    loss: Any = own.loss
    if loss is None and config.loss:
        target = locate("loss", config.loss, config.trusted_modules)
        is_function = inspect.isfunction(target) and component_class(target) in (None, Tensor)
        loss = target if is_function else construct("loss", target, config.loss)
    if loss is None:
        return loss_for(kind, predicts)
    return FunctionLoss(loss) if optional(loss, LossOptions, "score") is None else loss


def build_metrics(config: Config) -> dict[str, MetricFunction]:
    """The functions that `metrics.NAME=PATH` names."""
    return {k: locate(f"metrics.{k}", {"_target_": path}, config.trusted_modules) for k, path in config.metrics.items()}


def build_callbacks(config: Config) -> list[Any]:
    """The objects of `callbacks=[{_target_: PATH, ...}]`."""
    nodes = [node if isinstance(node, Mapping) else {"_target_": node} for node in config.callbacks]
    callbacks = [build(f"callbacks[{i}]", node, config.trusted_modules) for i, node in enumerate(nodes)]
    for i, callback in enumerate(callbacks):
        _require_callback(f"callbacks[{i}]", callback)
    return callbacks


def try_functions(
    dataset: Dataset, spec: EpisodeSpec, loss: Loss, metrics: Mapping[str, MetricFunction], gaussian: bool
) -> None:
    """Call loss and metrics on predictions of 0 for a validation task. Raise `UserError` if one is not a number."""
    y = dataset.episodes("val", 0, 0, range(1), spec).query.y[0]
    outputs = dataset.outputs(spec.ways)
    prediction = torch.zeros(len(y), outputs)
    if gaussian:
        prediction = torch.cat([prediction, torch.ones(len(y), outputs)], -1)
    functions: dict[str, Any] = {"loss": loss, **metrics}
    for key, function in functions.items():
        try:
            found = function(prediction, y)
            float(found)
        except Exception as error:
            name = key if key == "loss" else f"metrics.{key}"
            where = f"predictions {list(prediction.shape)} and targets {list(y.shape)}"
            what = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{name}: must be one number for {where} of a task ({what})") from error
