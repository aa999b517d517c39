"""summary.json: the result of a run, and the facts that belong beside it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.algorithms.objective import Regularization, Term
from metarun.diagnostics.alarms import Alarms
from metarun.diagnostics.penalties import label, targets
from metarun.diagnostics.sparsity import sparsity
from metarun.report.statistics.calibration import describe_calibration
from metarun.report.statistics.heavy_tails import iqm_interval, measure_tail, median_interval
from metarun.report.statistics.paired import compare
from metarun.report.statistics.worst_tasks import measure_worst
from metarun.storage.run_folder import RunFolder
from metarun.training.episode_size import shots_range
from metarun.training.evaluation import Evaluation, mean_and_interval
from metarun.training.experiment import Experiment, option_name
from metarun.training.optimizer import learning_rate
from metarun.training.run import State
from metarun.types import AlgorithmOptions, GradientLearner, Metrics, ModelOptions, Params, PenaltyOptions, optional


def describe_run(experiment: Experiment, folder: str) -> dict[str, Any]:
    """The facts that are known before the first step."""
    config, dataset, device = experiment.config, experiment.dataset, experiment.placement.device
    size = {"ways": experiment.test_spec.ways, "shots": experiment.test_spec.shots}
    size |= {k: config.data[k] for k in ("queries", "test_queries")}
    tested = {"evaluated_run": config.run} if config.job == "evaluate" else {}
    return {
        "status": "running",
        **tested,
        "algo": option_name("algo", config),
        "data": option_name("data", config),
        "kind": dataset.kind,
        **size,
        "train_ways": experiment.train_spec.ways,
        "train_shots": "{} to {}".format(*shots) if (shots := shots_range(config)) else experiment.train_spec.shots,
        **dataset.facts(),
        "norm": optional(experiment.algorithm.model, ModelOptions, "norm") or config.model.get("norm"),
        "first_order": config.algo.get("first_order"),
        "approximation": optional(experiment.algorithm, AlgorithmOptions, "approximation"),
        "transductive": optional(experiment.tested, AlgorithmOptions, "transductive"),
        "reg": option_name("reg", config),
        "regularization": describe_penalties(experiment.regularization, []),
        "seed": config.seed,
        "metric": experiment.algorithm.loss.metric,
        "device": device.type,
        "precision": config.device.precision,
        # What a time depends on beside the code: cores of the machine, threads of a matrix product.
        "machine": {
            "processor": processor(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "processes": experiment.placement.processes.size,
        "run_dir": folder,
        "versions": versions(),
    }


def describe_penalties(regularization: Regularization, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each term's settings, and its value and share of the gradient at the last training record, by loop."""
    trained = [record for record in records if record["kind"] == "train"]
    return [_describe_term(term, trained[-1] if trained else {}) for term in regularization.terms]


def _describe_term(term: Term, last: Mapping[str, Any]) -> dict[str, Any]:
    loops = [loop for loop in ("inner", "outer") if term.enters(loop)]
    schedule = term.schedule
    return {
        "name": term.name,
        "class": type(term.penalty).__name__,
        "weight": schedule.weight,
        "where": term.where,
        "schedule": schedule.shape,
        "final_weight": schedule.final if schedule.shape != "constant" else None,
        "warmup": schedule.warmup,
        "method": optional(term.penalty, PenaltyOptions, "method"),
        "value": {loop: last.get(f"penalty/{label(term, loop)}") for loop in loops},
        "share": {loop: last.get(f"penalty_share/{label(term, loop)}") for loop in loops},
    }


def describe_sparsity(params: Params, regularization: Regularization) -> dict[str, Any]:
    """Zeros by layer; `penalised`: those of the tensors that outer penalties with a proximal operator act on."""
    names = targets(regularization, "outer", params)
    penalised = sparsity({name: params[name] for name in names})["total"] if names else None
    return {**sparsity(params), "penalised": penalised}


def describe_test(
    evaluation: Evaluation, oracle: Metrics, params: Params, regularization: Regularization
) -> dict[str, Any]:
    """The metrics of the test, those of the best possible predictor if it is known, and what they depend on."""
    errors = None if evaluation.higher_is_better else describe_errors(evaluation, evaluation.headline)
    return {
        "mean": evaluation.mean,
        "ci95": evaluation.ci95,
        "headline": "median" if errors and errors["heavy"] else "mean",
        "errors": errors,
        "n_tasks": evaluation.scores.shape[1],
        "worst_tasks": describe_worst(evaluation),
        "calibration": describe_probabilities(evaluation),
        "headline_step": evaluation.steps[evaluation.headline],
        "curve": describe_curve(evaluation),
        **describe_sets(evaluation),
        "beside": {name: describe_metric(values) for name, values in evaluation.beside.items()},
        "oracle": {name: describe_metric(values) for name, values in oracle.items()},
        "unaveraged": describe_unaveraged(evaluation),
        "episodes_sha256": evaluation.episodes_sha256,
        "params_sha256": params_sha256(params),
        "sparsity": describe_sparsity(params, regularization),
    }


def describe_curve(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The metrics after every step; of an error measure with its median, and whether its tail is heavy."""
    rows = evaluation.curve()
    if not evaluation.higher_is_better:
        shown = ("median", "median_low", "median_high", "heavy")
        for i, row in enumerate(rows):
            errors = describe_errors(evaluation, i)
            row |= {key: errors[key] for key in shown}
    return rows


def describe_errors(evaluation: Evaluation, row: int) -> dict[str, Any]:
    """What holds whatever the tail of an error measure, and its tail (report/statistics/heavy_tails.py).

    `failed` counts the tasks whose error is not finite, or above their error before adaptation.
    """
    before, errors = evaluation.scores[0], evaluation.scores[row]
    values = errors.double().numpy()
    tail, median, middle = measure_tail(values), median_interval(values), iqm_interval(values)
    return {
        "median": median.estimate,
        "median_low": median.low,
        "median_high": median.high,
        "iqm": middle.mean,
        "iqm_half": middle.half,
        "failed": int((~errors.isfinite() | (errors > before)).sum()),
        "not_finite": tail.not_finite,
        "tail_index": tail.alpha,
        "tail_error": tail.error,
        "heavy": tail.heavy,
    }


def describe_worst(evaluation: Evaluation) -> dict[str, float] | None:
    """The mean metric of the worst tenth of the tasks and of the worst task (report/statistics/worst_tasks.py)."""
    found = measure_worst(evaluation.scores[evaluation.headline].numpy(), evaluation.higher_is_better)
    return found._asdict() if found else None


def describe_probabilities(evaluation: Evaluation) -> dict[str, Any] | None:
    """The calibration of a classifier (report/statistics/calibration.py); None where probabilities are not finite."""
    found = evaluation.probabilities
    if not found or not found["confidence"].isfinite().all():
        return None
    return describe_calibration(**{name: values.double().numpy() for name, values in found.items()})


def describe_unaveraged(evaluation: Evaluation) -> dict[str, float] | None:
    """The metric of the meta-parameters themselves where their average was tested, and by how much the average's is
    above it, task by task (report/statistics/paired.py)."""
    if evaluation.unaveraged is None:
        return None
    scores, own = evaluation.scores[evaluation.headline], evaluation.unaveraged
    mean, ci95 = evaluation.average(own)
    difference, half = evaluation.average(scores.double() - own.double())
    pairs = compare(scores, own, evaluation.higher_is_better)
    found = {"mean": mean, "ci95": ci95, "difference": difference, "difference_ci95": half}
    return found | {"wins": pairs.wins, "losses": pairs.losses}


def describe_sets(evaluation: Evaluation) -> dict[str, Any]:
    """The metric on each data set of a mixture, of which `mean` is the mean; empty without several."""
    parts = evaluation.by_set(evaluation.scores[evaluation.headline])
    found = {}
    for name, scores in parts.items():
        mean, ci95 = mean_and_interval(scores, evaluation.student)
        found[name] = {"mean": mean, "ci95": ci95, "n_tasks": len(scores)}
    return {"by_set": found} if found else {}


def describe_metric(values: Tensor) -> dict[str, float]:
    """Mean and interval of a metric over tasks [T]."""
    mean, ci95 = mean_and_interval(values)
    return {"mean": mean, "ci95": ci95}


def describe_end(state: State, tasks: int, status: str, reason: str, alarms: Alarms | None) -> dict[str, Any]:
    """The steps done, how the run ended, and its alarms if it trained; `measures_share` is that of the measures in the
    training time without validation and probes."""
    peak = peak_memory_bytes()
    training = state.seconds - state.spent.get("validation", 0.0) - state.spent.get("probes", 0.0)
    return {
        "status": status,
        "reason": reason,
        "diverged": status == "diverged",
        "steps_done": state.step,
        "tasks_seen": state.step * tasks,
        "best_step": state.best_step,
        "rewinds": state.rewinding.total if state.rewinding else 0,
        "val_error": state.best_error,
        "seconds": state.seconds,
        "seconds_spent": dict(state.spent),
        "measures_share": state.spent.get("measures", 0.0) / training if training > 0 else None,
        "tasks_per_second": state.step * tasks / state.seconds if state.seconds else None,
        "peak_memory_mb": peak and peak / 2**20,
        **({"alarms": alarms.summary()} if alarms else {}),
    }


def describe_convergence(experiment: Experiment, record: RunFolder) -> dict[str, Any]:
    """Costs to thresholds, areas and rates, from the logged metrics."""
    from metarun.report.statistics.convergence import convergence_summary  # here, since no step needs it

    algorithm, dataset = experiment.algorithm, experiment.dataset
    classes = experiment.test_spec.ways if dataset.kind == "classification" else None
    records = record.read_records()
    optimum = describe_optimum(experiment, records)
    return convergence_summary(
        records,
        record.read_records("timing.jsonl"),
        tasks_per_step=experiment.config.train.tasks,
        gradients_per_task=algorithm.inner_steps if isinstance(algorithm, GradientLearner) else 0,
        higher_is_better=algorithm.loss.higher_is_better,
        chance=1 / classes if classes else None,
    ) | ({"optimum": optimum} if optimum else {})


def describe_optimum(experiment: Experiment, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How far the run is from the best theta, and the rate of the theorem where the outer loop is plain descent."""
    config, optim = experiment.config, experiment.config.optim
    plain = optim.name == "sgd" and not (optim.momentum or optim.weight_decay or optim.clip or config.train.pretrained)
    steps, tasks = config.train.steps, config.train.tasks
    if not plain:
        return experiment.optimum.describe(records, tasks)
    rates = [learning_rate(optim, step, steps) for step in range(steps)]
    return experiment.optimum.describe(records, tasks, experiment.initial_params(), rates)


def params_sha256(params: Params) -> str:
    digest = hashlib.sha256()
    for name in sorted(params):
        digest.update(name.encode())
        digest.update(params[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def peak_memory_bytes() -> int | None:
    """The largest resident size of this process so far; None on a system that does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("metarun", "torch", "numpy", "hydra-core"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def continue_history(earlier: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """What a run was computed with: an entry for each change, with the step from which it holds. `earlier` is the
    summary of the run before it was resumed, {} of a new one."""
    known = earlier.get("history")
    history = [entry for entry in known if isinstance(entry, dict)] if isinstance(known, list) else []
    if not history and isinstance(earlier.get("versions"), dict):  # of a metarun that kept the last versions alone
        history = [{"from_step": 0, **earlier["versions"]}]
    now = {**versions(), "processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    if not history or any(history[-1].get(name, value) != value for name, value in now.items()):
        history.append({"from_step": step, **now})
    return history


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def title(summary: Mapping[str, Any]) -> str:
    """The first line of a run's output."""
    ways = f"{summary['train_ways']}-way " if summary["kind"] == "classification" else ""
    task = f"{ways}{summary['train_shots']}-shot training tasks"
    if "evaluated_run" in summary:
        ways = f"{summary['ways']}-way " if ways else ""
        task = f"{ways}{summary['shots']}-shot test tasks for {summary['evaluated_run']}"
    if summary["kind"] == "control":
        return f"metarun: {summary['algo']} on {summary['data']} ({summary['reward']} reward), seed {summary['seed']}"
    return f"metarun: {summary['algo']} on {summary['data']} ({task}), seed {summary['seed']}"
