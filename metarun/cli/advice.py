"""What somebody meant who knows other programs: the words of metarun for flags, bare words and short names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from metarun.config import catalogue
from metarun.config.schema import JOBS, Config, get, to_dict
from metarun.errors import nearest

FORM = "a setting is KEY=VALUE, as train.steps=100"
USUAL = {"epochs": "train.steps", "learning_rate": "optim.lr", "batch_size": "train.tasks", "gpu": "device"}
"""Names that other programs have for settings."""

SEARCHED = ("train.", "optim.", "algo.", "data.", "model.", "test.", "device.")
OPEN = ("algo", "data", "model")
"""Groups whose settings are those of the chosen option."""

MOST = 3

FILES = (".yaml", ".yml")
FILE_NAMES = ("config", "conf", "cfg", "config_file")
"""Flags and settings by which other programs take a file of settings."""

DEVICES = {"gpu": "cuda", "cuda:0": "cuda"}
ZEROS = re.compile(r"([\w.]+)=([+-]?\d+)\.0*")
WHOLE = re.compile(r"([+~]{0,2}[\w./@-]+=)([+-]?\d+(?:\.\d*)?[eE][+]?\d+)")


def advise_flag(word: str, following: str | None) -> str | None:
    """The setting that a flag which is none stands for: `--algo maml`, `--lr=0.1`; None if there is none."""
    name, equals, value = word.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if name in (*FILE_NAMES, "c") and (value or following or "").endswith(FILES):
        return advise_file(word, value or following or "")
    given = value if equals else following if following and "=" not in following else "VALUE"
    known = default_settings()
    keys = [name] if name in known else find_keys(name, known)
    return f"{word}: settings have no dashes; write " + " or ".join(f"{key}={given}" for key in keys) if keys else None


def advise_word(word: str, following: Sequence[str]) -> str:
    """What to write in place of a word that is no setting: `maml`, `algo = maml`."""
    if word.endswith(FILES):
        return advise_file(word, word)
    if following[:1] == ["="]:
        value = following[1] if len(following) > 1 else "VALUE"
        return f"{word} = {value}: write it without spaces: {word}={value}"
    named = [f"{group}={word.lower()}" for group in catalogue.GROUPS if word.lower() in catalogue.list_options(group)]
    named += [f"job={word.lower()}"] if word.lower() in JOBS else []
    if named:
        return f"{word}: {FORM}; did you mean {' or '.join(named)}?"
    return f"{word}: is no setting; {FORM}; metarun --help lists them"


def advise_key(key: str, known: Mapping[str, Any]) -> str:
    """The end of a sentence on a key that does not exist, as `lr` or `train.lr`: where there is a setting of this name,
    or the nearest names. `known` are the settings beside it."""
    group, _, name = key.rpartition(".")
    close = nearest(name, known)
    if not group:
        keys = find_keys(name, known)
    elif close.startswith("did you mean"):
        return close
    else:
        own = [f"{group}.{setting}" for setting in known if f"_{setting}".endswith(f"_{name}")]
        keys = [*dict.fromkeys([*own, *find_keys(name, default_settings())])][:MOST]
    return f"did you mean {' or '.join(keys)}?" if keys else close


def advise_file(word: str, file: str) -> str:
    """How to use a file of settings."""
    name = Path(file).stem
    return f"{word}: settings of yours stand in FOLDER/experiment/{name}.yaml; write -cd FOLDER experiment={name}"


def advise_option(group: str, option: str) -> str | None:
    """What to write for an option that is none: `device=gpu`; None if nothing is known of it."""
    if group != "device":
        return None
    if re.fullmatch(r"(cuda|gpu):\d+", option) and option not in DEVICES:
        return (
            f"write device=cuda, and choose the GPU by CUDA_VISIBLE_DEVICES={option.partition(':')[2]} before metarun"
        )
    return f"write device={DEVICES[option]}" if option in DEVICES else None


def write_whole_numbers(argument: str) -> str:
    """`train.steps=1e4` as `train.steps=10000`: a whole number may be written with an exponent, and a setting that is
    one with decimals of 0."""
    if (zeros := ZEROS.fullmatch(argument)) and _is_whole(zeros[1]):
        return f"{zeros[1]}={zeros[2]}"
    match = WHOLE.fullmatch(argument)
    value = float(match[2]) if match else 0.5
    return f"{match[1]}{int(value)}" if match and value.is_integer() and abs(value) < 2**53 else argument


def _is_whole(key: str) -> bool:
    try:
        return type(get(Config(), key)) is int
    except AttributeError:
        return False


def find_keys(name: str, settings: Mapping[str, Any]) -> list[str]:
    """The first settings whose last part is `name`, then those that end in it, as inner_lr does in lr."""
    paths = [path for path in list_paths(settings) if path.startswith(SEARCHED)]
    same = [path for path in paths if path.rpartition(".")[2] == name]
    longer = [path for path in paths if path.endswith(f"_{name}")]
    usual = [USUAL[name]] if name in USUAL else []
    return [*dict.fromkeys([*usual, *same, *longer])][:MOST]


def default_settings() -> dict[str, Any]:
    """The settings of the schema, and those of the default options where it leaves them open."""
    defaults = yaml.safe_load((catalogue.conf_folder() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}
    own = {group: catalogue.read_component(group, chosen[group]) for group in OPEN}
    return dict.fromkeys(catalogue.GROUPS) | to_dict(Config()) | own


def list_paths(settings: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """The dotted paths of all settings."""
    for key, value in settings.items():
        yield f"{at}{key}"
        if isinstance(value, Mapping):
            yield from list_paths(value, f"{at}{key}.")
