"""Which logged numbers share a panel, what each panel is called, and what its values are held against.

docs/metrics.md and docs/diagnostics.md define the numbers. A number that is not listed gets a panel of its own under
its own name, so that another algorithm's measures are drawn as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metarun.report.drawing import Drawing, finish, look, panels, plain
from metarun.report.facts import keys, values
from metarun.report.files import Record
from metarun.report.lines import drawn, family, noisy, reference, shades
from metarun.report.text import number

MOST_PANELS = 18  # of a figure
FRACTIONS = (0.0, 0.1, 0.3, 0.6, 1.0)  # of the records, at which profiles along the inner loop are drawn

Curve = tuple[np.ndarray, np.ndarray]
Reference = tuple[float, str]


class Panel(NamedTuple):
    title: str
    names: Mapping[str, str]  # of the numbers, with what the legend calls them
    y: str
    reference: Reference | None = None


GRADIENTS = (
    Panel("Meta-gradient norm", {"grad_norm": "of the tasks' mean", "grad_norm_debiased": "debiased"}, "norm"),
    Panel("Variance of task gradients", {"grad_variance": "trace of covariance"}, "squared norm"),
    Panel("Signal-to-noise ratio", {"grad_snr": "debiased"}, "ratio", (0.0, "all noise")),
    Panel("Cosine of task gradients", {"grad_cosine": "mean over pairs"}, "cosine", (0.0, "unrelated")),
    Panel("Conflicting pairs of tasks", {"grad_conflict": "cosine below 0"}, "share", (0.5, "chance")),
    Panel("Update-to-weight ratio", {"update_ratio": "outer update"}, "ratio"),
    Panel("Outer learning rate", {"lr": "outer rate"}, "rate"),
    Panel("Penalty", {"penalty": "regularizer"}, "value"),
)
INNER = (
    Panel(
        "Query loss", {"loss_before": "before adaptation", "query_loss/0": "before adaptation", "loss": "after"}, "loss"
    ),
    Panel("Adaptation gain", {"adaptation_gain": "query loss, before less after"}, "loss", (0.0, "no gain")),
    Panel("Query less support loss", {"support_query_gap": "after adaptation"}, "loss", (0.0, "no gap")),
    Panel("Contraction of the inner loop", {"contraction": "ratio of moves"}, "ratio", (1.0, "no contraction")),
    Panel(
        "Distance moved",
        {"distance": "all weights", "distance_body": "body", "distance_head": "head"},
        "norm of phi - theta",
    ),
    Panel("Relative distance moved", {"distance_relative": "over norm of theta"}, "ratio"),
    Panel("Path over distance", {"path_ratio": "1 is straight"}, "ratio", (1.0, "straight")),
    Panel("Inner steps that raised the loss", {"inner_rises": "share of steps"}, "share"),
    Panel("Stationarity of the inner problem", {"stationarity": "residual gradient"}, "ratio"),
    Panel("Conjugate gradient", {"cg_residual": "residual"}, "ratio", (1.0, "the right-hand side")),
    Panel("Negative curvature met", {"cg_negative": "share of tasks"}, "share"),
)
LEARNING = ("loss", "accuracy", "mse")
COMPARED = (  # between runs
    "grad_norm", "grad_snr", "grad_cosine", "grad_conflict", "update_ratio", "adaptation_gain", "support_query_gap",
    "contraction", "distance", "cg_residual", "cg_negative",
)  # fmt: skip


def known(panel_sets: Sequence[Sequence[Panel]]) -> set[str]:
    return {name for group in panel_sets for panel in group for name in panel.names}


def families(names: Sequence[str]) -> dict[str, list[str]]:
    """Numbers named prefix/part, by prefix."""
    found: dict[str, list[str]] = {}
    for name in names:
        prefix, slash, _ = name.partition("/")
        if slash:
            found.setdefault(prefix, []).append(name)
    return found


def is_profile(members: Sequence[str]) -> bool:
    """Whether the parts are 0, 1, 2 ...: the steps of an inner loop."""
    return len(members) > 1 and all(name.partition("/")[2].isdecimal() for name in members)


def own_panels(names: Sequence[str]) -> list[Panel]:
    """A panel for each number that no list has."""
    return [Panel(name.replace("_", " "), {name: name}, name) for name in names if "/" not in name]


def draw_panels(name: str, records: tuple[Record, ...], wanted: Sequence[Panel]) -> Drawing | None:
    """Those of the panels that the records have numbers for, as one figure; None where there are none."""
    present = set(keys(records))
    shown = [panel for panel in wanted if present & set(panel.names)][:MOST_PANELS]
    if not shown:
        return None
    figure, axes = panels(len(shown))
    texts = []
    for panel, ax in zip(shown, axes, strict=True):
        curves = {label: values(records, key) for key, label in panel.names.items() if key in present}
        for at, (label, (x, y)) in enumerate(curves.items()):
            noisy(ax, x, y, look(at), plain(label))
        if panel.reference:
            reference(ax, *panel.reference)
        finish(ax, plain(panel.title), "outer steps", plain(panel.y, 30), drawn(list(curves.values())))
        if len(curves) > 1 or panel.reference:
            ax.legend()
        texts += [described(f"{panel.title}, {label}", curve) for label, curve in curves.items()]
    return Drawing(name, " ".join(texts), figure)


def draw_layers(name: str, records: tuple[Record, ...]) -> Drawing | None:
    """A panel for each family of numbers by layer, one line a layer."""
    groups = {k: v for k, v in families(keys(records)).items() if not is_profile(v)}
    if not groups:
        return None
    figure, axes = panels(min(len(groups), MOST_PANELS), columns=2, height=3.0)
    for (prefix, members), ax in zip(groups.items(), axes, strict=False):
        curves = {member.partition("/")[2]: values(records, member) for member in members}
        family(ax, curves, "layers")
        finish(ax, plain(prefix.replace("_", " ")), "outer steps", plain(prefix), drawn(list(curves.values())))
        ax.legend(fontsize=6.5)
    texts = [f"{prefix} of {len(members)} layers over outer steps." for prefix, members in groups.items()]
    return Drawing(name, " ".join(texts), figure)


def draw_profiles(name: str, records: tuple[Record, ...]) -> Drawing | None:
    """A panel for each family of numbers along the inner loop: at a few outer steps, value against inner step."""
    groups = {k: v for k, v in families(keys(records)).items() if is_profile(v)}
    if not groups:
        return None
    figure, axes = panels(min(len(groups), MOST_PANELS))
    texts = []
    for (prefix, members), ax in zip(groups.items(), axes, strict=False):
        having = [r for r in records if members[0] in r]
        picked = [having[at] for at in sorted({round(f * (len(having) - 1)) for f in FRACTIONS})]
        x = np.array([int(member.partition("/")[2]) for member in members])
        rows = [np.array([values((r,), m)[1][0] if m in r else np.nan for m in members]) for r in picked]
        for at, (record, y, colour) in enumerate(zip(picked, rows, shades(len(picked)), strict=True)):
            ax.plot(x, y, color=colour, marker="osD^v"[at], markersize=3, label=f"outer step {record['step']}")
        finish(ax, plain(prefix.replace("_", " ")), "inner steps", plain(prefix), rows)
        ax.legend(fontsize=6.5)
        texts.append(described(f"{prefix} along the inner loop at outer step {picked[-1]['step']}", (x, rows[-1])))
    return Drawing(name, " ".join(texts), figure)


def described(what: str, curve: Curve) -> str:
    """A curve in words, for whoever cannot see it."""
    x, y = curve
    good = np.isfinite(y)
    if not good.any():
        return f"{what}: no finite value."
    ends = [f"{number(float(y[good][at]))} at {number(float(x[good][at]))}" for at in (0, -1)]
    return f"{what}: {', '.join(ends)}."
