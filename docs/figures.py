"""Draw the figures of README.md and of the pages in docs/ from run folders, and take over those of the stability study.

python docs/figures.py sinusoid RUN [NAME=RUN ...]     one panel of learning, one of adaptation
python docs/figures.py images NAME/WHICH=RUN [...]   validation error against minutes, a panel for each size of tasks;
    the file has the name of the data set
python docs/figures.py rows DATA   test error of every row of docs/results.json on these data, beside the papers
python docs/figures.py returns NAME/WHICH=RUN [...]   return against environment steps, a line for each NAME
python docs/figures.py likelihood NAME=RUN [NAME=RUN ...]   log-likelihood against minutes, beside the exact posterior
python docs/figures.py functions NAME=RUN [NAME=RUN ...]   predicted functions of three test tasks, a row each
python docs/figures.py completion RUN   completed pictures, as in the report
python docs/figures.py stability outputs/study   the figures that `make study` has drawn
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from metarun.report.figures.functions import draw_pictures, draw_task
from metarun.report.read.runs import read_run

IMAGES = Path(__file__).parent / "img"
# Okabe and Ito's colours, told apart by colour-blind readers; markers tell the lines apart in print.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
MARKERS = "osD^vPX*"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def named(arguments: list[str]) -> dict[str, Path]:
    """NAME=RUN, or RUN alone under its own name."""
    pairs = [a.rpartition("=") for a in arguments]
    return {name or Path(run).name: Path(run) for name, _, run in pairs}


def adaptation(axes: Axes, runs: dict[str, Path]) -> None:
    """Test error after each adaptation step, with its interval."""
    for (name, run), colour, marker in zip(runs.items(), COLOURS, MARKERS, strict=False):
        curve = json.loads((run / "summary.json").read_text(encoding="utf-8"))["curve"]
        steps, means = [r["step"] for r in curve], [r["mean"] for r in curve]
        axes.errorbar(steps, means, [r["ci95"] for r in curve], color=colour, marker=marker, label=name, capsize=2)
    axes.set(xlabel="adaptation steps", ylabel="test MSE", ylim=(0, None), title="600 unseen tasks, 95 % intervals")
    axes.legend(frameon=False)


def learning(axes: Axes, run: Path) -> None:
    """Validation error against outer steps."""
    points = [r for r in lines(run / "metrics.jsonl") if r["kind"] == "val"]
    axes.errorbar(
        [p["step"] for p in points], [p["mean"] for p in points], [p["ci95"] for p in points],
        color=COLOURS[0], marker="o", capsize=2,
    )  # fmt: skip
    axes.set(xlabel="outer steps", ylabel="validation MSE after adaptation", ylim=(0, None), title="learning")


def sinusoid(runs: dict[str, Path]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    learning(left, next(iter(runs.values())))
    adaptation(right, runs)
    save(figure, "sinusoid.png")


def images(runs: dict[str, Path]) -> None:
    """A panel for each size of tasks; NAME/WHICH is drawn as NAME, in the same colour in all of them."""
    algorithms = list(dict.fromkeys(name.partition("/")[0] for name in runs))
    styles = dict(zip(algorithms, zip(COLOURS, MARKERS, strict=True), strict=False))
    by_size: dict[str, dict[str, Path]] = {}
    for name, run in runs.items():
        tested = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        data = tested["data"]
        size = f"{tested['ways']}-way {tested['shots']}-shot"
        by_size.setdefault(size, {})[name.partition("/")[0]] = run
    figure, panels = plt.subplots(
        1, len(by_size), figsize=(3.7 * len(by_size), 3.6), layout="constrained", squeeze=False
    )
    for axes, (size, members) in zip(panels[0], by_size.items(), strict=True):
        errors(axes, members, styles)
        axes.set(xlabel="minutes of training", title=f"{data}, {size}")
    panels[0][0].set_ylabel("validation error, %")
    save(figure, f"{data}.png")


def rows(data: str) -> None:
    """A panel for each size of tasks, a line for each learner: test error with its interval, and the paper's."""
    records = json.loads((IMAGES.parent / "results.json").read_text(encoding="utf-8"))
    found = [r for r in records if r["data"] == data and r["metric"] == "accuracy"]
    learners: dict[tuple[int, int], set[str]] = {}
    for r in found:
        learners.setdefault((r["ways"], r["shots"]), set()).add(r["algo"])
    sizes = [size for size in sorted(learners) if len(learners[size]) > 2]
    names = sorted({learner(r) for r in found}, reverse=True)
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(1.4 + 2.6 * len(sizes), 1.0 + 0.2 * len(names)), layout="constrained", sharey=True
    )
    for axes, (ways, shots) in zip(panels, sizes, strict=True):
        for r in (r for r in found if (r["ways"], r["shots"]) == (ways, shots)):
            at, error, paper = names.index(learner(r)), 100 * (1 - r["mean"]), (r.get("published") or {}).get("value")
            axes.errorbar(error, at, xerr=100 * r["ci95"], color=COLOURS[0], marker="o", ms=4, capsize=2)
            if paper is not None:
                axes.plot(100 - paper, at, "D", color=COLOURS[1], mfc="none", ms=6)
        axes.set_ylim(-0.7, len(names) - 0.3)
        low, high = axes.get_xlim()
        if high > 4 * max(low, 0):
            axes.set_xscale("log")
            for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "125" else "")
        axes.set(xlabel="test error, %", title=f"{ways}-way {shots}-shot")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_yticks(range(len(names)), names)
    ours = panels[0].plot([], [], color=COLOURS[0], marker="o", ms=4, label="metarun, 95 % interval of a seed")
    papers = panels[0].plot([], [], "D", color=COLOURS[1], mfc="none", ms=6, label="published, after longer training")
    figure.legend(handles=[*ours, *papers], loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, f"{data}_rows.png")


def learner(record: dict[str, Any]) -> str:
    return record["algo"] + (", not transductive" if record["norm"] == "joined" else "")


def errors(axes: Axes, runs: dict[str, Path], styles: dict[str, tuple[str, str]]) -> None:
    """100 minus validation accuracy, against minutes of training."""
    for name, run in runs.items():
        times, curve = minutes(run), validation(run)
        colour, marker = styles[name]
        wrong = [100 * (1 - mean) for mean in curve.values()]
        axes.plot([times[s] for s in curve], wrong, color=colour, marker=marker, ms=4, label=name)
    drawn = [y for line in axes.lines for y in line.get_ydata()]
    if max(drawn) > 4 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "235" else "")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3, which="both")


def returns(runs: dict[str, Path]) -> None:
    """Validation return of each group of runs: the mean over seeds, and their range; a panel for each robot and
    reward."""
    by_robot: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for name, run in runs.items():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        groups = by_robot.setdefault((summary["data"], summary["reward"]), {})
        groups.setdefault(name.rpartition("/")[0] or name, []).append(run)
    figure, panels = plt.subplots(
        1, len(by_robot), figsize=(4.6 * len(by_robot), 3.8), layout="constrained", squeeze=False
    )
    for axes, ((robot, reward), groups) in zip(panels[0], by_robot.items(), strict=True):
        returned(axes, groups)
        title = f"point robot, {reward} reward" if robot == "point_robot" else robot
        axes.set(xlabel="environment steps, thousands", ylabel="validation return", title=title)
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    save(figure, "returns.png" if any(robot == "point_robot" for robot, _ in by_robot) else "returns_halfcheetah.png")


def returned(axes: Axes, groups: dict[str, list[Path]]) -> None:
    for (name, members), colour in zip(groups.items(), COLOURS, strict=False):
        x, curves = environment_steps(members[0]), [validation(run) for run in members]
        shared = sorted(set(x).intersection(*curves))
        values = [[curve[step] for curve in curves] for step in shared]
        thousands = [x[step] / 1000 for step in shared]
        label = f"{name}, {len(members)} seeds" if len(members) > 1 else name
        axes.plot(thousands, [sum(v) / len(v) for v in values], color=colour, label=label)
        axes.fill_between(thousands, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, lw=0)


def environment_steps(run: Path) -> dict[int, float]:
    return {r["step"]: r["environment_steps"] for r in lines(run / "metrics.jsonl") if "environment_steps" in r}


def minutes(run: Path) -> dict[int, float]:
    """Of training, at each validation."""
    return {r["step"]: r["seconds"] / 60 for r in lines(run / "timing.jsonl") if r["kind"] == "val"}


def validation(run: Path) -> dict[int, float]:
    return {r["step"]: r["mean"] for r in lines(run / "metrics.jsonl") if r["kind"] == "val"}


def likelihood(runs: dict[str, Path]) -> None:
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for (name, run), colour, marker in zip(runs.items(), COLOURS, MARKERS, strict=False):
        times, curve = minutes(run), validation(run)
        axes.plot([times[s] for s in curve], list(curve.values()), color=colour, marker=marker, ms=3, label=name)
    best = json.loads((next(iter(runs.values())) / "summary.json").read_text(encoding="utf-8"))["oracle"]
    for kind, style in (("pointwise", "--"), ("joint", ":")):
        axes.axhline(best[f"{kind}_log_likelihood"]["mean"], color="black", ls=style, lw=1, label=f"exact, {kind}")
    axes.set(xlabel="minutes of training", ylabel="validation log-likelihood, nats a point", title="Gaussian process")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.94), ncol=2)
    axes.grid(alpha=0.3)
    save(figure, "likelihood.png")


def functions(runs: dict[str, Path], tasks: int = 3) -> None:
    figure, panels = plt.subplots(
        len(runs), tasks, figsize=(9, 1.9 * len(runs)), layout="constrained", squeeze=False, sharex=True
    )
    for row, (name, run) in zip(panels, runs.items(), strict=True):
        drawn = json.loads((run / "functions.json").read_text(encoding="utf-8"))
        for axes, task in zip(row, drawn["tasks"], strict=False):
            draw_task(axes, np.asarray(drawn["x"]), task)
        row[0].set_ylabel(name)
    known = {}
    for axes in panels[:, 0]:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncol=6, frameon=False, fontsize=8)
    save(figure, "functions.png")


def completion(runs: dict[str, Path]) -> None:
    (run,) = runs.values()
    save(draw_pictures(read_run(run)).figure, "completion.png")


def stability(runs: dict[str, Path]) -> None:
    (study,) = runs.values()
    for drawn, name in (("figure", "variants"), ("gap", "gap")):
        shutil.copyfile(study / f"{drawn}.png", IMAGES / f"stability-{name}.png")
        print(IMAGES / f"stability-{name}.png")


def save(figure: Any, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=130)
    print(IMAGES / name)


if __name__ == "__main__":
    commands = {
        "sinusoid": sinusoid,
        "images": images,
        "returns": returns,
        "likelihood": likelihood,
        "functions": functions,
        "completion": completion,
        "stability": stability,
    }
    if sys.argv[1] == "rows":
        rows(sys.argv[2])
    else:
        commands[sys.argv[1]](named(sys.argv[2:]))
