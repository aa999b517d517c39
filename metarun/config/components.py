"""From settings to objects: construct what `_target_` names from the keys of its group, checked by its signature.

The class (or function) is the schema: its parameters are the valid keys, its annotations their types. A new
algorithm therefore needs no entry anywhere but its own YAML.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.schema import Config, to_plain
from metarun.errors import SettingError, UserError, nearest, one_line


def build(group: str, node: Mapping[str, Any], trusted: Sequence[str] = (), **provided: Any) -> Any:
    """Construct the component of a group, as `build("algo", config.algo, model=model, loss=loss)`.

    `provided` are objects that settings cannot name; the target receives those that it has a parameter for.
    Raises `SettingError` with the full key for an unknown, missing or wrongly typed setting.
    """
    return construct(group, locate(group, node, trusted), node, **provided)


def construct(group: str, target: Any, node: Mapping[str, Any], **provided: Any) -> Any:
    """Construct a component like `build`, from the class or function itself.

    A parameter without default whose annotation is a dataclass is a bundle: its fields are settings of the component.
    """
    settings = {k: v for k, v in node.items() if k != "_target_"}
    parameters, hints = inspect.signature(target).parameters, _annotations(target)
    accepted = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    any_key = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    required = {name for name, parameter in accepted.items() if parameter.default is parameter.empty}
    bundles = {n: hints[n] for n in accepted if n in required - {*provided} and dataclasses.is_dataclass(hints.get(n))}
    fields = {name: [f.name for f in dataclasses.fields(bundle)] for name, bundle in bundles.items()}
    alone = [name for name in accepted if name not in provided and name not in bundles]
    valid = [*alone, *(key for keys in fields.values() for key in keys)]
    for key in settings:
        if key not in valid and not any_key:
            hint, elsewhere = nearest(key, valid), _sections_with(key)
            if elsewhere and not hint.startswith("did you mean"):
                hint = f"did you mean {' or '.join(elsewhere)}?"
            raise UserError(f"{group}.{key}: no such setting, {hint}")
    for name, bundle in bundles.items():
        own = {key: settings.pop(key) for key in fields[name] if key in settings}
        provided[name] = construct(group, bundle, own)
    given = {k: v for k, v in provided.items() if k in accepted}
    converted = _convert(group, settings, hints)
    for name in accepted:
        if name in required - {*converted, *given}:
            raise UserError(f"{group}.{name}: is missing, and has no default")
    try:
        return target(**converted, **given)
    except SettingError as error:
        raise error.under(group) from error


OWN_COMPONENTS = {
    "algo": ("metarun.algorithms", "meta_grad"),
    "analysis": ("metarun.analyses", "measure"),
    "data": ("metarun.data", "episodes"),
    "model": ("metarun.models", "apply"),
    "loss": ("metarun.algorithms", "score"),
    "reg": ("metarun.regularizers", "__init__"),
}
"""The package of metarun's own components of a group, and a member that each of them has. Other functions of metarun
read and write files, import modules and start processes: the settings of an untrusted run must not name them."""


def locate(group: str, node: Mapping[str, Any], trusted: Sequence[str] = ()) -> Any:
    """The class or function that `_target_` names: a component of the group, or anything in a trusted package."""
    path = node.get("_target_")
    key = f"{group}._target_"
    inside = node.get(group)
    if path is None and isinstance(inside, Mapping) and "_target_" in inside:
        raise UserError(f"{group}.{group}: the YAML of this option must begin with the line `# @package _global_`")
    if isinstance(path, str) and path.startswith("metarun.") and _is_dotted(path):
        return _locate_own(key, group, path)
    return locate_trusted(key, path, ("metarun", *trusted))


def locate_trusted(key: str, path: Any, trusted: Sequence[str]) -> Any:
    """What the dotted path of a setting names, in a trusted package."""
    if not _is_dotted(path):
        raise SettingError(key, path, "must be the dotted path of a class or function")
    prefixes = [prefix for prefix in trusted if prefix]
    if not any(path.startswith(prefix + ".") for prefix in prefixes):
        outside = f"is outside of {', '.join(prefixes)}; " if prefixes else ""
        raise SettingError(key, path, f"{outside}add its package to trusted_modules")
    found = _import(key, path)
    home = str(getattr(found, "__module__", None))
    defined = isinstance(found, type) or inspect.isroutine(found)
    if defined and not any(f"{home}.".startswith(f"{prefix}.") for prefix in prefixes):
        # Else a run's settings could call whatever a trusted module imports, torch.load or os.system.
        raise SettingError(key, path, f"is defined in {home}; name it there, and add that to trusted_modules")
    return found


def _is_dotted(path: Any) -> bool:
    return isinstance(path, str) and "." in path and all(map(str.isidentifier, path.split(".")))


def _locate_own(key: str, group: str, path: str) -> Any:
    """A component of metarun's, of this group, in the module that defines it."""
    package, needed = OWN_COMPONENTS.get(group.partition(".")[0], ("", ""))
    if not package:
        raise SettingError(key, path, "must be of a package of yours, named in trusted_modules")
    if not path.startswith(package + "."):
        raise SettingError(key, path, f"is not in {package}, where the components of this group are")
    found = _import(key, path)
    made = component_class(found) if callable(found) else None
    defined = getattr(found, "__module__", None) == path.rpartition(".")[0]
    if not (defined and isinstance(made, type) and hasattr(made, needed)):
        raise SettingError(key, path, "is no component of this group")
    return found


def _import(key: str, path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingError(key, path, f"cannot be imported ({error})") from error
    except Exception as error:  # of the module's own code
        raise SettingError(key, path, f"cannot be imported ({type(error).__name__}: {one_line(error)})") from error


def _convert(group: str, settings: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to their annotated types with OmegaConf. Raise `SettingError` for a value of another type."""
    converted = {}
    for key, value in settings.items():
        hint = hints.get(key, Any)
        schema = dataclasses.make_dataclass("Schema", [(key, hint)])
        try:
            checked = OmegaConf.merge(OmegaConf.structured(schema), {key: to_plain(value)})
        except OmegaConfBaseException as error:
            raise SettingError(f"{group}.{key}", value, f"must be {describe_type(hint)}") from error
        plain = getattr(OmegaConf.to_object(checked), key)
        converted[key] = tuple(plain) if isinstance(plain, list) else plain
    return converted


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
PLURALS = {int: "whole numbers", float: "numbers", str: "words"}


def describe_type(hint: Any) -> str:
    """A setting's type in words: `tuple[str, ...] | None` is "a list of words, or null"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(describe_type(part) for part in inner)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (tuple, list, Sequence):
        count = f"{len(inner)} " if origin is tuple and Ellipsis not in inner else ""
        return f"a list of {count}{PLURALS.get(inner[0], 'values')}" if inner else "a list"
    if (origin or hint) in (dict, Mapping):
        return "a group of settings, as {key: value}"
    return WORDS.get(hint, f"of type {getattr(hint, '__name__', hint)}")


def component_class(target: Any) -> Any:
    """The class that a target constructs: a class itself, or the annotated return type of a function."""
    return target if isinstance(target, type) else _annotations(target).get("return")


def _sections_with(key: str) -> list[str]:
    """`train.pretrained` for `pretrained`: the settings of that name which belong to no component."""
    parts = {field.name: getattr(Config(), field.name) for field in dataclasses.fields(Config)}
    return [f"{name}.{key}" for name, part in parts.items() if dataclasses.is_dataclass(part) and hasattr(part, key)]


def _annotations(target: Any) -> dict[str, Any]:
    """The types of the parameters of a function, or of a class's constructor."""
    return typing.get_type_hints(vars(target).get("__init__", target) if isinstance(target, type) else target)
