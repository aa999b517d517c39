r"""Has a curve settled? The slope at its end, with an interval that allows neighbouring points to be alike.

    window     the last third of the steps; the last half where the third has fewer than `ENOUGH` points
    slope      least squares; half of its 95 % interval is the larger of two: the delete-block jackknife (rate.py), and
               the line's t interval times sqrt((1 + r) / (1 - r))
    falling    the interval lies below 0, rising: above 0
    flat       it contains 0, and the change over the window that it allows, (|slope| + half) x (length of the window),
               is at most `SMALL` of the range of the whole curve
    unclear    it contains 0, but allows a larger change
    since      of a flat curve: the first step of the longest window to the end that is flat as well

Symbols: r the autocorrelation of neighbouring residuals, corrected for the bias of few points, (r_n + 2/n) / (1 - 4/n),
between 0 and `MOST_ALIKE`; n points. `since` is found by trying up to `STARTS` longer windows and describes where the
curve levelled off; the verdict is that of one window. In simulations (1000 lines without a slope each, noise with
autocorrelation 0, 0.5 and 0.8) the share that is called rising or falling is 2, 7, 14 % for 8 points, 2, 5, 13 %
for 12, 2, 4, 6 % for 33, and 1, 2, 4 % for 60; 5 % would be exact.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.report.statistics.rate import Line, fit_line, jackknife_half

LEAST, ENOUGH = 8, 12  # points of a window
SMALL = 0.05
STARTS = 20
MOST_ALIKE = 0.9  # autocorrelation

Verdict = Literal["rising", "falling", "flat", "unclear"]


class Course(NamedTuple):
    verdict: Verdict
    slope: float  # per step
    half: float  # of its 95 % interval
    since: int  # the first step of the window, or of the flat part
    points: int


def judge_course(steps: ArrayLike, values: ArrayLike) -> Course | None:
    """Judge values [P] at ascending steps [P]; None if the last half has fewer than `LEAST` finite values."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < LEAST or not (np.diff(x) > 0).all():
        return None
    half, third = (int(np.searchsorted(x, x[-1] - share * (x[-1] - x[0]))) for share in (1 / 2, 1 / 3))
    if len(x) - half < LEAST:
        return None
    spread, start = float(np.ptp(y)), third if len(x) - third >= ENOUGH else half
    found = _judge(x[start:], y[start:], spread)
    if found.verdict != "flat":
        return found
    for earlier in np.unique(np.linspace(0, start, STARTS).astype(int)):
        longer = _judge(x[earlier:], y[earlier:], spread)
        if longer.verdict == "flat":
            return longer
    return found


def _autoregressive_half(x: np.ndarray, y: np.ndarray, line: Line) -> float:
    rest = y - line.intercept - line.slope * x
    total, n = float(rest @ rest), len(x)
    if not total:
        return 0.0
    own = (float(rest[1:] @ rest[:-1]) / total + 2 / n) / (1 - 4 / n)
    r = min(max(own, 0.0), MOST_ALIKE)
    return line.half * math.sqrt((1 + r) / (1 - r))


def _judge(x: np.ndarray, y: np.ndarray, spread: float) -> Course:
    line = fit_line(x, y)
    assert line is not None  # of different x
    half = max(jackknife_half(x, y), _autoregressive_half(x, y, line))
    verdict: Verdict = "falling" if line.slope < -half else "rising" if line.slope > half else "unclear"
    if verdict == "unclear" and (abs(line.slope) + half) * float(np.ptp(x)) <= SMALL * spread:
        verdict = "flat"
    return Course(verdict, line.slope, half, int(x[0]), len(x))
