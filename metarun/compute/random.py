"""Random numbers that are a function of where they are used, not of earlier draws.

NumPy's Philox is counter-based: its state is a key and a 256-bit counter, and the stream is fixed across versions.
With key = seed and counter = (word, step, split, 0), task i of a step owns the words i W .. (i+1) W - 1. So episode
(seed, split, step, i) is the same whichever tasks are drawn beside it, in which process and in which order. The last
part of the counter is 1 for words that change images (augmentation), 2 for the noise of a stochastic network and the
keys of dropout, 3 for the sizes of context sets and of a step's tasks, and 4 for the order of pixels or for the actions
and draws of an acting learner (no run has both), and 5 for the set of a mixture that a task is from, so that these
change no episode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metarun.types import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
WORDS_PER_BLOCK = 4  # Philox yields four 64-bit words for each value of its counter

Bits = NDArray[np.uint64]


def random_bits(split: Split, seed: int, step: int, tasks: range, words: int) -> Bits:
    """64-bit words [T, words] of the given tasks."""
    return _draw_words(seed, step, tasks, words, [SPLITS.index(split), 0])


def bits_of_steps(split: Split, seed: int, steps: range, tasks: range, words: int) -> Bits:
    """64-bit words [steps * T, words], step by step: those of `random_bits`, without a new generator for each step."""
    blocks = -(-words // WORDS_PER_BLOCK)
    counter = [tasks.start * blocks, steps.start, SPLITS.index(split), 0]
    generator, drawn = np.random.Philox(key=seed, counter=counter), len(tasks) * blocks
    raw = []
    for _ in steps:
        raw.append(generator.random_raw(drawn * WORDS_PER_BLOCK))
        generator.advance(2**64 - drawn)  # the counter's step is its second 64-bit number
    return np.concatenate(raw).reshape(-1, blocks * WORDS_PER_BLOCK)[:, :words]


def augmentation_bits(seed: int, step: int, tasks: range, part: int, words: int) -> Bits:
    """64-bit words [T, words] for changing the images of training episodes; `part` is 0 for support, 1 for query."""
    return _draw_words(seed, step, tasks, words, [part, 1])


def pixel_bits(split: Split, seed: int, step: int, tasks: range, words: int) -> Bits:
    """64-bit words [T, words] for the order of an image's pixels."""
    return _draw_words(seed, step, tasks, words, [SPLITS.index(split), 4])


def size_bits(seed: int, step: int, tasks: range, words: int) -> Bits:
    """64-bit words [T, words] for the sizes of the context sets of training tasks."""
    return _draw_words(seed, step, tasks, words, [0, 3])


def set_bits(seed: int, step: int, tasks: range, words: int) -> Bits:
    """64-bit words [T, words] for the data set that each training task is from."""
    return _draw_words(seed, step, tasks, words, [0, 5])


def learner_bits(seed: int, step: int, rows: range, part: int, words: int) -> Bits:
    """64-bit words [R, words] for the draws of a learner at an outer step; `part` numbers their uses."""
    return _draw_words(seed, step, rows, words, [part, 4])


def noise(seed: int, step: int, rows: range, count: int) -> NDArray[np.floating]:
    """Standard normals [rows, count] for a stochastic network at an outer step."""
    bits = _draw_words(seed, step, rows, 2 * count, [0, 2])
    return normal(bits[:, :count], bits[:, count:])


def row_keys(seed: int, step: int, tasks: range, count: int, bits: int) -> Bits:
    """Whole numbers [T, count] of so many bits, for the rows of the given tasks at an outer step."""
    return _draw_words(seed, step, tasks, count, [1, 2]) >> np.uint64(64 - bits)


def step_bits(seed: int, step: int, words: int) -> Bits:
    """64-bit words [words] for what all training tasks of an outer step share."""
    return _draw_words(seed, step, range(1), words, [1, 3])[0]


def _draw_words(seed: int, step: int, tasks: range, words: int, stream: list[int]) -> Bits:
    blocks = -(-words // WORDS_PER_BLOCK)
    counter = [tasks.start * blocks, step, *stream]
    raw = np.random.Philox(key=seed, counter=counter).random_raw(len(tasks) * blocks * WORDS_PER_BLOCK)
    return raw.reshape(len(tasks), blocks * WORDS_PER_BLOCK)[:, :words]


def uniform(bits: Bits, low: float, high: float) -> NDArray[np.floating]:
    """Words -> float64 in [low, high)."""
    return low + (high - low) * ((bits >> np.uint64(11)) * 2.0**-53)


def normal(bits_a: Bits, bits_b: Bits) -> NDArray[np.floating]:
    """Two words each -> standard normals, by Box and Muller."""
    radius = np.sqrt(-2 * np.log1p(-uniform(bits_a, 0, 1)))
    return radius * np.cos(uniform(bits_b, 0, 2 * np.pi))


def choose(bits: Bits, count: int) -> NDArray[np.intp]:
    """[..., C] words -> [..., count] distinct indices below C in uniformly random order.

    The positions of the `count` smallest words, in the order of the words.
    """
    if count < bits.shape[-1]:
        smallest = np.argpartition(bits, count - 1, axis=-1)[..., :count]
    else:
        smallest = np.broadcast_to(np.arange(bits.shape[-1]), bits.shape)
    order = np.argsort(np.take_along_axis(bits, smallest, -1), axis=-1, kind="stable")
    return np.take_along_axis(smallest, order, -1)


def sample(bits: Bits, limits: NDArray[np.intp] | int) -> NDArray[np.intp]:
    """[..., C] words and limits [...] of at least C -> [..., C] distinct indices below each limit, in random order.

    The first C swaps of a Fisher-Yates shuffle, in a time that does not depend on the limits.
    """
    count = bits.shape[-1]
    left = np.asarray(limits)[..., None] - np.arange(count)
    chosen = np.arange(count) + np.floor(uniform(bits, 0, 1) * left).astype(np.intp)  # positions i <= r_i < limit
    moved = np.empty_like(chosen)  # what position r_i holds after swap i

    def held(position: NDArray[np.intp], swaps: int) -> NDArray[np.intp]:
        """What a position [...] holds after so many swaps."""
        hits = chosen[..., :swaps] == position[..., None]
        last = swaps - 1 - hits[..., ::-1].argmax(-1)
        found = np.take_along_axis(moved[..., :swaps], last[..., None], -1)[..., 0]
        return np.where(hits.any(-1), found, position)

    drawn = chosen.copy()
    for i in range(count):
        if i:
            drawn[..., i] = held(chosen[..., i], i)
        here = np.full(chosen.shape[:-1], i)
        moved[..., i] = held(here, i) if i else here
    return drawn
