"""Small panels of logged numbers: each over outer steps, by layer, or along the inner loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metarun.report.drawing import Drawing, finish, look, panels, plain
from metarun.report.facts import keys, values
from metarun.report.files import Record
from metarun.report.lines import drawn, family, noisy, reference, shades
from metarun.report.names import Panel, families, is_profile
from metarun.report.text import number

MOST_PANELS = 24  # of a figure
FRACTIONS = (0.0, 0.1, 0.3, 0.6, 1.0)  # of the records, at which profiles along the inner loop are drawn

Curve = tuple[np.ndarray, np.ndarray]


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
