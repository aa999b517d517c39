"""A training that starts from the weights of another run: `train.pretrained=RUN`."""

from __future__ import annotations

from pathlib import Path

from metarun.errors import SettingError
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import count_nouns
from metarun.training import checkpoint
from metarun.types import NOT_WEIGHTS, Params

KEY = "train.pretrained"
NAMED = 3


def start_from(run: str, params: Params) -> Params:
    """The parameters with the weights of the run's best checkpoint in place of those of the same name and shape.

    A notice names the others, as a head for another number of classes. Learned rates and the like stay as they are.
    Raises `SettingError` for a folder without a checkpoint, or with none of these weights.
    """
    source = RunFolder(Path(run).expanduser())
    if not source.has_checkpoint():
        raise SettingError(KEY, run, "is no folder of a run with a checkpoint, as outputs/DATE/TIME-protonet-omniglot")
    stored = checkpoint.read_weights(checkpoint.best_of(source))
    own = [name for name in params if not name.startswith(NOT_WEIGHTS)]
    same = [name for name in own if name in stored and stored[name].shape == params[name].shape]
    if not same:
        needed = f"has none of this network's weights: it has {', '.join(list(stored)[:NAMED])}, ..., "
        raise SettingError(KEY, run, needed + f"and the network {', '.join(own[:NAMED])}, ...")
    print_notice(
        f"{KEY}={run}: {count_nouns(len(same), 'tensor')} of {len(own)}{_describe_others(own, stored, params)}"
    )
    return params | {name: stored[name].to(params[name]) for name in same}


def _describe_others(own: list[str], stored: Params, params: Params) -> str:
    others = []
    for name in own:
        if name not in stored:
            others.append(f"{name} (is not there)")
        elif stored[name].shape != params[name].shape:
            others.append(f"{name} ({list(stored[name].shape)} there, {list(params[name].shape)} here)")
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f"; new are {', '.join(others[:NAMED])}{more}" if others else ""
