"""The settings that belong to no component: typed, so that an unknown key or a wrong type raises an error.

`algo`, `data`, `model` and `reg` are dictionaries here: each names its class in `_target_`, and the class itself is
their schema (components.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

from metarun.errors import SettingError, UserError, nearest

JOBS = ("train", "evaluate", "analyze", "predict", "data", "export", "profile")
JOBS_OF_A_RUN = ("evaluate", "predict", "analyze", "export", "profile")  # which take their settings from `run=`
COMMAND_SETTINGS = ("resume", "resume_allow", "run", "job", "choices")  # of the command line, not of a run
SCHEDULES = ("constant", "linear", "cosine", "halving")
COMPILE = {"auto": "auto", "on": True, "true": True, "off": False, "false": False}
MOST_THREADS = 1024
LEVELS = ("off", "basic", "full")  # of diagnostics

CHOICES: dict[str, tuple[str, ...]] = {
    "job": JOBS,
    "train.on_nonfinite": ("stop", "skip", "rewind"),
    "train.average": ("none", "ema"),
    "optim.name": ("adam", "adamw", "sgd"),
    "optim.schedule": SCHEDULES,
    "optim.reset": ("never", "every_step"),
    "device.name": ("auto", "cpu", "cuda", "mps"),
    "device.precision": ("float32", "bfloat16", "float64"),
    "test.classes": ("drawn", "disjoint"),
    "test.precision": ("auto", "float32", "bfloat16"),
    "device.memory_format": ("auto", "contiguous", "channels_last"),
    "logger.name": ("none", "wandb", "tensorboard", "mlflow"),
    "diagnostics.level": LEVELS,
}
"""Settings of a few values."""


@dataclass
class TrainConfig:
    """The outer loop."""

    steps: int = 1000  # of the outer loop
    tasks: int = 4  # per outer step
    log_every: int = 10  # outer steps between two training records
    eval_every: int = 100  # between two validations
    checkpoint_every: int = 100  # between two checkpoints
    keep_weights: bool = False  # those of every validation stay as checkpoints/step-N.pt, for analysis=early_stopping
    max_minutes: Optional[float] = None  # of training; then the run stops cleanly and tests
    on_nonfinite: str = "stop"  # skip: leave out the step; rewind: go back to the last multiple of checkpoint_every
    average: str = "none"  # ema: test an exponential moving average of the meta-parameters
    average_decay: float = 0.999  # of it, for each outer step
    pretrained: Optional[str] = None  # a run's folder, whose weights the training starts from; they are matched by name
    pool: Optional[int] = None  # train on so many fixed tasks only; null: new tasks at every step
    pool_seed: int = 0  # of the tasks in it
    pool_replaced: Optional[int] = None  # exchange this task of the pool for another
    pool_choice: Optional[int] = None  # exchange about half of its tasks: this number decides which


@dataclass
class ValConfig:
    """Validation, on the same tasks every time."""

    tasks: int = 100  # fixed ones, of each validation


@dataclass
class TestConfig:
    """The final test, on fixed tasks."""

    tasks: int = 600  # fixed ones
    classes: str = "drawn"  # disjoint: no two tasks share a class, so that the interval is for new classes; fewer tasks
    steps: int = 10  # adaptation steps reported
    precision: str = "auto"  # float32, bfloat16; auto: device.precision, but float32 where bfloat16 is emulated
    details: bool = False  # write details.csv: class, prediction and probabilities of every query


@dataclass
class OptimConfig:
    """The outer optimizer."""

    name: str = "adam"  # adam, adamw, sgd, interpolate (of Reptile: theta + lr (phi - theta))
    lr: float = 1e-3  # of the first step
    learned_lr: Optional[float] = None  # of learned inner rates and what else is no weight; null: lr
    schedule: str = "constant"  # constant, linear, cosine, halving
    final_lr: float = 0.0  # at the last step, for schedule=linear and cosine
    halve_every: int = 2000  # steps, for schedule=halving
    weight_decay: float = 0.0  # adamw: decoupled; adam, sgd: added to the gradient
    momentum: float = 0.0  # sgd
    eps: float = 1e-8  # adam, adamw
    reset: str = "never"  # every_step: a new optimizer at each step, without moments or momentum of earlier ones
    clip: Optional[float] = None  # largest norm of the meta-gradient


PORTABLE = "portable"  # of device.deterministic


@dataclass
class DeviceConfig:
    name: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "float32"  # float64; bfloat16: that of convolutions and matrix products alone
    tf32: bool = False  # on CUDA: float32 products of 10 significant bits
    memory_format: str = "auto"  # of images of tasks taken one at a time: auto, contiguous, channels_last
    compile: Any = "auto"  # auto, on, off
    chunk_size: Any = "auto"  # tasks that vmap handles at once: auto, a number, null for all
    memory_mb: Optional[float] = None  # 2^20 bytes that chunk_size=auto keeps to; null: half of the machine's or GPU's
    threads: Optional[int] = None  # of a CPU; null: one for a small network, else as many as torch takes
    side_by_side: bool = True  # small trainings of an analysis that differ in seeds or pools alone; off: one at a time
    rank_patience: float = 15.0  # seconds that a rank of torchrun may give no sign of life before the job ends
    deterministic: Any = False  # true: fixed order of sums on CUDA; portable: the same bits on any x86-64 CPU with AVX2


@dataclass
class LoggerConfig:
    name: str = "none"  # beside metrics.jsonl, which is always written
    project: str = "metarun"  # of wandb or mlflow


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
    grows: float = 1.1  # mean ratio of successive inner steps of one rate; noise of mini-batches is within a tenth
    rises: float = 0.5  # share of the inner steps after which the support loss is higher
    cg_residual: float = 1.0  # of the right-hand side


@dataclass
class DiagnosticsConfig:
    level: str = "basic"  # off, basic, full
    tasks: int = 8  # of a logged step, whose inner loop is followed
    every: int = 1000  # outer steps between probes; level=full
    probe_tasks: int = 16  # fixed ones, of the probes of full
    lanczos_steps: int = 20  # for the largest curvature
    unroll_steps: int = 100  # inner steps that an implicit meta-gradient is held against
    radius: float = 0.05  # of the ball for sharpness and smoothness
    alarms: AlarmConfig = field(default_factory=AlarmConfig)


@dataclass
class PredictConfig:
    """Settings of job=predict."""

    support: Optional[str] = None  # a folder with a folder of labelled images per class; or a table of rows
    query: Optional[str] = None  # a folder of images, or one image; or a table of inputs


@dataclass
class ExportConfig:
    """Settings of job=export."""

    threshold: float = 0.0  # weights of at most this size become 0; 0 cuts only what is 0 already
    tasks: int = 200  # test tasks that the run's metric is compared on before and after
    calls: int = 20  # timed


@dataclass
class ProfileConfig:
    """Settings of job=profile."""

    steps: int = 10  # timed at least
    warmup: int = 3  # calls of the meta-gradient before; the first one compiles
    trace: bool = True  # leave a Chrome trace in the run folder


@dataclass
class SweepConfig:
    """Settings of `metarun -m`."""

    jobs: Optional[int] = None  # at once; null: as many as the launcher runs
    again: bool = False  # run jobs again that are done


@dataclass
class PublishedConfig:
    """The metrics that a paper reports for these settings: printed beside the result, without effect on it."""

    value: Optional[float] = None  # as printed: an accuracy in per cent, or an MSE
    ci95: Optional[float] = None  # half of its 95 % interval
    values: list[float] = field(default_factory=list)  # or several, after these adaptation steps
    steps: list[int] = field(default_factory=list)  # of the values
    source: str = ""  # paper and table
    goal: Optional[float] = None  # the metric that a shorter training should reach, in the unit of the value
    trained_as: Optional[str] = None  # the experiment with the same training, tested otherwise here


class Options(dict[str, Any]):
    """The settings of a chosen option: `config.algo["inner_lr"]`, or `config.algo.inner_lr`."""

    def __getattr__(self, key: str) -> Any:
        if key not in self:
            raise AttributeError(f"{key}: no such setting, {nearest(key, self)}")
        return self[key]

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value


@dataclass
class Config:
    job: str = "train"  # train, evaluate, predict, analyze, export, profile, data
    seed: int = 0  # of the initial weights and the training tasks
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
    loss: dict[str, Any] = field(default_factory=dict)  # {_target_: PATH, ...} of a loss of yours; {}: the usual one
    metrics: dict[str, Any] = field(default_factory=dict)  # NAME: PATH of a function (prediction, y), tested beside it
    callbacks: list[Any] = field(default_factory=list)  # [{_target_: PATH, ...}] of observers of yours
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

    def __post_init__(self) -> None:
        for group in ("algo", "data", "model", "reg", "analysis", "loss", "metrics"):
            setattr(self, group, _to_options(getattr(self, group)))


def to_dict(config: Config) -> dict[str, Any]:
    """All settings as plain dictionaries and lists, as YAML and JSON take them."""
    return to_plain(dataclasses.asdict(config))


def to_plain(value: Any) -> Any:
    """Dictionaries and lists inside of a value, as OmegaConf takes them too: not `Options`, not tuples."""
    if isinstance(value, dict):
        return {key: to_plain(entry) for key, entry in value.items()}
    return [to_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _to_options(value: Any) -> Any:
    if isinstance(value, dict):
        return Options({key: _to_options(entry) for key, entry in value.items()})
    return value


def resolve_paths(settings: dict[str, Any]) -> None:
    """Make the paths in the settings of a data set or a network that exist absolute, in place: a run can then be tested
    from another folder."""
    for key in ("root", "file", "split", "weights"):
        path = settings.get(key)
        if isinstance(path, str) and path and (key not in ("split", "weights") or "/" in path or "." in path):
            with contextlib.suppress(RuntimeError, OSError):  # ~ of an unknown user, no access
                full = Path(path).expanduser().absolute()
                settings[key] = str(full) if full.exists() else path
    sets = settings.get("sets")
    for member in sets.values() if isinstance(sets, dict) else ():  # config/data_sets.py
        if isinstance(member, dict):
            resolve_paths(member)


def refuse_unknown(config: Any, at: str = "") -> None:
    """Raise `UserError` for a key that the schema lacks, which `+key=value` can add, and `SettingError` where an
    interpolation put a value in place of a group."""
    own = type(config)()
    names = [entry.name for entry in dataclasses.fields(config)]
    for name in vars(config).keys() - {*names}:
        raise UserError(f"{at}{name}: no such setting, {nearest(name, names)}")
    for name in names:
        value, kind = getattr(config, name), type(getattr(own, name))
        group = dataclasses.is_dataclass(kind) or kind is Options
        if group and not isinstance(value, kind):
            raise SettingError(at + name, value, "is a group of settings, not one setting")
        if dataclasses.is_dataclass(kind):
            refuse_unknown(value, f"{at}{name}.")


def check(config: Config) -> None:
    """Raise `SettingError` for the first value that is out of range."""
    for key, choices in CHOICES.items():
        if get(config, key) not in choices:
            raise SettingError(key, get(config, key), "choices: " + ", ".join(choices))
    at_least_1 = (
        *("train.steps", "train.tasks", "train.log_every", "train.eval_every", "train.checkpoint_every"),
        *("train.pool", "val.tasks", "test.tasks", "optim.halve_every", "device.threads", "sweep.jobs"),
        "device.rank_patience",
        *("export.tasks", "export.calls", "profile.steps", "profile.warmup"),
        *("diagnostics.tasks", "diagnostics.every", "diagnostics.probe_tasks", "diagnostics.lanczos_steps"),
        *("diagnostics.unroll_steps", "diagnostics.alarms.window", "diagnostics.alarms.patience"),
    )
    at_least_0 = (
        *("seed", "train.pool_seed", "train.pool_replaced", "train.pool_choice"),
        *("test.steps", "optim.weight_decay", "optim.momentum", "export.threshold"),
    )
    for low, keys in ((1, at_least_1), (0, at_least_0)):
        for key in keys:
            value = get(config, key)
            if value is not None and not low <= value < 2**63:
                raise SettingError(key, value, f"must be at least {low}")
    alarms = [entry.name for entry in dataclasses.fields(AlarmConfig) if entry.name not in ("window", "patience")]
    for key in (
        *("optim.lr", "optim.learned_lr", "optim.eps", "optim.clip"),
        *("train.max_minutes", "diagnostics.radius", "device.memory_mb"),
        *(f"diagnostics.alarms.{name}" for name in alarms),
    ):
        value = get(config, key)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise SettingError(key, value, "must be above 0 and finite")
    if config.optim.momentum >= 1:
        raise SettingError("optim.momentum", config.optim.momentum, "must be below 1")
    if not 0 < config.train.average_decay < 1:
        raise SettingError("train.average_decay", config.train.average_decay, "must be above 0 and below 1")
    for key in ("ways", "shots", "queries", "test_queries"):
        value = config.data.get(key)
        if isinstance(value, int) and value < 1:
            raise SettingError(f"data.{key}", value, "must be a whole number of at least 1")
    _check_device(config.device)
    _check_published(config.published)


def _check_published(published: PublishedConfig) -> None:
    if len(published.values) != len(published.steps):
        raise SettingError("published.values", published.values, f"must be one for each of steps={published.steps}")
    if published.value is not None and published.values:
        raise SettingError(
            "published.values", published.values, "cannot be set together with published.value: one value or several"
        )
    if (published.value is not None or published.values) and not published.source:
        raise SettingError("published.source", published.source, "must name the source of the value")


def get(config: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _check_device(device: DeviceConfig) -> None:
    size = device.chunk_size
    if not (size in ("auto", None) or (isinstance(size, int) and not isinstance(size, bool) and size >= 1)):
        raise SettingError("device.chunk_size", size, "choices: auto, null (all tasks at once), a number of at least 1")
    if device.threads is not None and device.threads > MOST_THREADS:
        raise SettingError("device.threads", device.threads, f"must be at most {MOST_THREADS}")
    compile_choice(device)
    if device.deterministic not in (True, False, PORTABLE):
        raise SettingError("device.deterministic", device.deterministic, f"choices: true, false, {PORTABLE}")
    if device.name == "cuda" and _lacks_cuda():
        raise SettingError("device.name", "cuda", "this machine has none; choices: cpu, auto")


def _lacks_cuda() -> bool:
    """Whether torch is a build for CPUs, or finds no driver: known at once, without the seconds of its import. Where
    neither is known, the device itself is asked later."""
    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        return False
    if build == "cpu" or sys.platform != "linux" or build.startswith("rocm"):
        return build == "cpu"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def compile_choice(device: DeviceConfig) -> Any:
    """Return "auto", True or False; Hydra reads on and off as booleans in a file, but as words on the command line."""
    choice = COMPILE.get(str(device.compile).lower())
    if choice is None:
        raise SettingError("device.compile", device.compile, "choices: auto, on, off")
    return choice
