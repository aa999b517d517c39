"""The tasks and initial weights of a case, drawn once by metarun and handed to every side as arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.peers.cases import Case

Arrays = dict[str, NDArray[Any]]
IMAGES = {"drawings": (60, 20, 28), "photos": (40, 20, 84)}
"""Classes, images of each, side."""


class Work(NamedTuple):
    """What a side is given: arrays and plain settings, nothing of metarun."""

    theta: Arrays  # initial weights, as metarun names them: block0.weight [F, C, 3, 3], block0.gain, head.weight, ...
    arrays: Arrays  # support_x [T, S, ...], support_y [T, S], query_x [T, M, ...], query_y [T, M]
    algo: dict[str, Any]  # metarun's settings algo.*
    model: dict[str, Any]  # model.*
    optim: dict[str, Any]  # name, lr
    ways: int
    threads: int
    dtype: str = "float32"
    device: str = "cpu"


class Side(NamedTuple):
    """A side, built: its mean query loss and meta-gradient where it is, and one outer step from there."""

    gradient: Any  # () -> (mean query loss, {name: array})
    step: Any  # () -> the tasks' query losses before the step, or their mean; returns when it is done


def draw(case: Case, images: Path, threads: int, dtype: str = "float32", *more: str) -> Work:
    """Compose the case and draw the tasks of its first outer step; `more` overrides."""
    import metarun
    from metarun.training.experiment import assemble

    config = metarun.compose([*settings(case, images, threads, dtype), *more])
    trainer = assemble(config).trainer()
    tasks = trainer.tasks(0)
    arrays = {f"{part}_{axis}": getattr(getattr(tasks, part), axis) for part in tasks._fields for axis in ("x", "y")}
    optim = {"name": config.optim.name, "lr": config.optim.lr}
    theta = {name: value.cpu().numpy() for name, value in trainer.start().params.items()}
    arrays_np = {name: value.contiguous().cpu().numpy() for name, value in arrays.items()}
    ways = trainer.spec.ways
    return Work(theta, arrays_np, dict(config.algo), dict(config.model), optim, ways, threads, dtype, case.device)


def settings(case: Case, images: Path, threads: int, dtype: str = "float32") -> list[str]:
    """The overrides of a case on this machine."""
    root = [f"data.root={images / case.images}"] if case.images else []
    device = [f"device.name={case.device}", f"device.threads={threads}", f"device.precision={dtype}"]
    return [*case.overrides, *root, *device]


def synthesise(kind: str, folder: Path) -> None:
    """A folder of images per class: a few strokes on white, or coarse coloured noise; each image a jittered copy."""
    classes, each, side = IMAGES[kind]
    rng = np.random.default_rng(0)
    for c in range(classes):
        place = folder / f"class{c:03d}"
        place.mkdir(parents=True)
        common = rng.uniform(0, 1, (4, 4, 3))
        for i in range(each):
            own = common + rng.normal(0, 0.06, common.shape)
            image = drawing(own[:, :, :2], side) if kind == "drawings" else noise(own, side)
            image.save(place / f"{i:02d}.png")


def drawing(points: NDArray[np.float64], side: int) -> Image.Image:
    """Four broken lines through the points."""
    image = Image.new("L", (side, side), 255)
    pen = ImageDraw.Draw(image)
    for line in points:
        pen.line([(float(x * side), float(y * side)) for x, y in line], fill=0, width=math.ceil(side / 14))
    return image


def noise(coarse: NDArray[np.float64], side: int) -> Image.Image:
    pixels = (255 * coarse.clip(0, 1)).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
