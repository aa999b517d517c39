"""Sinusoids: y = A sin(x - p) + noise, checked against the closed forms of its definition."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch

from metarun.data.sinusoid import Sinusoid
from metarun.errors import SettingError
from metarun.types import Batch, EpisodeSpec, Split, Task

PUBLISHED = Sinusoid(amplitude=(0.1, 5.0), phase=(0.0, math.pi), x_range=(-5.0, 5.0), noise=0.0)
SPEC = EpisodeSpec(ways=1, shots=10, queries=15)


def draw(data: Sinusoid, tasks: int, spec: EpisodeSpec = SPEC, seed: int = 0) -> Task:
    return data.episodes("train", seed, 0, range(tasks), spec)


def fit(batch: Batch) -> np.ndarray:
    """[T, 2]: a, b of y = a sin x + b cos x by least squares, task by task in float64."""
    x, y = (t.double().numpy() for t in batch)
    columns = np.concatenate([np.sin(x), np.cos(x)], axis=-1)
    return np.stack([np.linalg.lstsq(c, v, rcond=None)[0][:, 0] for c, v in zip(columns, y, strict=True)])


def predict(coefficients: np.ndarray, x: torch.Tensor) -> np.ndarray:
    a, b = coefficients[:, :1, None], coefficients[:, 1:, None]
    return a * np.sin(x.double().numpy()) + b * np.cos(x.double().numpy())


def mean_and_error(per_task: np.ndarray) -> tuple[float, float]:
    """Mean over independent tasks, and its standard error."""
    return float(per_task.mean()), float(per_task.std(ddof=1) / np.sqrt(len(per_task)))


def assert_same(a: Task, b: Task) -> None:
    for one, other in zip([*a.support, *a.query], [*b.support, *b.query], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_shapes_are_tasks_by_points_by_one_in_float32() -> None:
    task = draw(PUBLISHED, 4)
    assert [tuple(t.shape) for t in (*task.support, *task.query)] == [(4, 10, 1), (4, 10, 1), (4, 15, 1), (4, 15, 1)]
    assert {t.dtype for t in (*task.support, *task.query)} == {torch.float32}
    assert (PUBLISHED.input_shape(), PUBLISHED.outputs(5)) == ((1,), 1)


def test_one_amplitude_and_phase_are_recovered_exactly_from_noiseless_points() -> None:
    """A sin(x - p) = (A cos p) sin x - (A sin p) cos x is linear in two unknowns, so that ten exact points give both.
    Points are rounded to float32: x by 2.4e-7 at most and y by as much, and the fit of ten points does not enlarge
    that by more than some tens."""
    data = dataclasses.replace(PUBLISHED, amplitude=(2.0, 2.0), phase=(1.0, 1.0))
    a, b = fit(draw(data, 50).support).T
    np.testing.assert_allclose(np.hypot(a, b), 2.0, atol=2e-5)
    np.testing.assert_allclose(np.arctan2(-b, a), 1.0, atol=2e-5)


def test_support_and_query_lie_on_one_curve_and_share_no_point() -> None:
    """The curve fitted to the support set predicts the queries; a task of its own for each would not."""
    task = draw(PUBLISHED, 200)
    np.testing.assert_allclose(predict(fit(task.support), task.query.x), task.query.y.numpy(), atol=1e-3)
    points = torch.cat([task.support.x, task.query.x], dim=1)[..., 0]
    assert all(len(row.unique()) == SPEC.shots + SPEC.queries for row in points)


def test_amplitudes_and_phases_are_uniform_over_their_ranges() -> None:
    """Recovered from 25 points a task. U[l, h] has mean (l + h) / 2, variance (h - l)^2 / 12; five standard errors."""
    n = 4000
    task = draw(PUBLISHED, n)
    a, b = fit(Batch(torch.cat([task.support.x, task.query.x], 1), torch.cat([task.support.y, task.query.y], 1))).T
    for values, low, high in [(np.hypot(a, b), 0.1, 5.0), (np.arctan2(-b, a), 0.0, math.pi)]:
        assert values.min() > low - 1e-4
        assert values.max() < high + 1e-4
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * n)
        assert np.histogram(values, bins=10, range=(low, high))[0].min() > 0.8 * n / 10
    assert abs(np.corrcoef(np.hypot(a, b), np.arctan2(-b, a))[0, 1]) < 5 / np.sqrt(n)


def test_the_place_of_a_point_tells_nothing_about_its_task() -> None:
    """Nor about its noise: each number has words of its own. 25 places and noises are uncorrelated with amplitude and
    phase (n independent pairs: standard error 1 / sqrt(n)), and noise has mean 0 and mean square 1 in each tenth of
    the range of x (m points there: standard errors 1 / sqrt(m) and sqrt(2 / m))."""
    n = 4000
    clean, noisy = draw(PUBLISHED, n), draw(dataclasses.replace(PUBLISHED, noise=1.0), n)
    x = torch.cat([clean.support.x, clean.query.x], 1)
    y = torch.cat([clean.support.y, clean.query.y], 1)
    noise = (torch.cat([noisy.support.y, noisy.query.y], 1) - y)[..., 0].numpy()
    a, b = fit(Batch(x, y)).T
    of_task = np.stack([np.hypot(a, b), np.arctan2(-b, a)])
    for of_points in (x[..., 0].numpy(), noise, noise**2):
        between = np.corrcoef(of_task, of_points.T)[:2, 2:]
        assert abs(between).max() < 5 / np.sqrt(n)
    tenth = np.digitize(x.numpy().ravel(), np.linspace(-5, 5, 11)[1:-1])
    for part in (noise.ravel()[tenth == t] for t in range(10)):
        assert abs(part.mean()) < 5 / np.sqrt(len(part))
        assert abs((part**2).mean() - 1) < 5 * np.sqrt(2 / len(part))


def test_inputs_are_uniform_over_their_range() -> None:
    data = dataclasses.replace(PUBLISHED, x_range=(-1.0, 3.0))
    x = draw(data, 4000).query.x.double()
    assert x.min() >= -1
    assert x.max() <= 3
    assert abs(x.mean() - 1) < 5 * 4 / math.sqrt(12 * x.numel())
    assert abs(x.var() - 16 / 12) < 5 * math.sqrt((4**4 / 80 - (16 / 12) ** 2) / x.numel())


@pytest.mark.parametrize(("slope", "expected"), [(-2 / math.pi * 2.55, 3.006), (0.0, 4.252)], ids=["best", "zero"])
def test_predictors_that_do_not_adapt_score_what_theory_says(slope: float, expected: float) -> None:
    """With A ~ U[0.1, 5], p ~ U[0, pi], x ~ U[-5, 5], all independent:

    E A = 2.55 and E A^2 = (5^3 - 0.1^3) / (3 x 4.9) = 8.5033; at any x, sin^2(x - p) averages 1/2 over half a turn.
    Predicting 0 therefore scores E y^2 = 8.5033 / 2 = 4.252.

    The best predictor without the task is E[y | x] = E A (sin x E cos p - cos x E sin p) = -2.55 (2 / pi) cos x, since
    E cos p = 0 and E sin p = 2 / pi. It scores E y^2 less its own mean square, and E cos^2 x = 1/2 + sin 10 / 20 =
    0.4728: 4.252 - (2.55 x 2 / pi)^2 x 0.4728 = 4.252 - 1.246 = 3.006.

    Tasks are independent, points of one task are not, so that the standard error is that of the tasks' means.
    """
    moment = (5**3 - 0.1**3) / (3 * 4.9) / 2
    assert expected == pytest.approx(moment - slope**2 * (0.5 + math.sin(10) / 20), abs=5e-4)
    x, y = (t.double().numpy() for t in draw(PUBLISHED, 20_000).query)
    mean, error = mean_and_error(((y - slope * np.cos(x)) ** 2).mean(axis=(1, 2)))
    assert error < 0.04
    assert abs(mean - expected) < 5 * error


def test_noise_is_normal_with_the_configured_standard_deviation() -> None:
    """With amplitude 0 the targets are the noise: mean 0, sd 0.3 with standard error 0.3 / sqrt(2 n), kurtosis 3."""
    data = dataclasses.replace(PUBLISHED, amplitude=(0.0, 0.0), noise=0.3)
    task = draw(data, 4000)
    noise = torch.cat([task.support.y, task.query.y], 1).double().flatten()
    n = len(noise)
    assert abs(noise.mean()) < 5 * 0.3 / math.sqrt(n)
    assert abs(noise.std() - 0.3) < 5 * 0.3 / math.sqrt(2 * n)
    assert abs((noise / 0.3).pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert len(noise.unique()) > 0.99 * n


def test_noise_leaves_the_points_and_the_curve_where_they_are() -> None:
    """A noisy run and a noiseless one are compared on the same tasks."""
    noisy, clean = draw(dataclasses.replace(PUBLISHED, noise=0.1), 300), draw(PUBLISHED, 300)
    torch.testing.assert_close(noisy.query.x, clean.query.x, rtol=0, atol=0)
    residual = (noisy.query.y - clean.query.y).double()
    assert abs(residual.std() - 0.1) < 5 * 0.1 / math.sqrt(2 * residual.numel())


def test_an_episode_is_the_same_whichever_tasks_are_drawn_beside_it() -> None:
    data = dataclasses.replace(PUBLISHED, noise=0.1)
    whole = data.episodes("val", 4, 9, range(12), SPEC)
    part = data.episodes("val", 4, 9, range(5, 8), SPEC)
    assert_same(part, Task(*(Batch(b.x[5:8], b.y[5:8]) for b in whole)))


def test_split_seed_step_and_task_each_give_another_episode() -> None:
    first = PUBLISHED.episodes("train", 0, 0, range(2), SPEC).support.x
    others = [
        PUBLISHED.episodes(split, seed, step, range(2), SPEC).support.x
        for split, seed, step in [("test", 0, 0), ("train", 1, 0), ("train", 0, 1)]
    ]
    assert len(torch.cat([first, *others]).unique(dim=0)) == 8


def test_any_number_of_points_passes_the_check() -> None:
    PUBLISHED.check("train", EpisodeSpec(ways=1, shots=1, queries=10_000))


@pytest.mark.parametrize("name", ["amplitude", "phase", "x_range"])
@pytest.mark.parametrize(
    "bad", [(2.0, 1.0), (math.nan, 1.0), (0.0, math.nan), (0.0, math.inf), (-math.inf, 0.0), (1.0, 2.0, 3.0), (1.0,)]
)
def test_a_range_that_is_not_low_and_high_is_refused_by_its_name(name: str, bad: tuple[float, ...]) -> None:
    """One line with the key: an infinite end would give NaN targets, and a third number no meaning."""
    with pytest.raises(SettingError) as caught:
        dataclasses.replace(PUBLISHED, **{name: bad})
    assert caught.value.key == name
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_noise_must_be_a_finite_number_of_at_least_zero(bad: float) -> None:
    with pytest.raises(SettingError) as caught:
        dataclasses.replace(PUBLISHED, noise=bad)
    assert caught.value.key == "noise"


def test_a_range_may_be_a_single_value() -> None:
    data = dataclasses.replace(PUBLISHED, x_range=(2.0, 2.0))
    assert (draw(data, 3).query.x == 2).all()


def test_reference_inputs_span_the_range_evenly_and_are_fixed() -> None:
    x = PUBLISHED.reference_inputs(11)
    assert x.shape == (11, 1)
    torch.testing.assert_close(x[:, 0], torch.arange(-5.0, 6.0))
    torch.testing.assert_close(x, PUBLISHED.reference_inputs(11), rtol=0, atol=0)


def test_facts_state_the_ranges_and_that_there_is_no_split() -> None:
    assert PUBLISHED.facts() == {
        "split": "sampled",
        "split_sha256": None,
        "amplitude": [0.1, 5.0],
        "phase": [0.0, math.pi],
        "x_range": [-5.0, 5.0],
        "noise": 0.0,
    }


COUNT = 20
DATA = Sinusoid((0.1, 4.0), (0.0, 0.0), (-5.0, 5.0), 0.0, identity=COUNT)
VALUES = np.linspace(0.1, 4.0, COUNT)
IDENTITY_SPEC = EpisodeSpec(ways=1, shots=5, queries=6)
TASKS = 4000


def draw_identified(split: Split, data: Sinusoid = DATA, tasks: range = range(TASKS)) -> Task:
    return data.episodes(split, 0, 0, tasks, IDENTITY_SPEC)


def amplitudes(task: Task) -> np.ndarray:
    """y = A sin x by least squares."""
    s, y = task.query.x[..., 0].double().sin().numpy(), task.query.y[..., 0].double().numpy()
    return (s * y).sum(1) / (s * s).sum(1)


def shown(task: Task) -> np.ndarray:
    """The number that each task's one-hot shows; one and the same in all its rows."""
    codes = torch.cat([task.support.x, task.query.x], 1)[..., 1:]
    assert torch.equal(codes.sum(-1), torch.ones(codes.shape[:2]))
    numbers = codes.argmax(-1)
    assert (numbers == numbers[:, :1]).all()
    return numbers[:, 0].numpy()


def test_episodes_without_identity_are_those_of_before() -> None:
    """A digest taken before the option was there."""
    digest, data = hashlib.sha256(), Sinusoid((0.1, 5.0), (0.0, math.pi), (-5.0, 5.0), 0.1)
    for split in ("train", "val", "test"):
        for batch in data.episodes(split, 3, 7, range(4), EpisodeSpec(1, 5, 6)):
            for tensor in batch:
                digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == "782bc39166ce3fe831eeca468524fe12a119ae6033b8904d173d1b886e4fdd84"


def test_rows_are_x_and_a_one_hot() -> None:
    task = draw_identified("train", tasks=range(3))
    assert DATA.input_shape() == (21,)
    assert [tuple(t.shape) for t in (*task.support, *task.query)] == [(3, 5, 21), (3, 5, 1), (3, 6, 21), (3, 6, 1)]
    assert {t.dtype for t in (*task.support, *task.query)} == {torch.float32}


def test_in_training_the_one_hot_tells_the_amplitude() -> None:
    """Each of the values is drawn as often as any other: 200 times, standard deviation 13.8."""
    task = draw_identified("train")
    np.testing.assert_allclose(amplitudes(task), VALUES[shown(task)], atol=1e-4)
    counts = np.bincount(shown(task), minlength=COUNT)
    assert abs(counts - TASKS / COUNT).max() < 5 * math.sqrt(TASKS / COUNT * (1 - 1 / COUNT))


@pytest.mark.parametrize("split", ["val", "test"])
def test_at_test_the_amplitude_is_any_and_the_one_hot_has_nothing_to_do_with_it(split: Split) -> None:
    task = draw_identified(split)
    a, numbers = amplitudes(task), shown(task)
    assert len(np.unique(a.round(5))) > 0.9 * TASKS
    assert abs(a.mean() - 2.05) < 5 * 3.9 / math.sqrt(12 * TASKS)
    assert set(numbers) == set(range(COUNT))
    assert abs(np.corrcoef(a, numbers)[0, 1]) < 5 / math.sqrt(TASKS)


def test_with_own_the_one_hot_is_of_the_nearest_amplitude() -> None:
    task = draw_identified("test", dataclasses.replace(DATA, identity_at_test="own"))
    half_a_gap = (VALUES[1] - VALUES[0]) / 2
    assert abs(amplitudes(task) - VALUES[shown(task)]).max() <= half_a_gap + 1e-4
    np.testing.assert_allclose(task.query.y, draw_identified("test").query.y, rtol=0, atol=0)


def test_an_episode_with_identity_is_the_same_whichever_tasks_are_drawn_beside_it() -> None:
    whole, part = draw_identified("test", tasks=range(12)), draw_identified("test", tasks=range(5, 8))
    for all_of_it, some in zip(whole, part, strict=True):
        assert torch.equal(all_of_it.x[5:8], some.x)
        assert torch.equal(all_of_it.y[5:8], some.y)


def test_reference_inputs_show_every_identity() -> None:
    x = DATA.reference_inputs(40)
    assert x.shape == (40, 21)
    torch.testing.assert_close(x[:, 1:].sum(0), torch.full((20,), 2.0))


def test_facts_state_the_identity() -> None:
    facts = DATA.facts()
    assert (facts["identity"], facts["identity_at_test"]) == (COUNT, "random")
    assert "identity" not in dataclasses.replace(DATA, identity=None).facts()


@pytest.mark.parametrize(("key", "value"), [("identity", 1), ("identity", 0), ("identity_at_test", "none")])
def test_what_makes_no_sense_is_refused_by_its_name(key: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        dataclasses.replace(DATA, **{key: value})
    assert caught.value.key == key
