"""Checkpoints: tensors and plain containers only, loadable without executing anything, replaced atomically."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.compute.distributed import connect_processes
from metarun.compute.tensor_files import load_tensors
from metarun.errors import UserError, one_line
from metarun.storage import atomic
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder, previous_checkpoint
from metarun.storage.untrusted import read_again_if_stale
from metarun.training.average import Average, average_of
from metarun.training.nonfinite import make_rewind_point
from metarun.training.run import State
from metarun.types import HEAD, LEARNED, NOT_WEIGHTS, REG, Params

FORMAT = 2  # to be raised when stored values change their meaning; 1 had no checksum
READABLE = (1, 2)


def save(path: Path, state: State) -> None:
    """Write the state, whole or not at all; the one before stays as NAME.previous."""
    stored = _describe(state) | {"optimizer": state.optimizer.state_dict()}
    if state.carry:
        stored["carry"] = state.carry
    if state.rewinding:
        kept = state.rewinding.average
        point = vars(state.rewinding) | {"average": kept and vars(kept)}
        stored["rewinding"] = {k: v for k, v in point.items() if k not in ("carry", "average") or v}
    _write(path, stored)


def save_weights(path: Path, state: State) -> None:
    """Write a checkpoint of a third of the size, to test but not to resume from."""
    _write(path, _describe(state))


def _describe(state: State) -> dict[str, Any]:
    """What every checkpoint has."""
    stored = {
        "format": FORMAT,
        "metarun": _own_version(),
        "step": state.step,
        "params": state.params,
        "optimizer": {},
        "best_error": state.best_error,
        "best_step": state.best_step,
        "seconds": state.seconds,
        "spent": state.spent,
    }
    return stored | ({"average": vars(state.average)} if state.average else {})


def _own_version() -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version("metarun")
    return "of a checkout"


def save_without_optimizer(path: Path, source: Path) -> None:
    """Write a checkpoint of a third of the size, to test but not to resume from."""
    _write(path, load(source) | {"optimizer": {}})


def _write(path: Path, stored: dict[str, Any]) -> None:
    # By way of memory: on a full disk torch's own writer ends in an error that names neither file nor cause.
    buffer = io.BytesIO()
    torch.save(_copy_views(stored) | {"sha256": digest(stored)}, buffer)
    with atomic.name_file_in_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
    atomic.replace(path, buffer.getvalue(), previous_checkpoint(path))


def _copy_views(value: Any) -> Any:
    """The same containers with copies of tensors that are parts of larger ones, whose whole memory torch would save."""
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, dict):
        return {k: _copy_views(v) for k, v in value.items()}
    return type(value)(map(_copy_views, value)) if isinstance(value, (list, tuple)) else value


def restore(path: Path, state: State) -> None:
    """Load `path` (or, if it is missing or damaged, its predecessor) into a freshly started state. Of several ranks the
    first one reads it."""
    stored = connect_processes().on_first(lambda: load(path))
    if "rewinding" in stored:  # by way of the state itself, where it is checked
        kept = stored["rewinding"]
        _restore_tensors(kept, state, path)
        _restore_carry(kept, state, path)
        _restore_average(kept, state)
        state.rewinding = replace(
            make_rewind_point(state, kept["step"]), in_a_row=kept["in_a_row"], total=kept["total"]
        )
    _restore_tensors(stored, state, path)
    _restore_carry(stored, state, path)
    _restore_average(stored, state)
    _restore_counts(stored, state)


def restore_tested(path: Path, state: State) -> None:
    """Load all but the optimizer's state, which a test does not need."""
    stored = connect_processes().on_first(lambda: load(path))
    _copy_weights(stored["params"], state.params, path)
    state.average = _read_average(stored, state.params)
    _restore_counts(stored, state)


def restore_best(path: Path, state: State) -> None:
    """Load what a run tests at its end: the best meta-parameters, their average and their step."""
    stored = connect_processes().on_first(lambda: load(path))
    _copy(stored["params"], state.params, path)
    state.average = _read_average(stored, state.params)
    state.best_step = stored["step"]


def _restore_counts(stored: dict[str, Any], state: State) -> None:
    state.step, state.seconds, state.spent = stored["step"], stored["seconds"], stored.get("spent", {})
    state.best_error, state.best_step = stored["best_error"], stored["best_step"]


def _restore_tensors(stored: dict[str, Any], state: State, path: Path) -> None:
    _copy(stored["params"], state.params, path)
    _restore_optimizer(stored["optimizer"], state.optimizer, path)


def _restore_carry(stored: dict[str, Any], state: State, path: Path) -> None:
    """Load a StatefulLearner's state. Copies: a step replaces these tensors, and the rewind point keeps its own."""
    kept = stored.get("carry", {})
    shapes = [{k: (tuple(v.shape), v.dtype) for k, v in carry.items()} for carry in (kept, state.carry)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{path}: holds the state of another learner; resume with the settings of that run")
    state.carry = {name: value.to(state.carry[name]) for name, value in kept.items()}


def _restore_average(stored: dict[str, Any], state: State) -> None:
    """Load the average into a state that has one; it begins here where the checkpoint has none."""
    if state.average:
        state.average = _read_average(stored, state.params) or Average()


def _read_average(stored: dict[str, Any], params: Params) -> Average | None:
    """The average of a checkpoint, where these meta-parameters are."""
    kept = stored.get("average")
    return kept and Average(
        {name: value.to(params[name]) for name, value in kept["params"].items() if name in params}, kept["updates"]
    )


def restore_params(path: Path, params: Params) -> None:
    """Load the meta-parameters to test alone: the average where the checkpoint has one."""
    _copy_weights(read_weights(path), params, path)


def read_weights(path: Path) -> Params:
    """The meta-parameters that a run tests: the average where the checkpoint has one."""

    def read() -> Params:
        stored = load(path)
        return average_of(stored["params"], _read_average(stored, stored["params"]))

    return connect_processes().on_first(read)


def load(path: Path) -> dict[str, Any]:
    """Return the stored containers, the predecessor's if `path` is missing or damaged. Raise `UserError` if neither can
    be read."""
    reasons: list[str] = []
    for candidate in (path, previous_checkpoint(path)):
        try:
            stored = _read(candidate)
        except Damaged as error:
            reasons.append(f"{candidate.name} {error}")
        else:
            if reasons:
                print_notice(f"{path.parent}: {reasons[0]}; {candidate.name} of step {stored['step']} is used instead")
            return stored
    raise UserError(f"{path.parent}: no checkpoint to read: {', '.join(reasons)}")


class Damaged(Exception):
    """The reason why a file is no checkpoint."""


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        stored = read_again_if_stale(load_tensors, path)
    except FileNotFoundError:
        raise Damaged("is missing") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        what = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise Damaged(f"is damaged ({what})") from error
    number = stored.pop("format", None) if isinstance(stored, dict) else None
    if isinstance(number, int) and number > FORMAT:
        writer = stored.get("metarun")
        needed = f"metarun {one_line(writer)[:40]} wrote it: that version or a later one reads it"
        reads = f"this metarun ({_own_version()}) reads up to {FORMAT}"
        raise UserError(f"{path}: has format {number}; {reads}; {needed if writer else 'install a later one'}")
    if number not in READABLE or not is_checkpoint(stored):
        raise Damaged("is no checkpoint of metarun")
    if number > 1 and stored.pop("sha256", None) != digest({"format": number} | stored):
        raise Damaged("is damaged (its content does not have its checksum)")
    return {"format": number} | stored


def digest(stored: Any) -> str:
    """SHA-256 of containers, numbers and tensors."""
    sha = hashlib.sha256()
    for part in _parts(stored):
        sha.update(part)
    return sha.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield repr(key).encode()
            yield from _parts(inner)
    elif isinstance(value, (list, tuple)):
        yield f"[{len(value)}]".encode()
        for inner in value:
            yield from _parts(inner)
    else:
        yield repr(value).encode()


def exists(path: Path) -> bool:
    """Whether there is a checkpoint; after a kill there may be only the predecessor."""
    return path.exists() or previous_checkpoint(path).exists()


def is_checkpoint(stored: Any) -> bool:
    """Whether these are the containers that `save` writes."""
    if not isinstance(stored, dict):
        return False
    spent = stored.get("spent", {})
    whole = _has_parts(stored, "step", "best_step")
    point = "rewinding" not in stored or _has_parts(stored["rewinding"], "step", "in_a_row", "total")
    numbers = all(isinstance(stored.get(key), (int, float)) for key in ("seconds", "best_error"))
    clocks = isinstance(spent, dict) and all(isinstance(s, (int, float)) for s in spent.values())
    return whole and point and numbers and clocks


def _has_parts(stored: Any, *counts: str) -> bool:
    """Whether it has meta-parameters, an optimizer's state, valid learner state if any, and these counts."""
    if not isinstance(stored, dict) or not isinstance(stored.get("optimizer"), dict):
        return False
    params, carry = stored.get("params"), stored.get("carry", {})
    if not (isinstance(carry, dict) and all(isinstance(v, Tensor) for v in carry.values())):
        return False
    whole = isinstance(params, dict) and all(isinstance(w, Tensor) and isinstance(n, str) for n, w in params.items())
    counted = all(type(stored.get(key)) is int and stored[key] >= 0 for key in counts)
    return whole and counted and ("average" not in stored or _is_average(stored["average"], params))


def _is_average(stored: Any, params: Any) -> bool:
    """Whether it is an average of these meta-parameters, or of some of them."""
    if not isinstance(stored, dict) or type(stored.get("updates")) is not int or stored["updates"] < 0:
        return False
    kept = stored.get("params")
    return isinstance(kept, dict) and all(
        isinstance(v, Tensor) and name in params and v.shape == params[name].shape for name, v in kept.items()
    )


def best_of(run: RunFolder) -> Path:
    """The best checkpoint of a run, or the last one if it was never validated."""
    return run.best if exists(run.best) else run.last


def _restore_optimizer(stored: dict[str, Any], optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load the optimizer's state. torch checks the number of tensors alone; shapes are checked here."""
    if not stored:
        raise UserError(f"{path}: was kept without the optimizer's state; it can be tested, not trained on")
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


def describe_mismatch(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> str:
    """The first tensor that differs, both shapes, and the settings that decide it."""
    name = next(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))
    there, here = (list(shapes[name]) if name in shapes else "absent" for shapes in (theirs, ours))
    if name.startswith(HEAD) and "absent" in (there, here):
        cause = "of two algorithms, whose networks end in a head and in their features"
    elif name.startswith(HEAD):
        cause = "the head has an output for each class or target: data.ways, or algo.train_ways where it is set"
    elif name.startswith(REG):
        cause = "of a penalty: reg"
    elif name.startswith(NOT_WEIGHTS):
        cause = "of the algorithm: algo"
    else:
        cause = "of the network: model, or the size of the data set's inputs"
    return f"{name} is {there} there and {here} here ({cause})"


def _copy_weights(source: Params, target: Params, path: Path) -> None:
    """The same for an algorithm that may be another than the run's: what the run's learned for itself and this one
    lacks is left out, what this one learns and the run lacks keeps its first value."""
    kept = {name: value for name, value in target.items() if name.startswith(LEARNED)}
    _copy(kept | {k: v for k, v in source.items() if k in target or not k.startswith(LEARNED)}, target, path)


def _copy(source: Params, target: Params, path: Path) -> None:
    """In place, so that the optimizer keeps its tensors."""
    theirs, ours = ({k: tuple(v.shape) for k, v in p.items()} for p in (source, target))
    if theirs != ours:
        raise UserError(f"{path}: does not fit these settings: {describe_mismatch(theirs, ours)}")
    for name, value in source.items():
        target[name].copy_(value)
