"""Pictures of another kind, by a few plain numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dynammo.evaluation.appearance import KINDS, distances_of_others, fit, measure


def pictures(
    count: int, colour: tuple[int, int, int], seed: int, noise: float = 20
) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    shift = generator.normal(0, 10, (count, 1, 1, 3))
    pixels = np.array(colour) + shift + generator.normal(0, noise, (count, 33, 33, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def test_what_is_measured_of_a_picture() -> None:
    """Halves of red 51 / 255 and 153 / 255: mean 0.4, deviation 0.2; one step in 15 is 0.4 / 3."""
    halves = np.zeros((1, 32, 32, 3), np.uint8)
    halves[:, :, :16, 0], halves[:, :, 16:, 0] = 51, 153
    (found,) = measure(halves)
    assert found.shape == (KINDS,)
    assert found[:3] == pytest.approx([0.4, 0, 0], abs=1e-6)
    assert np.exp(found[3:6]) - 0.01 == pytest.approx([0.2, 0, 0], abs=1e-6)
    assert np.exp(found[6:9]) - 1e-3 == pytest.approx([1, 1, 1], abs=1e-6)
    assert np.exp(found[9]) - 1e-3 == pytest.approx(0.4 / 3 / 15, abs=1e-6)
    assert np.exp(found[10]) - 1e-3 == pytest.approx(0.2 / 3, abs=1e-6)
    assert found[11] == pytest.approx(np.log(1e-3), abs=1e-3)  # nothing inside of blocks


def test_each_picture_is_measured_by_itself_at_any_size() -> None:
    some = pictures(5, (200, 120, 90), 0)
    np.testing.assert_allclose(measure(some)[3], measure(some[3:4])[0])
    for size in (4, 7, 32):
        assert np.isfinite(measure(np.zeros((2, size, size, 3), np.uint8))).all()


def test_other_pictures_are_far() -> None:
    kind = fit(measure(pictures(200, (200, 120, 90), 1)), np.zeros(200, int))
    own = kind.distance(measure(pictures(200, (200, 120, 90), 2)))
    assert own.mean() == pytest.approx(KINDS, rel=0.3)  # of a normal distribution it is K
    for other in (pictures(50, (90, 60, 180), 3), pictures(50, (200, 120, 90), 4, noise=80)):
        assert kind.distance(measure(other)).min() > np.quantile(own, 0.99)


def test_pictures_that_are_all_the_same_have_an_appearance() -> None:
    same = np.full((9, 8, 8, 3), 128, np.uint8)
    kind = fit(measure(same), np.arange(9) % 2)
    assert kind.distance(measure(same)) == pytest.approx(0)
    assert (kind.distance(measure(same + 9)) > 1).all()


def test_the_distance_is_to_the_nearest_class_with_what_varies_within_classes() -> None:
    """Two classes at -5 and 5 in the first number; variance 1, of which shrinkage takes nothing."""
    measured = np.zeros((4000, KINDS))
    labels = np.arange(4000) % 2
    measured[:] = np.random.default_rng(0).normal(size=measured.shape)
    measured[:, 0] += np.where(labels == 1, 5, -5)
    kind = fit(measured, labels)
    probe = np.zeros((3, KINDS))
    probe[:, 0] = [-5, 5, 0]
    assert kind.distance(probe) == pytest.approx([0, 0, 25], abs=1.5)


def test_a_picture_that_is_left_out_is_further_away() -> None:
    looks = np.random.default_rng(0).normal(size=(60, KINDS))
    labels = np.repeat([7, 3, 9], 20)
    left_out = distances_of_others(looks, labels)
    assert left_out.mean() > 1.2 * fit(looks, labels).distance(looks).mean()
    own = np.arange(60) % 5 == 2
    np.testing.assert_allclose(left_out[own], fit(looks[~own], labels[~own]).distance(looks[own]))
