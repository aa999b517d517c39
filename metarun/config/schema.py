"""The settings that do not belong to one component: typed, so that an unknown key or a wrong type is refused.

`algo`, `data`, `model` and `reg` are dictionaries here: each names its class in `_target_`, and the class itself is
their schema (build.py).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Optional

from metarun.config.schema_jobs import ExportConfig, PredictConfig, ProfileConfig, PublishedConfig, SweepConfig
from metarun.errors import SettingError

JOBS = ("train", "evaluate", "analyze", "predict", "data", "export", "profile")
SCHEDULES = ("constant", "linear", "cosine", "halving")
OPTIMIZERS = ("adam", "adamw", "sgd")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16", "float64")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
COMPILE = {"auto": "auto", "on": True, "true": True, "off": False, "false": False}
MOST_THREADS = 1024
POLICIES = ("stop", "skip", "rewind")
LEVELS = ("off", "basic", "full")  # of diagnostics
LOGGERS = ("none", "wandb", "tensorboard", "mlflow")


@dataclass
class TrainConfig:
    """The outer loop."""

    steps: int = 1000
    tasks: int = 4  # per outer step
    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 100
    max_minutes: Optional[float] = None  # of training; then the run stops cleanly and tests
    on_nonfinite: str = "stop"  # skip: leave out the step; rewind: go back to the last multiple of checkpoint_every
    pool: Optional[int] = None  # train on so many fixed tasks only; null: new tasks at every step
    pool_seed: int = 0
    pool_replaced: Optional[int] = None  # exchange this task of the pool for another


@dataclass
class ValConfig:
    """Validation, on the same tasks every time."""

    tasks: int = 100


@dataclass
class TestConfig:
    """The final test, on fixed tasks."""

    tasks: int = 600
    steps: int = 10  # adaptation steps reported


@dataclass
class OptimConfig:
    """The outer optimizer."""

    name: str = "adam"
    lr: float = 1e-3
    schedule: str = "constant"
    final_lr: float = 0.0  # at the last step, for schedule=linear and cosine
    halve_every: int = 2000  # steps, for schedule=halving
    weight_decay: float = 0.0
    momentum: float = 0.0  # sgd
    eps: float = 1e-8  # adam, adamw
    clip: Optional[float] = None  # largest norm of the meta-gradient


@dataclass
class DeviceConfig:
    name: str = "auto"
    precision: str = "float32"  # bfloat16: that of convolutions and matrix products alone
    tf32: bool = False  # on CUDA: float32 products of 10 significant bits
    memory_format: str = "auto"  # of images of tasks taken one at a time: auto, contiguous, channels_last
    compile: Any = "auto"  # auto, on, off
    chunk_size: Any = "auto"  # tasks that vmap handles at once: auto, a number, null for all
    memory_mb: Optional[float] = None  # 2^20 bytes that chunk_size=auto keeps to; null: half of the machine's or GPU's
    threads: Optional[int] = None
    deterministic: bool = False


@dataclass
class LoggerConfig:
    name: str = "none"  # beside metrics.jsonl, which is always written
    project: str = "metarun"


@dataclass
class AlarmConfig:
    """The thresholds of the alarms; docs/diagnostics.md has each rule."""

    window: int = 20  # training records that a spike is judged against
    patience: int = 5  # records or validations in a row before a slow alarm is raised
    diverged: float = 3.0  # times the first loss, or the loss of chance where that is higher
    spike: float = 8.0  # deviations (median absolute, of the logarithms in the window) above their median
    lost: float = 0.5  # of what training tasks had gained on chance
    chance: float = 0.01  # of the error of chance, by which a validation has to be better
    no_gain: float = 0.01  # of the query loss before adaptation
    overfit: float = 0.1  # of the lowest query loss along the inner loop
    memorised: float = 0.1  # of the loss of chance: a training loss below it means solved tasks
    unsolved: float = 0.3  # of the error of chance: a validation error above it means that new tasks are not
    rises: float = 0.5  # share of the inner steps after which the support loss is higher
    cg_residual: float = 1.0  # of the right-hand side


@dataclass
class DiagnosticsConfig:
    level: str = "basic"  # off, basic, full
    tasks: int = 8  # of a logged step, whose inner loop is followed
    every: int = 1000  # outer steps between probes; level=full
    probe_tasks: int = 16
    lanczos_steps: int = 20
    unroll_steps: int = 100  # inner steps that an implicit meta-gradient is held against
    radius: float = 0.05  # of the ball for sharpness and smoothness
    alarms: AlarmConfig = field(default_factory=AlarmConfig)


@dataclass
class Config:
    job: str = "train"
    seed: int = 0
    run: Optional[str] = None  # a finished or stopped run's folder, for job=evaluate, predict, analyze and export
    resume: Optional[str] = None  # a stopped run's folder
    resume_allow: list[str] = field(default_factory=list)  # settings that resume may change beyond the harmless ones
    report: bool = True  # leave a report.html in the run folder
    trusted_modules: list[str] = field(default_factory=list)  # packages of yours that _target_ may name
    choices: dict[str, str] = field(default_factory=dict)  # the option taken of each group; filled in by compose
    algo: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    reg: dict[str, Any] = field(default_factory=dict)
    analysis: dict[str, Any] = field(default_factory=dict)  # of job=analyze
    train: TrainConfig = field(default_factory=TrainConfig)
    val: ValConfig = field(default_factory=ValConfig)
    test: TestConfig = field(default_factory=TestConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)


def refuse_values_for_groups(config: Any, at: str = "") -> None:
    """An interpolation may put a value where a group of settings belongs; the schema's types do not see it."""
    own = type(config)()
    for entry in dataclasses.fields(config):
        value, kind = getattr(config, entry.name), type(getattr(own, entry.name))
        if (kind is dict or dataclasses.is_dataclass(kind)) and not isinstance(value, kind):
            raise SettingError(at + entry.name, value, "is a group of settings, not one setting")
        if dataclasses.is_dataclass(kind):
            refuse_values_for_groups(value, f"{at}{entry.name}.")


def check(config: Config) -> None:
    """Refuse values out of range, with the key as it is typed."""
    for key, choices in {
        "job": JOBS,
        "train.on_nonfinite": POLICIES,
        "optim.name": OPTIMIZERS,
        "optim.schedule": SCHEDULES,
        "device.name": DEVICES,
        "device.precision": PRECISIONS,
        "device.memory_format": MEMORY_FORMATS,
        "logger.name": LOGGERS,
        "diagnostics.level": LEVELS,
    }.items():
        _one_of(config, key, choices)
    for key in ("train.steps", "train.tasks", "train.log_every", "train.eval_every", "train.checkpoint_every"):
        _at_least(config, key, 1)
    for key in ("train.pool", "val.tasks", "test.tasks", "optim.halve_every", "device.threads", "sweep.jobs"):
        _at_least(config, key, 1)
    for key in ("export.tasks", "export.calls", "profile.steps", "profile.warmup"):
        _at_least(config, key, 1)
    for key in ("seed", "train.pool_seed", "train.pool_replaced", "test.steps", "optim.weight_decay", "optim.momentum"):
        _at_least(config, key, 0)
    _at_least(config, "export.threshold", 0)
    for key in ("optim.lr", "optim.eps", "optim.clip", "train.max_minutes", "diagnostics.radius", "device.memory_mb"):
        _positive(config, key)
    for key in ("tasks", "every", "probe_tasks", "lanczos_steps", "unroll_steps", "alarms.window", "alarms.patience"):
        _at_least(config, f"diagnostics.{key}", 1)
    for key in ("diverged", "spike", "lost", "chance", "no_gain", "overfit", "memorised", "unsolved", "rises"):
        _positive(config, f"diagnostics.alarms.{key}")
    _positive(config, "diagnostics.alarms.cg_residual")
    if config.optim.momentum >= 1:
        raise SettingError("optim.momentum", config.optim.momentum, "must be below 1")
    _check_device_choices(config.device)
    _check_published(config.published)


def _check_published(published: PublishedConfig) -> None:
    if len(published.values) != len(published.steps):
        raise SettingError("published.values", published.values, f"must be one for each of steps={published.steps}")
    if published.value is not None and published.values:
        raise SettingError("published.values", published.values, "goes without published.value: one figure or several")
    if (published.value is not None or published.values) and not published.source:
        raise SettingError("published.source", published.source, "must say where the figure is printed")


def get(config: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _one_of(config: Config, key: str, choices: tuple[str, ...]) -> None:
    if get(config, key) not in choices:
        raise SettingError(key, get(config, key), "choices: " + ", ".join(choices))


def _at_least(config: Config, key: str, low: int) -> None:
    value = get(config, key)
    if value is not None and not low <= value < 2**63:
        raise SettingError(key, value, f"must be at least {low}")


def _positive(config: Config, key: str) -> None:
    value = get(config, key)
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise SettingError(key, value, "must be above 0 and finite")


def _check_device_choices(device: DeviceConfig) -> None:
    size = device.chunk_size
    if not (size in ("auto", None) or (isinstance(size, int) and not isinstance(size, bool) and size >= 1)):
        raise SettingError("device.chunk_size", size, "choices: auto, null (all tasks at once), a number of at least 1")
    if device.threads is not None and device.threads > MOST_THREADS:
        raise SettingError("device.threads", device.threads, f"must be at most {MOST_THREADS}")
    compile_choice(device)


def compile_choice(device: DeviceConfig) -> Any:
    """auto, True or False; Hydra reads on and off as booleans in a file, but as words on the command line."""
    choice = COMPILE.get(str(device.compile).lower())
    if choice is None:
        raise SettingError("device.compile", device.compile, "choices: auto, on, off")
    return choice
