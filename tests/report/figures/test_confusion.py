"""The confusion matrix: shares of the queries in tasks that have both classes."""

from __future__ import annotations

import numpy as np
import pytest

from metarun.report.figures.confusion import MOST_CLASSES, draw_confusion
from metarun.report.read.details import count_queries


def queries(*lines: str) -> list[dict[str, str]]:
    return [dict(zip(("task", "class", "predicted"), line.split(), strict=True)) for line in lines]


def test_a_cell_is_a_share_of_the_queries_in_tasks_with_both_classes() -> None:
    details = count_queries(queries("0 a a", "0 a b", "0 b b", "1 a a", "1 a c", "1 c a", "1 a a"), "")
    drawing = draw_confusion(details)
    assert drawing is not None
    axes, _ = drawing.figure.axes
    (image,) = axes.get_images()
    unknown = np.ma.masked
    expected = [[60, 50, 100 / 3], [0, 100, unknown], [100, unknown, 0]]
    assert image.get_array().tolist() == [  # type: ignore[union-attr]
        [None if v is unknown else pytest.approx(v) for v in row] for row in expected
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert sorted(text.get_text() for text in axes.texts) == sorted(["60", "50", "33", "0", "100", "100", "0"])
    assert drawing.alt == "Confusion matrix of 3 classes; most: c taken for a, 100 %."


@pytest.mark.parametrize("count", [1, MOST_CLASSES, MOST_CLASSES + 1])
def test_a_matrix_is_drawn_for_as_many_classes_as_have_room(count: int) -> None:
    lines = [f"0 c{k} c{k}" for k in range(count)]
    drawing = draw_confusion(count_queries(queries(*lines), ""))
    assert (drawing is not None) == (count == MOST_CLASSES)
    assert drawing is None or drawing.alt == f"Confusion matrix of {count} classes."
