"""Methods in closed form against scikit-learn, and against learning everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from dynammo.methods.base import Task, Watch
from dynammo.methods.ranpac import RIDGES, choose_ridge, solve_ridge
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, NOTHING, SECOND, configured, create, learn

ALL = FIRST.with_(SECOND)
AT_ONCE = Task(1, 0, 4, ALL, NOTHING)


def test_ncm_agrees_with_scikit_learn() -> None:
    method = create("ncm", configured())
    learn(method, 1)
    learn(method, 2)
    features = extract_features(method.network, ALL.images)
    centroids = NearestCentroid().fit(features.numpy(), ALL.labels.numpy()).centroids_
    np.testing.assert_allclose(method.means.numpy(), centroids, rtol=1e-4, atol=1e-6)
    nearest = KNeighborsClassifier(1, metric="cosine").fit(centroids, np.arange(4))
    expected = nearest.predict(features.numpy())
    assert method.scores(features).predicted.tolist() == expected.tolist()


def test_ranpac_agrees_with_scikit_learn() -> None:
    method = create("ranpac", configured(method_options__ranpac={"projection": 40, "ridge": 0.3}))
    method.learn(AT_ONCE, Watch())
    (h,) = method.project(extract_features(method.network, ALL.images)).numpy()
    assert h.shape == (24, 40)
    assert (h == 0).any() and (h >= 0).all()
    targets = np.eye(4)[ALL.labels.numpy()]
    ridge = Ridge(alpha=0.3, fit_intercept=False, solver="svd").fit(h, targets)
    np.testing.assert_allclose(method.head[0].T.numpy(), ridge.coef_, rtol=1e-6, atol=1e-9)


def test_ranpac_learns_in_parts_what_it_learns_at_once() -> None:
    config = configured(method_options__ranpac={"projection": 40, "ridge": 1.0})
    parts, whole = create("ranpac", config), create("ranpac", config)
    learn(parts, 1)
    learn(parts, 2)
    whole.learn(AT_ONCE, Watch())
    for name, value in whole.state().items():
        torch.testing.assert_close(parts.state()[name], value, rtol=1e-4, atol=1e-5)


def test_several_projections_are_averaged_and_cosines_ignore_lengths() -> None:
    options = {"projection": 40, "ridge": 1.0, "projections": 2}
    plain = create("ranpac", configured(method_options__ranpac=options))
    cosine = create("ranpac", configured(method_options__ranpac={**options, "cosine": True}))
    for method in (plain, cosine):
        method.learn(AT_ONCE, Watch())
    features = extract_features(plain.network, ALL.images)
    targets = torch.eye(4).double()[ALL.labels]
    means, cosines = torch.zeros(2, 24, 4, dtype=torch.float64)
    for drawn in plain.projection:
        h = (features @ drawn).relu().double()
        head = torch.linalg.solve(h.T @ h + torch.eye(40), h.T @ targets)
        means += h @ head / 2
        cosines += h @ head / h.norm(dim=1, keepdim=True) / head.norm(dim=0) / 2
    assert not torch.equal(*plain.projection)
    for method, expected in ((plain, means), (cosine, cosines)):
        torch.testing.assert_close(
            method.scores(features).probabilities, (expected / 0.1).softmax(1), rtol=1e-4, atol=1e-4
        )
    lengths = cosine.head.norm(dim=1).max()
    cosine.head[:, :, 0] *= 10 * lengths
    torch.testing.assert_close(
        cosine.scores(features).probabilities, (cosines / 0.1).softmax(1), rtol=1e-4, atol=1e-4
    )


def test_the_ridge_is_the_one_that_predicts_held_out_images_best() -> None:
    generator = torch.Generator().manual_seed(4)
    h = torch.randn(50, 30, generator=generator, dtype=torch.float64)
    truth = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    targets = h @ truth + 5 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(9))
    fitted, held = order[:40], order[40:]
    errors = []
    for penalty in RIDGES:
        model = Ridge(alpha=penalty, fit_intercept=False, solver="svd")
        model.fit(h[fitted].numpy(), targets[fitted].numpy())
        predicted = model.predict(h[held].numpy())
        errors.append(float(np.square(predicted - targets[held].numpy()).mean()))
    best = RIDGES[int(np.argmin(errors))]
    assert 1e-8 < best < 1e8, "an extreme would be no test"
    assert choose_ridge(h, targets, seed=9) == best


def test_the_ridge_keeps_a_singular_problem_solvable() -> None:
    h = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    head = solve_ridge(h.T @ h, h.T @ torch.ones(1, 1, dtype=torch.float64), 1e-8)
    torch.testing.assert_close(h @ head, torch.ones(1, 1, dtype=torch.float64))


def test_one_image_is_too_few_to_choose_a_ridge() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        choose_ridge(torch.ones(1, 3).double(), torch.ones(1, 1).double(), seed=1)
