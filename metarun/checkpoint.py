"""Checkpoints: tensors and plain containers only, loadable without executing anything, replaced atomically."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.errors import UserError
from metarun.parallel import team
from metarun.record import RunFolder
from metarun.trainer import State
from metarun.types import Params

FORMAT = 1  # raise it when what is stored changes its meaning


def save(path: Path, state: State) -> None:
    """Write the state under a temporary name, force it to disk, rename it; the previous one stays as NAME.previous."""
    stored = {
        "format": FORMAT,
        "step": state.step,
        "params": state.params,
        "optimizer": state.optimizer.state_dict(),
        "best_error": state.best_error,
        "best_step": state.best_step,
        "seconds": state.seconds,
        "spent": state.spent,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(stored, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, previous(path))
    os.replace(temporary, path)


def restore(path: Path, state: State) -> None:
    """Put what `path` (or, where that is missing or damaged, its predecessor) holds into a freshly started state; of
    several processes the first one reads it."""
    stored = team().of_first(lambda: load(path))
    _copy(stored["params"], state.params, path)
    _restore_optimizer(stored["optimizer"], state.optimizer, path)
    state.step, state.seconds, state.spent = stored["step"], stored["seconds"], stored.get("spent", {})
    state.best_error, state.best_step = stored["best_error"], stored["best_step"]


def restore_params(path: Path, params: Params) -> None:
    """Only the meta-parameters."""
    _copy(team().of_first(lambda: load(path)["params"]), params, path)


def load(path: Path) -> dict[str, Any]:
    """The stored containers; `UserError` when neither file can be read."""
    reasons = []
    for candidate in (path, previous(path)):
        try:
            refuse_inflated(candidate)
            stored = torch.load(candidate, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            reasons.append(f"{candidate.name} is missing")
        except Exception as error:  # torch raises many kinds for a damaged file
            what = (str(error) or type(error).__name__).splitlines()[0][:80]
            reasons.append(f"{candidate.name} is damaged ({what})")
        else:
            if is_checkpoint(stored):
                return stored
            reasons.append(f"{candidate.name} has another format")
    raise UserError(f"{path.parent}: no checkpoint to read: {', '.join(reasons)}")


def refuse_inflated(path: Path) -> None:
    """torch stores tensors uncompressed: a file that is to become larger than it is was not made by it."""
    if path.is_symlink() or not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is a link, or no regular file")
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it holds more bytes than it has")
        if archive.testzip() is not None:  # torch itself does not look at the sums
            raise ValueError("a check sum is wrong")


def is_checkpoint(stored: Any) -> bool:
    """Whether these are the containers that `save` writes."""
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        return False
    params, spent = stored.get("params"), stored.get("spent", {})
    whole = isinstance(params, dict) and all(isinstance(w, Tensor) and isinstance(n, str) for n, w in params.items())
    counts = all(type(stored.get(key)) is int and stored[key] >= 0 for key in ("step", "best_step"))
    numbers = all(isinstance(stored.get(key), (int, float)) for key in ("seconds", "best_error"))
    clocks = isinstance(spent, dict) and all(isinstance(s, (int, float)) for s in spent.values())
    return whole and counts and numbers and clocks and isinstance(stored.get("optimizer"), dict)


def best_of(run: RunFolder) -> Path:
    """The best checkpoint of a run, or the last of one that was never validated."""
    return run.best if run.best.exists() else run.last


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _restore_optimizer(stored: dict[str, Any], optimizer: torch.optim.Optimizer, path: Path) -> None:
    """torch checks how many tensors there are, and finds out what else is wrong at the next step."""
    own = [set(group) for group in optimizer.param_groups]
    try:
        fits = [set(group) for group in stored["param_groups"]] == own
        optimizer.load_state_dict(stored)
        for tensor, kept in optimizer.state.items():
            fits &= all(v.shape in ((), tensor.shape) for v in kept.values() if isinstance(v, Tensor))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        fits = False
    if not fits:
        raise UserError(f"{path}: holds the state of another optimizer; resume with the settings of that run")


def _copy(source: Params, target: Params, path: Path) -> None:
    """In place, so that the optimizer keeps its tensors."""
    shapes = [{k: tuple(v.shape) for k, v in p.items()} for p in (source, target)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{path}: holds the weights of another model; resume with the settings of that run")
    for name, value in source.items():
        target[name].copy_(value)
