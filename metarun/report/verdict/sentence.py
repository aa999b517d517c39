"""A sentence of a verdict: the question that it answers, and whether the answer is good news."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Tone = Literal["plain", "good", "warn"]

RESULT, CONVERGED, STABLE, PUBLISHED = "Result", "Converged?", "Stable?", "Published"
CALIBRATED, BATCH = "Calibrated?", "Tasks a step"
SETTINGS, BETTER, SPREAD, APART = "Best settings", "Which is better?", "Seeds", "Not compared"


class Sentence(NamedTuple):
    question: str
    text: str
    tone: Tone = "plain"


def by_question(sentences: Iterable[Sentence]) -> dict[str, list[Sentence]]:
    """The sentences under their questions, in the order of the first of each."""
    found: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        found.setdefault(sentence.question, []).append(sentence)
    return found
