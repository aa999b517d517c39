"""Which logged metrics share a panel, the titles of panels, and the references for their values.

docs/metrics.md and docs/diagnostics.md define the metrics. One that is not listed gets a panel of its own under its own
name, so that the metrics of other algorithms are drawn as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

Reference = tuple[float, str]


class Panel(NamedTuple):
    title: str
    names: Mapping[str, str]  # metric -> label in the legend
    y: str
    reference: Reference | None = None


def reference_of(panel: Panel) -> list[Reference]:
    return [panel.reference] if panel.reference else []


LEARNING = ("loss", "accuracy", "mse", "log_likelihood", "return")
GRADIENTS = (
    Panel("Meta-gradient norm", {"grad_norm": "of the tasks' mean", "grad_norm_debiased": "debiased"}, "norm"),
    Panel("Variance of task gradients", {"grad_variance": "trace of covariance"}, "squared norm"),
    Panel("Signal-to-noise ratio", {"grad_snr": "debiased"}, "ratio", (0.0, "all noise")),
    Panel("Cosine of task gradients", {"grad_cosine": "mean over pairs"}, "cosine", (0.0, "unrelated")),
    Panel("Conflicting pairs of tasks", {"grad_conflict": "cosine below 0"}, "share", (0.5, "chance")),
    Panel("Update-to-weight ratio", {"update_ratio": "outer update"}, "ratio"),
    Panel("Outer learning rate", {"lr": "outer rate"}, "rate"),
    Panel("Penalty", {"penalty": "regularizer"}, "value"),
    Panel("Excess risk over the best theta", {"excess_risk": "expected query loss"}, "loss"),
    Panel("Distance to the best theta", {"distance_to_optimum": "norm"}, "norm"),
)
INNER = (
    Panel("Query loss", {"loss_before": "before", "query_loss/0": "before adaptation", "loss": "after"}, "loss"),
    Panel("Adaptation gain", {"adaptation_gain": "loss before minus after"}, "loss", (0.0, "no gain")),
    Panel("Query minus support loss", {"support_query_gap": "after adaptation"}, "loss", (0.0, "no gap")),
    Panel("Contraction of the inner loop", {"contraction": "ratio of moves"}, "ratio", (1.0, "no contraction")),
    Panel(
        "Distance moved",
        {"distance": "all weights", "distance_body": "body", "distance_head": "head"},
        "norm of phi - theta",
    ),
    Panel("Relative distance moved", {"distance_relative": "over norm of theta"}, "ratio"),
    Panel("Path over distance", {"path_ratio": "path / distance"}, "ratio", (1.0, "straight")),
    Panel("Inner steps that raised the loss", {"inner_rises": "share of steps"}, "share"),
    Panel("Stationarity of the inner problem", {"stationarity": "residual gradient"}, "ratio"),
    Panel("Conjugate gradient", {"cg_residual": "residual"}, "ratio", (1.0, "right-hand side")),
    Panel("Negative curvature met", {"cg_negative": "share of tasks"}, "share"),
)
PROBES = (
    Panel("Loss on probe tasks", {"probe_loss": "after adaptation"}, "loss"),
    Panel(
        "Squared norm of the true meta-gradient",
        {"true_grad_norm2_raw": "of the probe tasks", "true_grad_norm2": "debiased"},
        "squared norm",
    ),
    Panel("First-order meta-gradient", {"first_order_cosine": "cosine", "first_order_ratio": "ratio of norms"},
          "against the true one", (1.0, "no bias")),
    Panel("The learner's meta-gradient", {"meta_grad_cosine": "cosine", "meta_grad_ratio": "ratio of norms"},
          "against the true one", (1.0, "the same")),
    Panel("Relative error of the meta-gradient", {"meta_grad_error": "against the true one",
          "implicit_error": "against a long unroll"}, "ratio", (0.0, "exact")),
    Panel("Implicit meta-gradient, cosine", {"implicit_cosine": "with a long unroll"}, "cosine", (1.0, "the same")),
    Panel("Stationarity after a long unroll", {"unroll_stationarity": "gradient left"}, "ratio"),
    Panel("Inner rate x largest eigenvalue", {"rate_curvature": "mean", "rate_curvature_max": "worst task"},
          "product", (2.0, "unstable above")),
    Panel("Outer rate x largest eigenvalue", {"outer_rate_curvature": "last step's rates"}, "product",
          (2.0, "unstable above")),
    Panel("Largest Hessian eigenvalue", {"hessian_max_theta": "before adaptation", "hessian_max_phi": "after"},
          "eigenvalue"),
    Panel("Smallest Hessian eigenvalue", {"hessian_min_theta": "before adaptation", "hessian_min_phi": "after"},
          "eigenvalue", (0.0, "convex above")),
    Panel("Convexity margin of the inner problem", {"prox_margin": "worst task"}, "lambda + smallest eigenvalue",
          (0.0, "convex above")),
    Panel("Residual of the eigenvalues", {
        "hessian_residual_max_theta": "largest, before", "hessian_residual_max_phi": "largest, after",
        "hessian_residual_min_theta": "smallest, before", "hessian_residual_min_phi": "smallest, after",
        "outer_hessian_residual": "of the outer loss"}, "relative"),
    Panel("Growth through the inner loop", {"jacobian_growth": "mean over directions"}, "log of the factor",
          (0.0, "lengths are kept")),
    Panel("Norm of the inner loop's Jacobian", {"jacobian_norm": "largest factor"}, "factor", (1.0, "no growth")),
    Panel("Sharpness", {"sharpness": "rise along the gradient"}, "loss", (0.0, "flat")),
    Panel("Smoothness", {"smoothness": "change of the gradient"}, "over distance"),
    Panel("Gain from adapting the body", {"gain_from_body": "over the head alone"}, "metric", (0.0, "nothing")),
    Panel("Adapted in full, and in part", {
        "full_accuracy": "in full", "head_only_accuracy": "head only", "nil_accuracy": "no inner loop",
        "full_mse": "in full", "head_only_mse": "head only"}, "reported metric"),
    Panel("Class separation", {"class_separation": "within / between"}, "ratio"),
)  # fmt: skip
COMPARED = (  # between runs
    "grad_norm", "grad_snr", "grad_cosine", "grad_conflict", "update_ratio", "adaptation_gain", "support_query_gap",
    "contraction", "distance", "cg_residual", "cg_negative",
)  # fmt: skip
PENALTIES = {
    "penalty": ("Penalty by term", "weight x Omega"),
    "penalty_share": ("Share of the gradient", "share"),
    "penalty_weight": ("Weight by term", "weight"),
    "penalty_factor": ("Learned factors", "factor"),
    "sparsity": ("Zeros by layer", "share of the penalised weights"),
    "sparsity_adapted": ("Zeros after adaptation", "share of the penalised weights"),
}  # families that the section on penalties shows
FAMILIES = PENALTIES | {
    "grad_norm": ("Meta-gradient norm by layer", "norm"),
    "update_ratio": ("Update-to-weight ratio by layer", "ratio"),
    "cka": ("CKA of layers, before and after", "similarity"),
    "support_loss": ("Support loss along the inner loop", "loss"),
    "query_loss": ("Query loss along the inner loop", "loss"),
}
PARTS = {"zeros": "all of them"}  # labels of parts whose names are not clear


def names_in(*panel_sets: Sequence[Panel]) -> set[str]:
    return {name for group in panel_sets for panel in group for name in panel.names}


def families(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the metrics named prefix/part: prefix -> part -> name."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        prefix, slash, part = name.partition("/")
        if slash:
            found.setdefault(prefix, {})[part] = name
    return found


def family_labels(prefix: str) -> tuple[str, str]:
    """Return the title and the vertical axis of a family's panel."""
    return FAMILIES.get(prefix, (prefix.replace("_", " "), prefix))


def is_profile(parts: Collection[str]) -> bool:
    """Whether the parts are 0, 1, 2 ...: the steps of an inner loop."""
    return len(parts) > 1 and all(part.isdecimal() for part in parts)


def own_panels(names: Sequence[str]) -> list[Panel]:
    """Return a panel for each metric, those of the same first word side by side."""
    ungrouped = [name for name in names if "/" not in name]
    first = {name.partition("_")[0]: at for at, name in reversed(list(enumerate(ungrouped)))}
    ordered = sorted(ungrouped, key=lambda name: first[name.partition("_")[0]])
    return [Panel(name.replace("_", " "), {name: name}, name) for name in ordered]
