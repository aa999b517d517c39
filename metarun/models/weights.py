"""Networks of torchvision and timm by name, with trained weights: from a file, or as their library has them.

    resnet18, vit_b_16, ...        a classification network of torchvision
    timm:vit_small_patch14_dinov2  one of timm (pip install timm)

Weights are a file (`torch.save(net.state_dict(), FILE)`, or safetensors), `DEFAULT` or another name of the library's
own, which it keeps in its cache or downloads, or `none`. Reading a file executes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metarun.compute.tensor_files import load_tensors
from metarun.data.torchvision import load_torchvision
from metarun.errors import SettingError, nearest, one_line, require

TIMM = "timm:"
NO_WEIGHTS = "none"
FILES = (".pt", ".pth", ".bin", ".safetensors")
INSIDE = ("state_dict", "model", "model_state_dict")  # usual places of a state dict in a checkpoint
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMED = 3


class Preprocessing(NamedTuple):
    """How a network's images are made: of so many pixels a side, (x - mean) / std of RGB values in [0, 1]."""

    size: int | None  # None: of any size
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Pretrained(NamedTuple):
    body: nn.Module  # [B, 3, H, W] -> features [B, D]
    preprocessing: Preprocessing
    sha256: str  # of its parameters and buffers


@functools.lru_cache(maxsize=1)
def load_body(name: str, weights: str) -> Pretrained:
    """The network without its last linear layer and without dropout; do not change it.

    Raises `SettingError` for an unknown name, weights that cannot be had, or weights of another network.
    """
    make = _make_of_timm if name.startswith(TIMM) else _make_of_torchvision
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)  # of weights=none
        body, preprocessing = make(name, weights)
    remove_chance(body)
    digest = hashlib.sha256()
    for key, value in sorted(body.state_dict().items()):
        digest.update(key.encode() + value.contiguous().cpu().numpy().tobytes())
    return Pretrained(body.eval(), preprocessing, digest.hexdigest())


def _make_of_torchvision(name: str, weights: str) -> tuple[nn.Module, Preprocessing]:
    models = load_torchvision().models
    known = models.list_models(module=models)
    require(name in known, "name", name, f"torchvision has no such network, {nearest(name, known)}; of timm: timm:NAME")
    body = models.get_model(name, weights=None)
    size, mean, std = getattr(body, "image_size", None), *IMAGENET
    if weights != NO_WEIGHTS and not _is_file(weights):
        own = models.get_model_weights(name)
        choices = list(dict.fromkeys(["DEFAULT", *own.__members__]))
        advice = f"is no file; {name} has {', '.join(choices)}, none"
        require(weights in choices, "weights", weights, advice)
        made = own[weights].transforms()
        size, mean, std = made.crop_size[0], tuple(made.mean), tuple(made.std)
        try:
            body.load_state_dict(own[weights].get_state_dict(progress=True, check_hash=True))
        except OSError as error:  # of a download
            raise _unavailable(weights, own[weights].url, error) from error
    _remove_last_linear(body, name)
    if _is_file(weights):
        _load(body, name, Path(weights))
    return body, Preprocessing(size, mean, std)


def _make_of_timm(name: str, weights: str) -> tuple[nn.Module, Preprocessing]:
    load_torchvision()  # timm imports it
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise SettingError("name", name, "timm is not installed; pip install timm") from error
    own = name.removeprefix(TIMM)
    known = timm.list_models()
    base = own.partition(".")[0]
    require(base in known, "name", name, f"timm has no such network, {nearest(TIMM + base, [TIMM + k for k in known])}")
    takes = weights in ("DEFAULT", NO_WEIGHTS) or _is_file(weights)
    choices = "is no file; a network of timm has DEFAULT, none; other weights are in its name, as timm:NAME.TAG"
    require(takes, "weights", weights, choices)
    try:
        body = timm.create_model(own, pretrained=weights == "DEFAULT", num_classes=0)
    except Exception as error:  # of a download, many kinds
        raise _unavailable(weights, name, error) from error
    if _is_file(weights):
        _load(body, name, Path(weights))
    made = timm.data.resolve_model_data_config(body)
    size = made["input_size"][-1] if weights == "DEFAULT" or made.get("fixed_input_size") else None
    return body, Preprocessing(size, tuple(made["mean"]), tuple(made["std"]))


def _unavailable(weights: str, address: str, error: Exception) -> SettingError:
    needed = f"cannot be downloaded from {address} ({one_line(error)[:200]}); a file of them works as well"
    return SettingError("weights", weights, needed)


def _is_file(weights: str) -> bool:
    return weights.endswith(FILES) or (len(weights) < 4096 and Path(weights).expanduser().is_file())


def _load(body: nn.Module, name: str, path: Path) -> None:
    """Load the file into the body, whose last linear layer is removed. Raise `SettingError` if it is of another."""
    found, own = read_state(path), body.state_dict()
    wrong = [k for k in own if k in found and found[k].shape != own[k].shape]
    if wrong:
        shapes = f"{list(found[wrong[0]].shape)} instead of {list(own[wrong[0]].shape)}"
        raise SettingError("weights", path, f"is of another network than {name}: {wrong[0]} is {shapes}")
    missing = [k for k in own if k not in found]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        has = ", ".join(list(found)[:NAMED])
        needed = f"lacks {', '.join(missing[:NAMED])}{more} of {name}; it has {has}, ..."
        raise SettingError("weights", path, needed)
    body.load_state_dict({k: found[k] for k in own})


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name, without what a training wraps around them. Raise `SettingError` if it has none."""
    path = path.expanduser()
    require(path.is_file(), "weights", path, "there is no such file")
    try:
        if path.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(path)
        stored = load_tensors(path)
    except ImportError as error:
        raise SettingError("weights", path, "safetensors is not installed; pip install 'metarun[export]'") from error
    except Exception as error:  # torch raises many kinds for a file of another format
        raise SettingError("weights", path, f"holds no tensors ({one_line(error)[:200]})") from error
    for key in INSIDE:
        stored = stored[key] if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping) else stored
    tensors = {k: v for k, v in stored.items() if isinstance(v, Tensor)} if isinstance(stored, Mapping) else {}
    require(bool(tensors), "weights", path, "holds no state dict; torch.save(net.state_dict(), FILE) writes one")
    prefix = "module." if all(k.startswith("module.") for k in tensors) else ""  # of nn.DataParallel
    return {k.removeprefix(prefix): v for k, v in tensors.items()}


def _remove_last_linear(body: nn.Module, name: str) -> None:
    linears = [k for k, part in body.named_modules() if isinstance(part, nn.Linear)]
    if not linears:
        raise SettingError("name", name, "does not end in a linear layer, so that its features are not known")
    parent, _, leaf = linears[-1].rpartition(".")
    body.get_submodule(parent)._modules[leaf] = nn.Identity()


def remove_chance(body: nn.Module) -> None:
    """Put the identity in place of dropout and stochastic depth: fixed features are those of the whole network."""
    for parent in list(body.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, nn.Dropout) or type(part).__name__ in ("StochasticDepth", "DropPath"):
                parent._modules[name] = nn.Identity()


def last_part(body: nn.Module) -> list[str]:
    """The names of the parameters from the start of the last part on that has at most half of all parameters."""
    total = sum(p.numel() for p in body.parameters())
    names = [k for k, _ in body.named_parameters()]
    part, prefix = body, ""
    while sum(p.numel() for p in part.parameters()) > total / 2:
        children = [(k, child) for k, child in part.named_children() if any(p.ndim > 1 for p in child.parameters())]
        if not children:
            break
        leaf, part = children[-1]
        prefix = f"{prefix}{leaf}."
    first = next(i for i, k in enumerate(names) if k.startswith(prefix))
    return names[first:]
