"""The probe of diagnostics=full: every measure of this package that needs work of its own, on fixed training tasks.

The tasks are those of step 2^40 of the training split with seed 0, sized and augmented as in training: tasks that no
run trains on, of classes that it does train on, and the same for all seeds. So curves show progress and not which
tasks were drawn; validation, not this, measures generalisation. A probe is a function of theta and of the rates of the
outer step, hence the same after an interruption. Measures that do not exist for a learner, a network or a kind of data
are left out; values that are not finite stay so.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from metarun.compute.device import Placement
from metarun.config.schema import DiagnosticsConfig
from metarun.diagnostics.curvature import curvature_measures
from metarun.diagnostics.meta_gradients import bias_measures, implicit_measures, jacobian_measures, objective_measures
from metarun.diagnostics.outer_curvature import outer_curvature_measures
from metarun.diagnostics.representation import class_measures, head_only_measures, similarity_measures
from metarun.diagnostics.task_sample import TaskSample, draw_sample
from metarun.types import Algorithm, Dataset, EpisodeSpec, GradientLearner, Params, ProximalLearner, Rates

SEED = 0
STEP = 2**40
"""Beyond every outer step."""


@dataclass(frozen=True)
class Probe:
    """(theta, rates of the outer step) -> the measures by name."""

    algorithm: Algorithm  # sized for training episodes
    dataset: Dataset
    spec: EpisodeSpec  # of training episodes
    placement: Placement
    settings: DiagnosticsConfig

    def __call__(self, params: Params, rates: Rates) -> dict[str, float]:
        learner, settings, tasks = self.algorithm, self.settings, self.tasks
        values, gbar = objective_measures(learner, params, tasks, settings.radius)
        values |= outer_curvature_measures(learner, params, tasks, rates, settings.lanczos_steps)
        if isinstance(learner, GradientLearner):
            values |= bias_measures(learner, params, tasks, gbar)
            if isinstance(learner, ProximalLearner):
                values |= implicit_measures(learner, params, tasks, settings.unroll_steps)
            values |= curvature_measures(learner, params, tasks, settings.lanczos_steps)
            values |= jacobian_measures(learner, params, tasks, settings.lanczos_steps)
            values |= similarity_measures(learner, params, tasks)
            values |= head_only_measures(learner, params, tasks)
        if self.dataset.kind == "classification":
            values |= class_measures(self.algorithm, params, tasks, self.spec.ways)
        return values

    @functools.cached_property
    def tasks(self) -> TaskSample:
        """The probe tasks, drawn at the first probe."""
        count = self.settings.probe_tasks
        return draw_sample(self.dataset, "train", SEED, STEP, count, self.spec, self.placement)
