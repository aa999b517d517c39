"""From settings to the objects of a run: data set, network, algorithm, penalties, episode sizes, device placement."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from metarun.algorithms.inner_loop import fit_head, is_chosen
from metarun.algorithms.objective import NoisyModel, Regularization
from metarun.compute.device import Placement, make_placement
from metarun.compute.threads import take_one_thread
from metarun.config import catalogue
from metarun.config.components import build, construct
from metarun.config.data_sets import EPISODE_SIZE
from metarun.config.schema import Config, check
from metarun.data.own import check_own, complete, require_members
from metarun.data.pool import TaskPool
from metarun.data.varying import VaryingShots
from metarun.diagnostics.optimum import Optimum
from metarun.diagnostics.step import StepMeasures
from metarun.errors import SettingError, UserError, require
from metarun.models.precision import cast_model
from metarun.regularizers.build import build_regularization, refuse_senseless_terms
from metarun.storage.progress import print_notice
from metarun.training.episode_size import TRAINING_SIZE, episode_sizes, fill_ways, shots_range
from metarun.training.evaluation import REFERENCE_INPUTS, Evaluator, MetricFunction
from metarun.training.final_test import check_disjoint, choose_test_precision, take_disjoint
from metarun.training.fixed_part import embed_images, note_weights
from metarun.training.memory import budget, fit_chunk
from metarun.training.numbered import number_classes
from metarun.training.own_algorithm import check_members, locate_algorithm
from metarun.training.own_parts import (
    NO_PARTS,
    OwnParts,
    build_callbacks,
    build_loss,
    build_metrics,
    refuse_missing_object,
    try_functions,
)
from metarun.training.run import AT_ONCE, CallbackOptions, Trainer
from metarun.types import (
    HEAD,
    NOT_WEIGHTS,
    Algorithm,
    AlgorithmOptions,
    Dataset,
    DatasetOptions,
    EpisodeSpec,
    Model,
    ModelOptions,
    Params,
    Split,
    StatefulLearner,
    optional,
)

if TYPE_CHECKING:
    from metarun.diagnostics.probe import Probe

STATEFUL_JOBS = ("train", "evaluate")
"""The jobs of a StatefulLearner."""


@dataclass(frozen=True)
class Experiment:
    config: Config
    dataset: Dataset
    algorithm: Algorithm  # sized for training episodes
    tested: Algorithm  # the same, sized for test episodes
    regularization: Regularization
    train_spec: EpisodeSpec
    test_spec: EpisodeSpec
    placement: Placement
    final: Algorithm  # `tested` in the precision of the test
    test_precision: str
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)
    callbacks: Sequence[Any] = ()

    def trainer(self) -> Trainer:
        config = self.config
        validator = self.evaluator("val", config.val.tasks, (self.tested.test_inner_steps,))
        return Trainer(
            algorithm=self.algorithm,
            dataset=self.dataset,
            spec=self.train_spec,
            regularization=self.regularization,
            settings=config.train,
            optim=config.optim,
            placement=self.placement,
            seed=config.seed,
            validate=lambda params: validator(self.tested, self.fit_head(params)),
            measures=self.measures() if config.diagnostics.level != "off" else None,
            optimum=self.optimum if config.diagnostics.level != "off" else None,
            probe=self.probe() if config.diagnostics.level == "full" else None,
            probe_every=config.diagnostics.every,
            at_once=1 if any(optional(c, CallbackOptions, "on_step") for c in self.callbacks) else AT_ONCE,
        )

    @functools.cached_property
    def optimum(self) -> Optimum:
        return Optimum(self.algorithm, self.dataset, self.train_spec)

    def measures(self) -> StepMeasures:
        placement, followed = self.placement, self.config.diagnostics.tasks
        chunk = placement.evaluation_chunk(self.train_spec, self.dataset.input_shape())
        return StepMeasures(self.algorithm, followed, chunk, self.regularization, placement.processes)

    def probe(self) -> Probe:
        from metarun.diagnostics.probe import Probe  # with diagnostics=full alone

        return Probe(self.algorithm, self.dataset, self.train_spec, self.placement, self.config.diagnostics)

    def tester(self) -> Evaluator:
        """An evaluator that reports every step up to `test.steps`, and the step whose metric is the result."""
        asked = self.config.test
        steps = tuple(sorted({*range(asked.steps + 1), self.tested.test_inner_steps}))
        logits = self.dataset.kind == "classification" and self.tested.loss.metric == "accuracy"
        evaluator = replace(
            self.evaluator("test", asked.tasks, steps), metrics=self.metrics, probabilities=logits and asked.tasks > 1
        )
        if asked.classes == "drawn":
            return evaluator
        dataset, most = take_disjoint(self.dataset, self.test_spec, option_name("data", self.config))
        return replace(evaluator, dataset=dataset, tasks=min(asked.tasks, most), student=True)

    @property
    def interval(self) -> str | None:
        """closed: for new tasks of these test classes; open: for new tasks of any kind; None: not known."""
        if self.config.test.classes == "disjoint" or self.dataset.facts().get("split") == "sampled":
            return "open"
        return "closed" if optional(self.dataset, DatasetOptions, "members") else None

    def evaluator(self, split: Split, tasks: int, steps: tuple[int, ...]) -> Evaluator:
        return Evaluator(self.dataset, split, self.test_spec, tasks, steps, self.placement)

    def fit_head(self, params: Params) -> Params:
        """Meta-parameters for test episodes: a head of 0 has as many rows as they have outputs."""
        rows, had = (self.dataset.outputs(spec.ways) for spec in (self.test_spec, self.train_spec))
        return fit_head(params, rows) if self.tested.head and rows != had else params

    def initial_params(self) -> Params:
        return self.placement.move_params(self.regularization.init(self.algorithm.init(self.config.seed)))


def assemble(config: Config, own: OwnParts = NO_PARTS, embed: bool = True) -> Experiment:
    """Build the objects of a run, and check everything that can be checked before the first step.

    `embed`: the inputs are the features of a network's fixed part, computed once for each image, if it has one.
    """
    check(config)
    placement = make_placement(config.device)
    precision = choose_test_precision(config, placement)
    made, train = build_dataset(config) if own.dataset is None else own.dataset, config.train
    require_members(made)
    config = fill_ways(config, made)
    train_spec, test_spec = episode_sizes(config)
    names = option_name("algo", config), option_name("data", config)
    dataset = number_classes(config, locate_algorithm(config)[1], complete(made, train_spec), *names)
    if train.pool is not None:
        dataset = TaskPool(dataset, train.pool, train.pool_seed, train.pool_replaced, train.pool_choice)
    for name in ("pool_replaced", "pool_choice") if train.pool is None else ():
        require(getattr(train, name) is None, f"train.{name}", getattr(train, name), "needs a pool; set train.pool")
    shots = shots_range(config)
    if shots is not None:
        require(train.pool is None, "train.pool", train.pool, "must be null where data.shots is a range")
        dataset = VaryingShots(dataset, *shots)
        if placement.compile == "auto":  # a compiled step is one of a fixed size
            placement = replace(placement, compile=False)
    check_pair(config, dataset)
    if dataset.kind != "classification":
        for key, spec in (("data.ways", test_spec), ("algo.train_ways", train_spec)):
            needed = f"must be 1: data={option_name('data', config)} is {dataset.kind}, whose tasks have no classes"
            require(spec.ways == 1, key, spec.ways, needed)
    check_episodes(config, dataset, train_spec, test_spec)
    if config.test.classes == "disjoint":
        check_disjoint(config.test.tasks, *take_disjoint(dataset, test_spec, option_name("data", config)))
    check_own(made, {"train": train_spec, "val": test_spec, "test": test_spec})
    algorithm = build_learner(config, dataset, train_spec.ways, own)
    tested = build_tested(config, dataset, train_spec.ways, test_spec.ways, own)
    same = precision == config.device.precision
    recast = replace(config, device=replace(config.device, precision=precision))
    final = tested if same else build_tested(recast, dataset, train_spec.ways, test_spec.ways, own)
    check_adapted(config, algorithm)
    config = note_weights(config, algorithm.model, dataset)
    if embed:
        dataset, (algorithm, tested, final) = embed_images(dataset, (algorithm, tested, final), placement)
    placement = replace(placement, matmul_only=optional(algorithm.model, ModelOptions, "matmul_only"))
    if placement.compile == "auto" and optional(algorithm.model, ModelOptions, "recurrent"):
        placement = replace(placement, compile=False)
    regularization = build_regularization(config, dataset.kind)
    refuse_senseless_terms(config, regularization, algorithm)
    experiment = Experiment(
        *(config, dataset, algorithm, tested, regularization, train_spec, test_spec, placement, final, precision),
        metrics=(optional(dataset, DatasetOptions, "metrics") or {}) | build_metrics(config) | {**own.metrics},
        callbacks=[*build_callbacks(config), *own.callbacks],
    )
    if own.loss is not None or config.loss or experiment.metrics:
        gaussian = optional(type(algorithm), AlgorithmOptions, "predicts") == "gaussians"
        try_functions(dataset, test_spec, algorithm.loss, experiment.metrics, gaussian)
    check_stateful(experiment)
    params = experiment.initial_params()
    take_one_thread(config.device, params)
    counted = placement.chunk_size == "auto" and not isinstance(algorithm, StatefulLearner)
    return limit_chunk(experiment, params) if counted else experiment


def build_tested(config: Config, dataset: Dataset, train_ways: int, ways: int, own: OwnParts = NO_PARTS) -> Algorithm:
    """The learner of tasks with `ways` classes, trained with `train_ways`."""
    learner = build_learner(config, dataset, ways, own)
    fits = not learner.head or dataset.outputs(train_ways) == dataset.outputs(ways)
    return learner if fits else rescale(config, learner, train_ways, ways)


def rescale(config: Config, tested: Algorithm, train_ways: int, ways: int) -> Algorithm:
    """The learner for the test's number of classes, where its head can have any. Raise `SettingError` if it cannot."""
    change = optional(tested, AlgorithmOptions, "rescale")
    if change is None or not optional(tested, AlgorithmOptions, "zero_head"):
        needed = f"must equal data.ways={ways}: this algorithm's network has one output per class"
        better = "" if change is None else ", whose weights are learned; algo.zero_head=true learns none"
        raise SettingError("algo.train_ways", train_ways, needed + better)
    try:
        return change(ways / train_ways)
    except SettingError as error:
        raise SettingError(f"algo.{error.key}", error.value, error.expected) from error


def check_adapted(config: Config, algorithm: Algorithm) -> None:
    """Raise `SettingError` for a prefix in `algo.adapted` that no parameter of the network begins with, and `UserError`
    where nothing is left to adapt or to train."""
    prefixes, anew = (optional(algorithm, AlgorithmOptions, name) for name in ("adapted", "zero_head"))
    if not (prefixes or anew):
        return
    names = [name for name in algorithm.model.init(0) if not name.startswith(NOT_WEIGHTS)]
    unknown = [p for p in prefixes or () if not any(name.startswith(p.removeprefix("-")) for name in names)]
    if unknown:
        choices = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        raise SettingError("algo.adapted", unknown, f"no parameter of the network begins so; choices: {choices}")
    chosen = f"algo={option_name('algo', config)} model={option_name('model', config)}"
    if not any(is_chosen(name, prefixes or ("",)) for name in names):
        raise UserError(f"{chosen}: algo.adapted={[*prefixes]} leaves the inner loop no parameter of this network")
    if anew and all(name.startswith(HEAD) for name in names):
        rest = "the network has nothing but a head, which starts each task anew; try model=mlp"
        raise UserError(f"{chosen}: nothing is left to train: {rest}")


def check_job(config: Config) -> None:
    """Raise `SettingError` for a job that needs a learner without state, if the learner has state."""
    made = locate_algorithm(config)[1]
    if optional(made, AlgorithmOptions, "before_step") and config.job not in STATEFUL_JOBS:
        needed = f"algo={option_name('algo', config)} gathers its own data and keeps state"
        raise SettingError("job", config.job, f"{needed}; choices: {', '.join(STATEFUL_JOBS)}")


def check_stateful(experiment: Experiment) -> None:
    """The same for probes on fixed tasks, and for several processes."""
    config, name = experiment.config, option_name("algo", experiment.config)
    if not isinstance(experiment.algorithm, StatefulLearner):
        return
    check_job(config)
    if config.diagnostics.level == "full":
        raise SettingError("diagnostics.level", "full", f"algo={name} has no fixed tasks to probe; choices: off, basic")
    if experiment.placement.processes.size > 1:
        raise UserError(f"algo={name}: collects in one process; start it without torchrun")


def limit_chunk(experiment: Experiment, params: Params) -> Experiment:
    """The experiment with chunks of as many tasks as `device.memory_mb` has room for."""
    config, spec = experiment.config, experiment.train_spec
    dataset = optional(experiment.dataset, DatasetOptions, "largest") or experiment.dataset
    split: Split = "train"
    if config.job == "evaluate":
        try:
            experiment.dataset.check("train", spec)
        except SettingError:  # the data may be for a test alone
            split, spec = "test", experiment.test_spec
    episode = experiment.placement.move_task(dataset.episodes(split, config.seed, 0, range(1), spec))
    limit = budget(config.device.memory_mb, experiment.placement.device)
    count = len(experiment.placement.processes.nonempty_share(config.train.tasks))
    placement = fit_chunk(experiment.placement, limit, experiment.algorithm, params, episode, count, spec)
    return replace(experiment, placement=placement)


def build_dataset(config: Config) -> Dataset:
    refuse_missing_object("data", config.data)
    node = {k: v for k, v in config.data.items() if k not in EPISODE_SIZE}
    return build("data", node, config.trusted_modules, trusted_modules=tuple(config.trusted_modules))


def build_learner(config: Config, dataset: Dataset, ways: int, own: OwnParts = NO_PARTS) -> Algorithm:
    """The algorithm with its network, for episodes of so many ways."""
    node = {k: v for k, v in config.algo.items() if k not in TRAINING_SIZE}
    target, made = locate_algorithm(config)
    shape, outputs = dataset.input_shape(), dataset.outputs(ways)
    regularization = build_regularization(config, dataset.kind)

    def network(inputs: tuple[int, ...], outputs: int | None) -> Model:
        if own.model is not None:
            from metarun.models.module import as_network  # with a network of the user's alone

            model = as_network(own.model, config.model.get("norm"))
            fit = optional(model, ModelOptions, "fit")
            return cast_model(fit(inputs, outputs) if fit else model, config.device.precision)
        refuse_missing_object("model", config.model)
        trusted = config.trusted_modules
        given = {"input_shape": inputs, "outputs": outputs, "trusted_modules": tuple(trusted)}
        model = build("model", config.model, trusted, **given)
        return cast_model(model, config.device.precision)

    def part(inputs: tuple[int, ...], outputs: int | None) -> Model:
        model = network(inputs, outputs)
        if isinstance(model, NoisyModel):
            name = option_name("algo", config)
            raise UserError(f"algo={name}: is made of several networks, which have no dropout; set its p to 0")
        return model

    provided: dict[str, Any] = {
        "loss": build_loss(config, dataset.kind, optional(made, AlgorithmOptions, "predicts"), own),
        "ways": ways,
    }
    provided |= {"environment": dataset} if dataset.kind == "control" else {}
    provided |= {"regularization": regularization, "input_shape": shape, "outputs": outputs, "network": part}
    if "model" in inspect.signature(target).parameters:  # else it is made of several networks
        model = network(shape, outputs if made.head else None)
        provided["model"] = regularization.wrap(model, shape)
    if "classes" in inspect.signature(target).parameters:
        numbered = optional(dataset, DatasetOptions, "numbered")
        provided["classes"] = numbered()[1] if numbered else ways
    if "reference_inputs" in inspect.signature(target).parameters:
        provided["reference_inputs"] = dataset.reference_inputs(REFERENCE_INPUTS)
    algorithm = construct("algo", target, node, **provided)
    check_members(f"algo={option_name('algo', config)}", algorithm)
    return algorithm


def check_pair(config: Config, dataset: Dataset) -> None:
    algorithm = locate_algorithm(config)[1]
    if dataset.kind not in algorithm.kinds:
        algos = ", ".join(catalogue.list_algorithms(dataset.kind))
        sets = ", ".join(name for kind in algorithm.kinds for name in catalogue.list_datasets(kind))
        raise UserError(
            f"algo={option_name('algo', config)} data={option_name('data', config)}: this algorithm needs "
            f"{' or '.join(algorithm.kinds)}, the data set is {dataset.kind}; "
            f"for these data choose algo={algos}; for this algorithm choose data={sets}"
        )


def check_episodes(config: Config, dataset: Dataset, train: EpisodeSpec, test: EpisodeSpec) -> None:
    """Raise `SettingError` if a split that the job draws from cannot supply its episodes."""
    trained = {k: f"algo.train_{k}" for k in ("ways", "shots") if config.algo.get(f"train_{k}")}
    checks: list[tuple[Split, EpisodeSpec, dict[str, str]]]
    checks = [("val", test, {}), ("test", test, {}), ("train", train, trained)]
    if config.job == "evaluate":
        checks = checks[1:2]
        members = optional(dataset, DatasetOptions, "members")
        if members and not members["train"] and config.model.get("norm") == "population":
            root, option = config.data.get("root"), f"data={option_name('data', config)}"
            print_notice(
                f"norm=population: {f'data.root={root}' if root else option} has no training classes; the statistics "
                "are those of its other images, without their labels"
            )
    for split, spec, keys in checks:
        names = {"ways": "data.ways", "shots": "data.shots"}
        names["queries"] = "data.queries" if split == "train" else "data.test_queries"
        try:
            dataset.check(split, spec)
        except SettingError as error:
            key = {**names, **keys}.get(error.key, f"data.{error.key}")
            raise SettingError(key, error.value, error.expected) from error


def option_name(group: str, config: Config) -> str:
    """The option that was chosen for the group, or the class's name if the settings were not composed."""
    node = getattr(config, group)
    path = node.get("_target_") or node.get("object") or "?"
    choice = config.choices.get(group)
    return choice if choice and choice != "own" else str(path).rpartition(".")[2]
