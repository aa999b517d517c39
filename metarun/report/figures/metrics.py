"""Small panels of logged numbers: each over outer steps, by layer, or along the inner loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from metarun.report.figures.drawing import MARKERS, Drawing, finish, legend_below, look, panels, plain
from metarun.report.figures.lines import drawn, family, noisy, reference, shades
from metarun.report.figures.panels import PARTS, PENALTIES, Panel, families, family_words, is_profile
from metarun.report.read.facts import keys, values
from metarun.report.read.files import Record
from metarun.storage.text import is_number, number

MOST_PANELS = 24  # of a figure
ROUNDING = 1e-6  # relative
FRACTIONS = (0.0, 0.1, 0.3, 0.6, 1.0)  # of the records, at which profiles along the inner loop are drawn

Curve = tuple[np.ndarray, np.ndarray]


class Drawn(NamedTuple):
    """Panels, and in words the numbers that need none since they never changed."""

    drawing: Drawing | None
    text: str


def draw_panels(name: str, records: tuple[Record, ...], wanted: Sequence[Panel]) -> Drawn:
    """Those of the panels that the records have numbers for, as one figure."""
    present = set(keys(records))
    found = [(p, {label: values(records, k) for k, label in p.names.items() if k in present}) for p in wanted]
    still = [(panel, curves) for panel, curves in found if curves and all(map(never_changes, curves.values()))]
    moving = [pair for pair in found if pair[1] and pair not in still]
    text = "; ".join(_constants(panel, curves) for panel, curves in still)
    more = f" {len(moving) - MOST_PANELS} more numbers are in metrics.jsonl." if len(moving) > MOST_PANELS else ""
    text = (f"The same throughout: {text}." if text else "") + more
    return Drawn(_figure(name, moving[:MOST_PANELS]) if moving else None, text.strip())


def never_changes(curve: Curve) -> bool:
    """Of several records all have the same finite number, but for rounding."""
    y = curve[1]
    return len(y) > 2 and bool(np.isfinite(y).all() and np.ptp(y) <= ROUNDING * np.abs(y).max())


def _constants(panel: Panel, curves: Mapping[str, Curve]) -> str:
    """`outer learning rate 0.001`, or `distance moved (body 0.1, head 0.2)`."""
    shown = {label: number(float(y[0])) for label, (_, y) in curves.items()}
    several = ", ".join(f"{label} {value}" for label, value in shown.items())
    return f"{panel.title.lower()} {next(iter(shown.values())) if len(shown) == 1 else f'({several})'}"


def _figure(name: str, shown: Sequence[tuple[Panel, Mapping[str, Curve]]]) -> Drawing:
    figure, axes = panels(len(shown))
    for (panel, curves), ax in zip(shown, axes, strict=True):
        for at, (label, (x, y)) in enumerate(curves.items()):
            noisy(ax, x, y, look(at), plain(label))
        held_against = [np.array(panel.reference[:1])] if panel.reference else []
        if panel.reference:
            reference(ax, *panel.reference)
        finish(
            ax, plain(panel.title), "outer steps", plain(panel.y, 30), [*drawn(list(curves.values())), *held_against]
        )
        if len(curves) > 1 or panel.reference:
            ax.legend()
    texts = [described(f"{p.title}, {label}", c) for p, curves in shown for label, c in curves.items()]
    return Drawing(name, " ".join(texts), figure)


def draw_layers(name: str, records: tuple[Record, ...], penalties: bool = False) -> Drawing | None:
    """A panel for each family of numbers by layer, one line a layer; or for each of those on penalties."""
    found = families(keys(records)).items()
    groups = {k: v for k, v in found if not is_profile(v) and (k in PENALTIES) == penalties}
    if not groups:
        return None
    figure, axes = panels(min(len(groups), MOST_PANELS), columns=2, height=3.0)
    for (prefix, members), ax in zip(groups.items(), axes, strict=False):
        parts = [member.partition("/")[2] for member in members]
        curves = {PARTS.get(part, part): values(records, m) for part, m in zip(parts, members, strict=True)}
        family(ax, curves, "lines" if penalties else "layers")
        title, y = family_words(prefix)
        finish(ax, plain(title), "outer steps", plain(y, 30), drawn(list(curves.values())))
        ax.legend(fontsize=6.5)
    what = "parts" if penalties else "layers"
    texts = [f"{prefix} of {len(members)} {what} over outer steps." for prefix, members in groups.items()]
    return Drawing(name, " ".join(texts), figure)


def draw_profiles(name: str, records: tuple[Record, ...]) -> Drawing | None:
    """A panel for each family of numbers along the inner loop: at a few outer steps, value against inner step."""
    groups = {k: v for k, v in families(keys(records)).items() if is_profile(v)}
    if not groups:
        return None
    having = [r for r in records if any(members[0] in r for members in groups.values())]
    picked = [having[at] for at in sorted({round(f * (len(having) - 1)) for f in FRACTIONS})]
    colours = shades(len(picked))
    figure, axes = panels(min(len(groups), MOST_PANELS), legend=len(picked))
    texts = []
    for (prefix, members), ax in zip(groups.items(), axes, strict=False):
        x = np.array([int(member.partition("/")[2]) for member in members])
        rows = [_profile(record, members) for record in picked]
        for at, (y, colour) in enumerate(zip(rows, colours, strict=True)):
            ax.plot(x, y, color=colour, marker=MARKERS[at], markersize=3)
        title, unit = family_words(prefix)
        finish(ax, plain(title), "inner steps", plain(unit, 30), rows)
        texts.append(described(f"{prefix} along the inner loop at outer step {picked[-1]['step']}", (x, rows[-1])))
    handles = [Line2D([], [], color=c, marker=MARKERS[at], markersize=3) for at, c in enumerate(colours)]
    legend_below(figure, handles, [f"outer step {record['step']}" for record in picked])
    return Drawing(name, " ".join(texts), figure)


def _profile(record: Record, members: Sequence[str]) -> np.ndarray:
    return np.array([record[m] if is_number(record.get(m)) else np.nan for m in members], dtype=float)


def described(what: str, curve: Curve) -> str:
    """A curve in words, for whoever cannot see it."""
    x, y = curve
    good = np.isfinite(y)
    if not good.any():
        return f"{what}: no finite value."
    ends = [f"{number(float(y[good][at]))} at {number(float(x[good][at]))}" for at in (0, -1)]
    return f"{what}: {', '.join(ends)}."
